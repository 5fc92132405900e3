"""`podlink uninstall`: prints everything that podlink left in the cluster, for `kubectl delete -f -`."""

import asyncio

import click

from cli.cluster import ClusterUnavailable, open_kube
from cli.installed import everything, find_installation, meshed_pods
from cli.objects import Object, dump
from cli.terminal import printable
from kit.contract import SYSTEM_NAMESPACE


@click.command()
@click.option("-n", "--namespace", help="Where podlink is; found if it is not given.")
@click.option("--crds", is_flag=True, help="The LinkPolicies too: all of them go with their kind.")
@click.option("--force", is_flag=True, help="Though meshed pods still run.")
@click.option("--kubeconfig", type=click.Path())
@click.option("--context")
def uninstall(
    namespace: str | None, crds: bool, force: bool, kubeconfig: str | None, context: str | None
) -> None:
    """Print each object that podlink is made of or has made, for `kubectl delete -f -`."""
    try:
        objects, left = asyncio.run(_find(namespace, crds, kubeconfig, context))
    except ClusterUnavailable as e:
        raise click.ClickException(printable(e)) from e
    if left and not force:
        raise click.ClickException(
            f"{len(left)} pods still have a sidecar, {printable(left[0])} among them: their links "
            "fail once their certificates end. Remove the label podlink.dev/inject from their "
            "namespaces and restart them first, or pass --force"
        )
    if not objects:
        raise click.ClickException("nothing of podlink is in this cluster")
    click.echo(dump(objects), nl=False)


async def _find(
    namespace: str | None, crds: bool, kubeconfig: str | None, context: str | None
) -> tuple[list[Object], list[str]]:
    async with await open_kube(kubeconfig, context) as kube:
        if namespace is None:
            found = await find_installation(kube)
            namespace = found.namespace if found else SYSTEM_NAMESPACE
        pods = [f"{p['metadata']['namespace']}/{p['metadata']['name']}"
                for p in await meshed_pods(kube)]  # fmt: skip
        return await everything(kube, namespace, crds), pods
