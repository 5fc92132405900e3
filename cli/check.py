"""`podlink check`: is all well, and what to do where it is not. Ends with status 1 if anything fails."""

import asyncio
import sys

import click

from cli.checks import control_plane, left_out, pre, proxies, sidecars, slips
from cli.checks.model import MARKS, Outcome, fail
from cli.cluster import ClusterUnavailable, open_kube
from cli.installed import find_installation
from cli.terminal import printable, printable_json
from kit.kube import Kube


@click.command()
@click.option("--pre", "before", is_flag=True, help="Before an installation.")
@click.option("--proxy", "with_proxies", is_flag=True, help="Each meshed pod, too.")
@click.option("-n", "--namespace", default="", help="With --proxy: the pods of this one.")
@click.option("-o", "--output", type=click.Choice(("table", "json")), default="table")
@click.option("--kubeconfig", type=click.Path())
@click.option("--context")
def check(
    before: bool, with_proxies: bool, namespace: str, output: str,
    kubeconfig: str | None, context: str | None,
) -> None:  # fmt: skip
    """Look at the cluster and at podlink in it. docs/checks.md lists the checks by their ids."""
    try:
        outcomes = asyncio.run(_check(before, with_proxies, namespace, kubeconfig, context))
    except ClusterUnavailable as e:
        raise click.ClickException(printable(e)) from e
    if output == "json":
        click.echo(printable_json({"checks": [one.as_dict() for one in outcomes]}))
    else:
        for one in outcomes:
            click.echo(f"{MARKS[one.state]} {printable(one.id)}: {printable(one.said)}")
            if one.todo and one.state != "ok":
                click.echo(f"    {printable(one.todo)}")
    failed = sum(one.state == "fail" for one in outcomes)
    if failed:
        if output == "table":
            click.echo(f"{failed} of {len(outcomes)} checks failed", err=True)
        sys.exit(1)


async def _check(
    before: bool, with_proxies: bool, namespace: str, kubeconfig: str | None, context: str | None
) -> list[Outcome]:
    async with await open_kube(kubeconfig, context) as kube:
        if before:
            return [outcome for one in pre.CHECKS for outcome in await one(kube)]
        outcomes = list(await pre.version(kube))
        if any(one.state == "fail" for one in outcomes):
            return outcomes
        outcomes += await _installed(kube)
        if with_proxies:
            outcomes += await proxies.check_proxies(kube, namespace)
        return outcomes


async def _installed(kube: Kube) -> list[Outcome]:
    found = await find_installation(kube)
    if found is None:
        return [fail("installed", "podlink is not here", "podlink install | kubectl apply -f -")]
    outcomes = [*control_plane.programs(found), *control_plane.versions(found)]
    outcomes += control_plane.record_lasts(found)
    outcomes += await control_plane.crd(kube)
    outcomes += await control_plane.webhook(kube, found)
    outcomes += await control_plane.guard(kube)
    outcomes += await control_plane.leaves_without_sidecar(kube)
    outcomes += await control_plane.bundles(kube, found)
    outcomes += await slips.namespaces(kube)
    outcomes += await control_plane.uninjected(kube)
    outcomes += await sidecars.sidecars(kube, found)
    outcomes += await control_plane.policies(kube)
    outcomes += await slips.policies(kube)
    outcomes += await left_out.objects(kube)
    return outcomes
