"""Whether each sidecar is what the injector would make now, by the injector's own code; and what it was
told to leave alone. Pods are found by their containers: labels can be taken off.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from cli.checks.model import Outcome, ok, unreadable, warn
from cli.installed import Installation
from injector.config import InjectorConfig
from injector.container import MeshSettings
from injector.mutate import difference
from kit import contract
from kit.kube import Kube, KubeError, Object
from kit.settings import ConfigInvalid, Settings

_SHOWN = 10
_OURS = (contract.CAPTURE_CONTAINER, contract.VALIDATE_CONTAINER, contract.PROXY_CONTAINER)
_SKIPS = {
    "PODLINK_SKIP_SUBNETS": "subnets",
    "PODLINK_SKIP_OUTBOUND_PORTS": "outbound ports",
    "PODLINK_SKIP_INBOUND_PORTS": "inbound ports",
}


async def sidecars(kube: Kube, found: Installation) -> Sequence[Outcome]:
    """Two outcomes: `sidecars-as-made` and `nothing-skipped`."""
    only = found.injector_env.get("PODLINK_ONLY_NAMESPACE")
    try:
        mesh = mesh_of(found)
    except ConfigInvalid as e:
        todo = "kubectl -n " + found.namespace + " describe deployment podlink-injector"
        return [warn("sidecars-as-made", f"the injector's settings cannot be read: {e}", todo)]
    try:
        pods = (await kube.get(f"/api/v1/namespaces/{only}/pods" if only else "/api/v1/pods"))[
            "items"
        ]
        if only:
            spaces = [await kube.get(f"/api/v1/namespaces/{only}")]
        else:
            spaces = (await kube.get("/api/v1/namespaces"))["items"]
    except KubeError as e:
        return [unreadable("sidecars-as-made", "the pods and their namespaces", e)]
    meshed = carrying(pods)
    namespaces = {one["metadata"]["name"]: one for one in spaces}
    return [as_made(meshed, namespaces, mesh, found.namespace), skipped(meshed)]


def mesh_of(found: Installation) -> MeshSettings:
    """What the injector puts into every pod, by the settings of its Deployment. Raises ConfigInvalid."""
    return InjectorConfig.from_env(Settings(found.injector_env)).mesh


def carrying(pods: Sequence[Object]) -> list[Object]:
    """Those that run, or will, with a container that is called as one of podlink's."""
    return [one for one in pods if _carries(one) and not _finished(one)]


def others(
    pods: Sequence[Object], namespaces: Mapping[str, Object], mesh: MeshSettings, system: str = ""
) -> list[tuple[str, str]]:
    """Of those that carry what is called as podlink's, each that is not as podlink makes it, as
    `namespace/name`, and why. Pure."""
    return [
        (f"{where}/{pod['metadata']['name']}", why)
        for pod in pods
        if (where := pod["metadata"]["namespace"]) != system
        and (why := _why(pod, namespaces.get(where), mesh))
    ]


def as_made(
    pods: Sequence[Object], namespaces: Mapping[str, Object], mesh: MeshSettings, system: str = ""
) -> Outcome:
    """Names every pod that carries what is called as podlink's and is not as podlink makes it. Pure."""
    lines = [f"{name}: {why}" for name, why in others(pods, namespaces, mesh, system)]
    if not lines:
        said = f"{len(pods)} sidecars, each as the injector makes it"
        return ok("sidecars-as-made", said)
    said = f"not as the injector makes them now: {_listed(lines)}"
    todo = "made before an upgrade or another setting: kubectl rollout restart ...; else, who made them?"
    return warn("sidecars-as-made", said, todo)


def _why(pod: Object, namespace: Object | None, mesh: MeshSettings) -> str:
    """Why it is another; "" if it is not. A cluster with native sidecars may have pods from before."""
    metadata = pod["metadata"]
    # One that is not enrolled any more is judged as if it were: its sidecar works on.
    labels = {**(metadata.get("labels") or {}), contract.INJECT_LABEL: "enabled"}
    enrolled = {**pod, "metadata": {**metadata, "labels": labels}}
    near = namespace or {"metadata": {}}
    found = [difference(enrolled, near, replace(mesh, native_sidecars=n)) for n in (True, False)]
    return "" if "" in found else found[0]


def skipped(pods: Sequence[Object]) -> Outcome:
    """Names every pod some of whose connections are not captured: no record tells of those. Pure."""
    lines = [
        f"{pod['metadata']['namespace']}/{pod['metadata']['name']}: {what}"
        for pod in pods
        if (what := ", ".join(_skips(pod)))
    ]
    if not lines:
        return ok("nothing-skipped", "every connection of every meshed pod is captured")
    said = f"connections that no sidecar sees: {_listed(lines)}"
    return warn("nothing-skipped", said, "the annotations skip-... say so; docs/annotations.md")


def _skips(pod: Object) -> Iterator[str]:
    for one in _containers(pod):
        if one["name"] in (contract.CAPTURE_CONTAINER, contract.VALIDATE_CONTAINER):
            env = {e["name"]: e.get("value") or "" for e in one.get("env") or ()}
            yield from (f"{what} {env[name]}" for name, what in _SKIPS.items() if env.get(name))


def _carries(pod: Object) -> bool:
    return any(one["name"] in _OURS for one in _containers(pod))


def _finished(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def _containers(pod: Object) -> Iterator[Object]:
    spec = pod["spec"]
    yield from (*(spec.get("initContainers") or ()), *(spec.get("containers") or ()))


def _listed(lines: Sequence[str]) -> str:
    more = len(lines) - _SHOWN
    return "; ".join(lines[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
