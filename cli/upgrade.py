"""`podlink upgrade`: prints the objects of this version with the choices of what is installed.

For `kubectl apply -f -`. Control plane and sidecars may be one minor version apart (N and N-1), so the
order is: control plane first, then restart the workloads when it suits. Until then the guard lets pods
of the last version's image in, since the injector may still be the old one.
"""

import asyncio
import re

import click

from cli.cluster import ClusterUnavailable, open_kube
from cli.installed import Installation, find_installation
from cli.objects import DEFAULT_IMAGE, Choices, build, dump
from cli.terminal import printable
from kit.contract import VERSION
from kit.kube import KubeError


@click.command()
@click.option("--image", default=DEFAULT_IMAGE, show_default=True)
@click.option("--kubeconfig", type=click.Path())
@click.option("--context")
def upgrade(image: str, kubeconfig: str | None, context: str | None) -> None:
    """Print what `kubectl apply -f -` is to change. Choices made at install are kept."""
    try:
        choices = asyncio.run(_choices(image, kubeconfig, context))
    except ClusterUnavailable as e:
        raise click.ClickException(printable(e)) from e
    click.echo(dump(build(choices)), nl=False)


async def _choices(image: str, kubeconfig: str | None, context: str | None) -> Choices:
    async with await open_kube(kubeconfig, context) as kube:
        found = await find_installation(kube)
        if found is None:
            raise click.ClickException("podlink is not installed: podlink install")
        path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/podlink-guard"
        try:
            await kube.get(path)
            guard = True
        except KubeError as e:
            if e.status != 404:
                raise ClusterUnavailable(f"cannot see whether the guard is there: {e}") from e
            guard = False
    return choose(found, image, guard)


def choose(found: Installation, image: str, guard: bool) -> Choices:
    """The choices that `found` was installed with. Raises ClickException for a step too far. Pure."""
    old = found.version("podlink-injector")
    if old and not may_follow(old, VERSION):
        raise click.ClickException(
            f"from {printable(old)} to {VERSION} is more than one minor version: upgrade to each "
            "one between, or sidecars and control plane may not understand each other"
        )
    managed = found.deployments["podlink-injector"]["metadata"].get("labels") or {}
    if managed.get("app.kubernetes.io/managed-by") == "Helm":
        raise click.ClickException("this installation is Helm's: helm upgrade podlink ...")
    env = found.injector_env
    return Choices(
        namespace=found.namespace,
        image=image,
        trust_domain=found.trust_domain,
        cni=env.get("PODLINK_CAPTURE_BY") == "cni",
        guard=guard,
        only_namespace=env.get("PODLINK_ONLY_NAMESPACE", ""),
        also_images=(found.image,) if found.image else (),
    )


def may_follow(old: str, new: str) -> bool:
    """Whether `new` and `old` are at most one minor version apart, and not a step back beyond that."""
    numbers = [re.match(r"(\d+)\.(\d+)", one) for one in (old, new)]
    if numbers[0] is None or numbers[1] is None:
        return True  # a version of somebody's own making: they know
    (major, minor), (to_major, to_minor) = ((int(n[1]), int(n[2])) for n in numbers if n)
    return major == to_major and abs(to_minor - minor) <= 1
