"""`podlink links`: who talked to whom, as whom, and whether it was protected and allowed."""

import asyncio
import datetime as dt
import json
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from cli.terminal import printable, printable_json
from kit.clock import utcnow

if TYPE_CHECKING:
    from rich.text import Text

    from cli.traces_client import TracesClient

_DURATION = re.compile(r"([0-9]{1,6})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_VERDICT_STYLE = {"allowed": "green", "denied": "bold red", "failed": "red", "audited": "yellow"}
_SECURITY_STYLE = {"mtls": "green", "plaintext": "bold yellow"}
_WIDEST = 1_000_000
_WATCH_EVERY_S = 2.0

Item = Mapping[str, Any]


class Since(click.ParamType[int]):
    """A duration such as 30s, 10m, 1h or 7d, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        if isinstance(value, int):
            return value
        found = _DURATION.fullmatch(value)
        if found is None or int(found[1]) == 0:
            self.fail(f"{value!r} is not a duration such as 30s, 10m, 1h or 7d", param, ctx)
        return int(found[1]) * _SECONDS[found[2]]


@click.command()
@click.option("-n", "--namespace", help="Links from or to this namespace.")
@click.option("--identity", help="Links from or to this identity (spiffe://...).")
@click.option("--verdict", type=click.Choice(("allowed", "denied", "audited", "failed")))
@click.option("--security", type=click.Choice(("mtls", "plaintext", "self", "none")))
@click.option("--since", type=Since(), default="1h", show_default=True, help="How far back.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@click.option(
    "-w", "--watch", is_flag=True, help="Then print links as they are recorded, until Ctrl-C."
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(("table", "wide", "json")),
    default="table",
    show_default=True,
)
@click.option(
    "--kubeconfig", type=click.Path(), help="As kubectl: else $KUBECONFIG, ~/.kube/config."
)
@click.option("--context", help="The kubeconfig's context to use.")
def links(
    namespace: str | None,
    identity: str | None,
    verdict: str | None,
    security: str | None,
    since: int,
    limit: int,
    watch: bool,
    output: str,
    kubeconfig: str | None,
    context: str | None,
) -> None:
    """List links between pods, newest first. A narrow terminal gets one short line of each, without
    identities, sizes and traces; -o wide has them at any width. SECURITY is how the bytes travelled:
    `none (mtls)` is a link that policy refused after mutual TLS had proved who asked."""
    from cli.traces_client import TracesClient, TracesUnavailable

    asked = {
        "namespace": namespace,
        "identity": identity,
        "verdict": verdict,
        "security": security,
        "since": str(since),
        "limit": str(limit),
    }
    client = TracesClient(kubeconfig=kubeconfig, context=context)
    query = {key: value for key, value in asked.items() if value}
    try:
        if watch:
            with suppress(KeyboardInterrupt):
                asyncio.run(_watch(client, query, output))
            return
        found = asyncio.run(client.links(**query))
    except TracesUnavailable as e:
        raise click.ClickException(printable(e)) from e
    if output == "json":
        click.echo(printable_json({"links": found}))
    elif not found:
        click.echo("no links fit", err=True)
    else:
        print_table(found, wide=output == "wide")


async def _watch(client: "TracesClient", query: Mapping[str, str], output: str) -> None:
    """What there is, then what comes, oldest first. A link is told once, and again when it ends."""
    told: dict[tuple[object, object], object] = {}
    first = True
    while True:
        found = await client.links(**{**query, "limit": "1000"})
        new = [
            x
            for x in reversed(found)
            if told.get((x.get("trace_id"), x.get("span_id"))) != _shape(x)
        ]
        told = {(x.get("trace_id"), x.get("span_id")): _shape(x) for x in found}
        if first:
            new = new[-int(query["limit"]) :]
        for item in new:
            if output == "json":
                click.echo(json.dumps(item))
        if new and output != "json":
            print_table(new, wide=output == "wide", headers=first)
        first = False
        await asyncio.sleep(_WATCH_EVERY_S)


def _shape(item: Item) -> object:
    """What makes a link worth telling again: it has ended, or its other side has spoken."""
    return item.get("open"), str(item.get("sides")), item.get("verdict")


def print_table(found: Sequence[Item], *, wide: bool, headers: bool = True) -> None:
    """One row per link on standard output; on a terminal narrower than that, one short line, unless
    `wide`. Whatever a cell says is text: no markup, no escapes."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", show_header=headers)
    names = ["SOURCE", "DESTINATION", "ASKED FOR", "SECURITY", "VERDICT", "BYTES", "TOOK", "AGE"]
    if wide:
        names += ["POLICY", "CHOICE", "CLOSED BY", "SIDES"]
    for header in [*names, "TRACE"]:
        table.add_column(header, no_wrap=True)
    now = utcnow()
    for item in found:
        table.add_row(
            *(Text(cell, style=style) for cell, style in row(item, now=now, wide=wide)),
        )
    console = Console(markup=False)
    natural = Measurement.get(console, console.options.update(width=_WIDEST), table).maximum
    if not wide and sys.stdout.isatty() and natural > console.width:
        console.print(compact(found, now=now, headers=headers), soft_wrap=True)
        if headers:
            click.echo("(-o wide has identities, sizes and traces)", err=True)
        return
    # Never narrower than its cells: rich would break them in the middle of a word.
    Console(width=natural, markup=False).print(table)


