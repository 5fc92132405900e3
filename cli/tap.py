"""`podlink tap ns/pod`: each link of a pod as it ends, live from its proxy."""

import asyncio
import datetime as dt
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import click

from cli.cluster import ClusterUnavailable, open_kube
from cli.exec import ExecFailed, exec_lines
from cli.pods import PodName
from cli.terminal import printable

_STYLE = {"denied": "red", "failed": "red", "audited": "yellow", "allowed": "green"}
Item = Mapping[str, Any]


@click.command()
@click.argument("pod")
@click.option("--count", type=click.IntRange(1), help="End after so many links.")
@click.option("--verdict", type=click.Choice(("allowed", "denied", "audited", "failed")))
@click.option("--security", type=click.Choice(("mtls", "plaintext", "self", "none")))
@click.option(
    "-o", "--output", type=click.Choice(("table", "json")), default="table", show_default=True
)
@click.option(
    "--kubeconfig", type=click.Path(), help="As kubectl: else $KUBECONFIG, ~/.kube/config."
)
@click.option("--context", help="The kubeconfig's context to use.")
def tap(
    pod: str,
    count: int | None,
    verdict: str | None,
    security: str | None,
    output: str,
    kubeconfig: str | None,
    context: str | None,
) -> None:
    """Show each link of POD (namespace/name) as it ends, until Ctrl-C."""
    name = PodName.parse(pod)
    wanted = {"verdict": verdict, "security": security}
    try:
        with suppress(KeyboardInterrupt):
            asyncio.run(_tap(name, count, wanted, output, kubeconfig, context))
    except (ClusterUnavailable, ExecFailed) as e:
        raise click.ClickException(printable(e)) from e


async def _tap(
    pod: PodName,
    count: int | None,
    wanted: Mapping[str, str | None],
    output: str,
    kubeconfig: str | None,
    context: str | None,
) -> None:
    async with await open_kube(kubeconfig, context) as kube:
        seen = 0
        async for item in exec_lines(kube, pod.namespace, pod.name, "/tap"):
            if "missed" in item:
                click.echo(
                    f"{printable(item['missed'])} links were missed: too many at once", err=True
                )
                continue
            if any(value and item.get(name) != value for name, value in wanted.items()):
                continue
            click.echo(json.dumps(item) if output == "json" else line(item))
            seen += 1
            if count is not None and seen >= count:
                return


def line(item: Item) -> str:
    """One link as one line for a person."""
    start_ns, end_ns = _whole(item, "start_ns"), _whole(item, "end_ns")
    at = dt.datetime.fromtimestamp(end_ns / 1e9, dt.UTC) if end_ns else None
    verdict = printable(item.get("verdict"))
    arrow = "→" if item.get("direction") == "outbound" else "←"
    other = "destination" if item.get("direction") == "outbound" else "source"
    port = item.get("destination_port") if other == "destination" else item.get("original_port")
    who = item.get(f"{other}_pod") or item.get(f"{other}_ip") or item.get("original_ip") or "?"
    took_ms = (end_ns - start_ns) / 1e6
    words = [
        f"{at:%H:%M:%S}" if at else "?",
        arrow,
        f"{printable(who)}:{printable(port)}",
        printable(item.get(f"{other}_identity")) or "no identity",
        printable(item.get("security")),
        click.style(verdict, fg=_STYLE.get(verdict)),
        f"({printable(item.get('reason'))})" if item.get("reason") else "",
        f"{_whole(item, 'bytes_sent')}/{_whole(item, 'bytes_received')} bytes",
        f"{took_ms:.1f} ms",
        "still open" if item.get("still_open") else printable(item.get("close")),
        printable(item.get("trace_id")),
    ]
    return "  ".join(filter(None, words))


def _whole(item: Item, name: str) -> int:
    """A count or a time; 0 for what is none, since a proxy may say anything."""
    found = item.get(name)
    return found if isinstance(found, int) and 0 <= found < 1 << 62 else 0
