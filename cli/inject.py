"""`podlink inject -f`: puts the sidecar into manifests, by the code that the webhook runs."""

import asyncio
import copy
from collections.abc import Callable, Iterator

import click

from cli.cluster import ClusterUnavailable, open_kube
from cli.documents import read_documents
from cli.installed import find_installation
from cli.objects import Choices, Object, build, dump
from cli.terminal import printable
from injector.annotations import AnnotationRefused
from injector.config import InjectorConfig
from injector.container import MeshSettings
from injector.guard import PodRefused
from injector.mutate import mutate
from kit.contract import INJECT_LABEL
from kit.settings import ConfigInvalid, Settings
from local.apiserver.patch import json_patch

_ENROLLED: Object = {"metadata": {"labels": {INJECT_LABEL: "enabled"}}}
_TEMPLATES = {
    "Deployment": ("spec", "template"), "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"), "ReplicaSet": ("spec", "template"),
    "ReplicationController": ("spec", "template"), "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}  # fmt: skip


@click.command()
@click.option("-f", "--filename", required=True, help="A file of manifests; - reads stdin.")
@click.option("--offline", is_flag=True, help="With podlink's defaults: ask no cluster.")
@click.option("--kubeconfig", type=click.Path())
@click.option("--context")
def inject(filename: str, offline: bool, kubeconfig: str | None, context: str | None) -> None:
    """Print the manifests with sidecars in their pods; everything else unchanged.

    For where the webhook cannot be, or to see what it would do. After an upgrade, inject anew.
    """
    objects = [one for one in read_documents(filename) if one]
    try:
        mesh = _defaults() if offline else asyncio.run(_settings(kubeconfig, context))
    except ClusterUnavailable as e:
        raise click.ClickException(f"{printable(e)}; or pass --offline") from e
    click.echo(dump([injected(one, mesh) for one in objects]), nl=False)


def injected(one: Object, mesh: MeshSettings) -> Object:
    """A copy with the sidecar in every pod of it. Raises ClickException naming the object. Pure."""
    if not isinstance(one, dict) or not isinstance(one.get("kind"), str):
        raise click.ClickException("a document is no Kubernetes object: it has no kind")
    made = copy.deepcopy(one)
    if made["kind"].endswith("List") and isinstance(made.get("items"), list):
        made["items"] = [injected(item, mesh) for item in made["items"]]
        return made
    for pod, put_back in _pods(made):
        metadata = made.get("metadata")
        name = metadata.get("name", "") if isinstance(metadata, dict) else ""
        where = f"{made['kind']} {name}"
        try:
            if made["kind"] in ("Job", "CronJob"):
                pod = {**pod, "metadata": {**(pod.get("metadata") or {})}}
                pod["metadata"].setdefault("ownerReferences", [{"kind": "Job"}])
            mutation = mutate({"metadata": {}, **pod}, _ENROLLED, mesh)
            changed = json_patch({"metadata": {}, **pod}, mutation.patch)
        except (PodRefused, AnnotationRefused) as e:
            raise click.ClickException(f"{printable(where)}: {printable(e)}") from e
        except (LookupError, TypeError, AttributeError, ValueError) as e:
            raise click.ClickException(f"{printable(where)}: its pod cannot be read: {e!r}") from e
        for warning in mutation.warnings:
            click.echo(f"{printable(where)}: {printable(warning)}", err=True)
        changed["metadata"].pop("ownerReferences", None)
        put_back(changed)
    return made


def _pods(made: Object) -> Iterator[tuple[Object, Callable[[Object], None]]]:
    """Each pod or pod template of the object, with what writes it back."""
    if made["kind"] == "Pod":
        yield made, made.update
        return
    way = _TEMPLATES.get(made["kind"])
    at = made
    for step in way or ():
        if not isinstance(at.get(step), dict):
            raise click.ClickException(
                f"{printable(made['kind'])}: {'.'.join(way or ())} is missing"
            )
        at = at[step]
    if way:
        yield at, at.update


def _defaults() -> MeshSettings:
    (injector,) = (
        one for one in build(Choices())
        if one["kind"] == "Deployment" and one["metadata"]["name"] == "podlink-injector"
    )  # fmt: skip
    (container,) = injector["spec"]["template"]["spec"]["containers"]
    return _mesh({e["name"]: e.get("value", "") for e in container["env"]})


async def _settings(kubeconfig: str | None, context: str | None) -> MeshSettings:
    async with await open_kube(kubeconfig, context) as kube:
        found = await find_installation(kube)
    if found is None:
        raise click.ClickException("podlink is not installed there: podlink install; or --offline")
    return _mesh(found.injector_env)


def _mesh(env: dict[str, str]) -> MeshSettings:
    try:
        return InjectorConfig.from_env(Settings(env)).mesh
    except ConfigInvalid as e:
        raise click.ClickException(f"the injector's settings: {printable(e)}") from e
