"""`podlink rotate root`: replace the root of the mesh, step by step, without losing a link."""

import asyncio
import getpass
import json
import secrets
import socket
from collections.abc import Mapping
from typing import Any

import click

from certs.names import ROTATION_CONFIG_MAP
from certs.rotation import Action, RotationOrder
from cli.cluster import ClusterUnavailable, explained, open_kube
from cli.table import print_rows
from cli.terminal import printable, printable_json
from kit.clock import monotonic
from kit.contract import SYSTEM_NAMESPACE
from kit.kube import Kube, KubeError

ANSWER_WITHIN_S = 20.0
_POLL_S = 0.2
_TAKES = f"`get`, `create` and `patch` on ConfigMap {ROTATION_CONFIG_MAP} of the system namespace"
Status = Mapping[str, Any]


@click.group()
def rotate() -> None:
    """Replace what the mesh trusts."""


@rotate.command()
@click.option(
    "--start", "action", flag_value="start", help="Publish a new root beside the old one."
)
@click.option("--advance", "action", flag_value="advance", help="Take the next step, if it may be.")
@click.option("--abort", "action", flag_value="abort", help="Go back to the old root.")
@click.option("--status", "action", flag_value="status", default=True, help="Say where it stands.")
@click.option("--auto", is_flag=True, help="With --start: take each step as soon as it may be.")
@click.option(
    "--force-name",
    "names",
    multiple=True,
    metavar="NAME",
    help="With --advance: do not wait for this pod (namespace/name), namespace, CA or gate.",
)
@click.option("-o", "--output", type=click.Choice(("table", "json")), default="table")
@click.option("--system-namespace", default=SYSTEM_NAMESPACE, show_default=True)
@click.option(
    "--kubeconfig", type=click.Path(), help="As kubectl: else $KUBECONFIG, ~/.kube/config."
)
@click.option("--context", help="The kubeconfig's context to use.")
def root(
    action: Any,
    auto: bool,
    names: tuple[str, ...],
    output: str,
    system_namespace: str,
    kubeconfig: str | None,
    context: str | None,
) -> None:
    """Old and new root are published; once everybody uses both, the new one signs; once no leaf of
    the old one lives, it goes. A step that would leave somebody behind is refused, by name."""
    if auto and action != "start":
        raise click.UsageError("--auto goes with --start")
    if names and action != "advance":
        raise click.UsageError("--force-name goes with --advance")
    try:
        status, said = asyncio.run(
            _work(kubeconfig, context, system_namespace, action, auto, frozenset(names))
        )
    except ClusterUnavailable as e:
        raise click.ClickException(printable(e)) from e
    if output == "json":
        click.echo(printable_json({**status, "said": said}))
    else:
        _show(status, said)
    if said.startswith(("refused: ", "not yet: ")):
        raise click.exceptions.Exit(1)


async def _work(
    kubeconfig: str | None,
    context: str | None,
    namespace: str,
    action: str,
    auto: bool,
    force: frozenset[str],
) -> tuple[Status, str]:
    async with await open_kube(kubeconfig, context) as kube:
        if action == "status":
            return await _status(kube, namespace), ""
        order = RotationOrder(
            id=secrets.token_hex(8),
            action=_action(action),
            by=f"{getpass.getuser()}@{socket.gethostname()}",
            automatic=auto,
            force=force,
        )
        await _give(kube, namespace, order)
        deadline = monotonic() + ANSWER_WITHIN_S
        while monotonic() < deadline:
            status = await _status(kube, namespace)
            if status.get("order_done") == order.id:
                return status, str(status.get("order_said", ""))
            await asyncio.sleep(_POLL_S)
    raise ClusterUnavailable(
        f"no CA has answered within {ANSWER_WITHIN_S:g} s; the order stands and will be carried out: "
        f"look at the CA's log, then at `podlink rotate root --status`"
    )


def _action(text: str) -> Action:
    match text:
        case "start" | "advance" | "abort":
            return text
    raise click.UsageError(f"no such step: {text}")


async def _status(kube: Kube, namespace: str) -> Status:
    try:
        found = await kube.get(f"/api/v1/namespaces/{namespace}/configmaps/{ROTATION_CONFIG_MAP}")
        status = json.loads((found.get("data") or {}).get("status") or "{}")
    except KubeError as e:
        if e.status == 404:
            raise ClusterUnavailable(
                f"no CA has said anything in namespace {namespace} yet; is podlink installed there?"
            ) from e
        raise explained(e, "read the state of the rotation", _TAKES) from e
    except ValueError as e:
        raise ClusterUnavailable(f"ConfigMap {ROTATION_CONFIG_MAP} holds no status: {e}") from e
    return status if isinstance(status, dict) else {}


async def _give(kube: Kube, namespace: str, order: RotationOrder) -> None:
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    body: dict[str, Any] = {"data": {"order": order.to_json()}}
    try:
        await kube.patch(f"{maps}/{ROTATION_CONFIG_MAP}", body)
    except KubeError as e:
        if e.status == 404:
            raise ClusterUnavailable(
                f"no CA has said anything in namespace {namespace} yet; is podlink installed there?"
            ) from e
        raise explained(e, "order a rotation", _TAKES) from e


def _show(status: Status, said: str) -> None:
    if said:
        click.echo(printable(said))
    phase = status.get("phase") or "none under way"
    click.echo(printable(f"rotation: {phase} (bundle generation {status.get('generation', '?')})"))
    if status.get("phase"):
        how = "by itself" if status.get("automatic") else "by order (--advance)"
        click.echo(
            printable(
                f"asked for by {status.get('by')}, since {status.get('since')}, goes on {how}"
            )
        )
        waits = status.get("waits") or ()
        for wait in waits:
            names = ", ".join(map(str, wait.get("names") or ()))
            line = f"waits: {wait.get('text')}" + (f": {names}" if names else "")
            click.echo(printable(f"{line} [{wait.get('gate')}]"))
        if not waits:
            click.echo("waits for nothing: the next step may be taken")
    rows = [
        (s.get("role"), s.get("subject"), str(s.get("sha256"))[:16], s.get("not_after"))
        for s in status.get("signers") or ()
    ]
    if rows:
        print_rows(("SIGNER", "SUBJECT", "SHA256", "ENDS"), rows)
