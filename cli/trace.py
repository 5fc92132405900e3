"""`podlink trace <id>`: one link, or whatever shares its trace, as a tree in time."""

import asyncio
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from cli.terminal import printable, printable_json

if TYPE_CHECKING:
    from rich.tree import Tree

_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_BAR = 32
_MAX_DEPTH = 16
_PIPED_WIDTH = 200

Item = Mapping[str, Any]

_DETAILS = (
    ("from", ("podlink.source.pod", "podlink.source.identity", "client.address", "client.port")),
    (
        "to",
        (
            "podlink.destination.pod",
            "podlink.destination.identity",
            "podlink.destination.address",
            "podlink.destination.port",
        ),
    ),
    ("asked for", ("podlink.service", "server.address", "server.port")),
    (
        "endpoint",
        ("podlink.endpoint.choice", "podlink.attempts", "podlink.pooled", "podlink.direct"),
    ),
    ("tls", ("tls.protocol.version", "tls.cipher", "tls.next_protocol")),
    (
        "peer's leaf",
        (
            "podlink.certificate.serial",
            "tls.server.not_after",
            "tls.client.not_after",
            "tls.server.hash.sha256",
            "tls.client.hash.sha256",
        ),
    ),
    ("policy", ("podlink.policy", "podlink.rule")),
    ("because", ("podlink.reason", "error.message")),
    ("bytes", ("podlink.bytes.sent", "podlink.bytes.received")),
    ("closed by", ("podlink.close",)),
)
"""Which attributes a reader sees of each span, in which line, in which order."""
_NAMED = {
    "podlink.attempts": "attempts",
    "podlink.pooled": "pooled",
    "podlink.direct": "direct",
    "podlink.bytes.sent": "sent",
    "podlink.bytes.received": "received",
    "podlink.rule": "rule",
    "tls.server.not_after": "until",
    "tls.client.not_after": "until",
    "tls.server.hash.sha256": "sha256",
    "tls.client.hash.sha256": "sha256",
    "podlink.certificate.serial": "serial",
    "client.port": "port",
    "podlink.destination.port": "port",
    "server.port": "port",
}
_STYLE = {"denied": "bold red", "failed": "red", "audited": "yellow", "allowed": "green"}


@click.command()
@click.argument("trace_id")
@click.option(
    "-o", "--output", type=click.Choice(("tree", "json")), default="tree", show_default=True
)
@click.option(
    "--kubeconfig", type=click.Path(), help="As kubectl: else $KUBECONFIG, ~/.kube/config."
)
@click.option("--context", help="The kubeconfig's context to use.")
def trace(trace_id: str, output: str, kubeconfig: str | None, context: str | None) -> None:
    """Show one trace: both sides of the link, identities, certificates and timing."""
    from cli.traces_client import TracesClient, TracesUnavailable

    trace_id = trace_id.lower()
    if not _TRACE_ID.fullmatch(trace_id):
        raise click.BadParameter("a trace id is 32 hex digits, as `podlink links` prints them")
    client = TracesClient(kubeconfig=kubeconfig, context=context)
    try:
        spans = asyncio.run(client.trace(trace_id))
    except TracesUnavailable as e:
        raise click.ClickException(printable(e)) from e
    if output == "json":
        click.echo(printable_json({"spans": spans}))
    else:
        print_tree(trace_id, spans)


def print_tree(trace_id: str, spans: Sequence[Item]) -> None:
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    begin = min((_ns(span, "start_unix_ns") for span in spans), default=0)
    end = max((_ns(span, "end_unix_ns") for span in spans), default=0)
    start = printable(spans[0].get("start")) if spans else ""
    count = f"{len(spans)} span{'' if len(spans) == 1 else 's'}"
    head = f"trace {trace_id}  {start}  {(end - begin) / 1e6:.1f} ms  {count}"
    tree = Tree(Text(head, style="bold"), guide_style="dim")
    branches: list[Tree] = [tree]
    for depth, span, parent in in_tree_order(spans):
        del branches[depth + 1 :]
        branches.append(_add(branches[depth], span, parent, begin, end))
    console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, markup=False)
    console.print(tree)