def compact(found: Sequence[Item], *, now: dt.datetime, headers: bool) -> "Text":
    """One line per link: when, from whom to whom, how and why; every cell whole, whatever the width."""
    from rich.cells import cell_len
    from rich.text import Text

    lines = [[(name, "bold") for name in ("AGE", "LINK", "SECURITY", "VERDICT")]] if headers else []
    for item in found:
        source, destination, asked, security, verdict, _, _, age, _ = row(item, now=now, wide=False)
        near, far = source[0].partition("\n")[0], destination[0].partition("\n")[0]
        end = item.get("destination")
        if isinstance(end, dict) and end.get("pod") and end.get("port") is not None:
            far = f"{far}:{printable(end.get('port'))}"
        to = asked[0] if far == "?" else far
        lines.append([age, (f"{near} -> {to}", ""), security, verdict])
    widths = [max(cell_len(line[at][0]) for line in lines) for at in range(3)]
    told = Text()
    for number, line in enumerate(lines):
        told.append("\n" if number else "")
        for (cell, style), width in zip(line, [*widths, 0], strict=True):
            told.append(cell, style)
            told.append(" " * (width - cell_len(cell) + 1) if width else "")
    return told


def row(item: Item, *, now: dt.datetime, wide: bool) -> list[tuple[str, str]]:
    """The cells of one link and the style of each."""
    verdict, security = printable(item.get("verdict")), printable(item.get("security"))
    reason = printable(item.get("reason"))
    if item.get("disagreements"):
        reason = f"{reason}; sides disagree" if reason else "sides disagree"
    style = _SECURITY_STYLE.get(security, "")
    if security == "none" and item.get("reason") == "policy_denied" and item.get("proved") is True:
        security = "none (mtls)"
    cells = [
        (_end(item.get("source"), wide=wide), ""),
        (_end(item.get("destination"), wide=wide), ""),
        (_asked(item.get("asked")), ""),
        (security, style),
        (f"{verdict} ({reason})" if reason else verdict, _VERDICT_STYLE.get(verdict, "")),
        (f"{_size(item.get('bytes_sent'))}/{_size(item.get('bytes_received'))}", ""),
        (_took(item.get("duration_ms")) + (" so far" if item.get("open") is True else ""), ""),
        (_age(item.get("start"), now), ""),
    ]
    if wide:
        policy = "/".join(filter(None, (printable(item.get(k)) for k in ("policy", "rule"))))
        raw_sides = item.get("sides")
        sides = raw_sides if isinstance(raw_sides, list) else []
        cells += [
            (policy, ""),
            (printable(item.get("endpoint_choice")), ""),
            (printable(item.get("close")), ""),
            (printable("+".join(str(side) for side in sides)), ""),
        ]
    return [*cells, (printable(item.get("trace_id")), "dim")]


def _end(raw: object, *, wide: bool) -> str:
    """One end of a link: pod and identity; the address of a pod that nobody knows by name."""
    end = raw if isinstance(raw, dict) else {}
    address = printable(end.get("address"))
    if address and end.get("port") is not None:
        address = f"[{address}]" if ":" in address else address
        address += f":{printable(end.get('port'))}"
    pod = printable(end.get("pod"))
    identity = printable(end.get("identity")) or "no identity"
    if wide:
        return " ".join(filter(None, (pod, address, identity)))
    return f"{pod or address or '?'}\n{identity}"


def _asked(raw: object) -> str:
    asked = raw if isinstance(raw, dict) else {}
    name = printable(asked.get("service") or asked.get("address"))
    return f"{name}:{printable(asked.get('port'))}" if asked.get("port") else name


def _size(raw: object) -> str:
    number = float(raw) if isinstance(raw, int | float) else 0.0
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f}{unit}" if unit == "B" else f"{number:.1f}{unit}"
        number /= 1024
    return f"{number:.1f}TiB"


def _took(raw: object) -> str:
    if not isinstance(raw, int | float):
        return "?"
    return f"{raw:.1f}ms" if raw < 1000 else f"{raw / 1000:.1f}s"


def _age(raw: object, now: dt.datetime) -> str:
    try:
        seconds = int((now - dt.datetime.fromisoformat(str(raw))).total_seconds())
    except (ValueError, TypeError):
        return "?"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{max(0, seconds)}s"