def _add(branch: "Tree", span: Item, parent: Item | None, begin: int, end: int) -> "Tree":
    from rich.text import Text

    attributes = _mapping(span.get("attributes"))
    resource = _mapping(span.get("resource"))
    verdict = printable(attributes.get("podlink.verdict"))
    label = Text()
    label.append(bar(_ns(span, "start_unix_ns"), _ns(span, "end_unix_ns"), begin, end), "cyan")
    label.append(f" {printable(span.get('duration_ms'))} ms  ")
    label.append(printable(span.get("name")), "bold")
    label.append(f" {printable(attributes.get('podlink.direction') or span.get('kind'))}")
    said_by = (resource.get("k8s.namespace.name"), resource.get("k8s.pod.name"))
    label.append(f"  seen by {'/'.join(printable(part) or '?' for part in said_by)}  ", "dim")
    label.append(f"{printable(attributes.get('podlink.security'))} ")
    label.append(verdict, _STYLE.get(verdict, ""))
    for line in details(span, parent):
        label.append(f"\n{line}", "dim")
    return branch.add(label)


def details(span: Item, parent: Item | None) -> list[str]:
    """The lines below a span, each safe to print."""
    attributes = _mapping(span.get("attributes"))
    lines = []
    for title, names in _DETAILS:
        values = [
            " ".join(filter(None, (_NAMED.get(name), _plain(attributes[name]))))
            for name in names
            if attributes.get(name) is not None
        ]
        if values:
            lines.append(f"  {title:<13}{'  '.join(values)}")
    node = _mapping(span.get("resource")).get("k8s.node.name")
    if node:
        lines.append(f"  {'node':<13}{printable(node)}")
    raw_links = span.get("links")
    for link in raw_links if isinstance(raw_links, list) else []:
        other = printable(_mapping(link).get("trace_id"))
        claimed = _mapping(_mapping(link).get("attributes")).get("podlink.claimed") is True
        lines.append(f"  {'linked to':<13}trace {other}{' (claimed, not verified)' * claimed}")
    if parent is not None and _ns(span, "start_unix_ns") < _ns(parent, "start_unix_ns"):
        behind = (_ns(parent, "start_unix_ns") - _ns(span, "start_unix_ns")) / 1e6
        lines.append(f"  {'clocks':<13}differ: this side began {behind:.1f} ms before its parent")
    return lines


def in_tree_order(spans: Sequence[Item]) -> Iterator[tuple[int, Item, Item | None]]:
    """(depth, span, parent), parents first. A span whose parent is unknown is a root; so is one of
    a ring that somebody forged. Depth is held to what a terminal can show."""
    by_id = {str(span.get("span_id")): span for span in spans}
    children: dict[str, list[Item]] = {}
    roots = []
    for span in sorted(spans, key=lambda s: _ns(s, "start_unix_ns")):
        parent_id = str(span.get("parent_span_id") or "")
        if parent_id in by_id and by_id[parent_id] is not span:
            children.setdefault(parent_id, []).append(span)
        else:
            roots.append(span)
    shown: set[int] = set()
    for start in (*roots, *spans):
        stack: list[tuple[int, Item, Item | None]] = [(0, start, None)]
        while stack:
            depth, span, parent = stack.pop()
            if id(span) in shown:
                continue
            shown.add(id(span))
            yield depth, span, parent
            below = children.get(str(span.get("span_id")), ())
            stack.extend((min(depth + 1, _MAX_DEPTH), child, span) for child in reversed(below))


def bar(start: int, stop: int, begin: int, end: int) -> str:
    """Where a span lies within the trace, in _BAR characters."""
    whole = max(1, end - begin)
    first = min(_BAR - 1, max(0, (start - begin) * _BAR // whole))
    last = min(_BAR, max(first + 1, -(-(stop - begin) * _BAR // whole)))
    return "·" * first + "█" * (last - first) + "·" * (_BAR - last)


def _plain(value: object) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else printable(value)


def _ns(span: Item, name: str) -> int:
    raw = str(span.get(name, ""))
    return int(raw) if raw.isascii() and raw.isdigit() and len(raw) <= 20 else 0


def _mapping(raw: object) -> Mapping[str, Any]:
    return raw if isinstance(raw, dict) else {}
