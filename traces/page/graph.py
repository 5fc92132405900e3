"""The graph as data: nodes with their places, and edges with their marks. Pure.

What was carried and what was denied between the same two ends are two lines, since both are true.
More than MANY ends are drawn as their namespaces; `open` namespaces show their ends all the same.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Final

from kit.printable import printable
from traces.edges import Edge, End, State, percent
from traces.page.layout import Node, positions

MANY: Final = 60
MOST_NODES: Final = 600
MOST_LINES: Final = 3000
"""More than that no screen shows; the table below the graph has all."""

Item = dict[str, object]


def graph(edges: Sequence[Edge], *, opened: Collection[str] = (), expand: bool = False) -> Item:
    """`nodes` (id, label, kind, box, count, x, y), `boxes`, `lines` (source, target, state, label),
    `collapsed` and `left_out`."""
    ends = {end for edge in edges for end in (edge.source, edge.destination)}
    collapse = len(ends) > MANY and not expand
    node_of: dict[End, tuple[str, str]] = {}
    for end in ends:
        if collapse and end.place not in opened:
            node_of[end] = ("namespace", end.place)
        else:
            node_of[end] = (end.kind, end.name)
    members: dict[tuple[str, str], set[End]] = defaultdict(set)
    for end, key in node_of.items():
        members[key].add(end)
    lines: dict[tuple[tuple[str, str], tuple[str, str], bool], list[Edge]] = defaultdict(list)
    for edge in edges:
        ways = {way.state == "denied" for way in edge.ways}
        for denied in ways:
            lines[node_of[edge.source], node_of[edge.destination], denied].append(edge)
    kept = sorted(members, key=lambda key: (key[0] != "namespace", key))[:MOST_NODES]
    number = {key: f"n{i}" for i, key in enumerate(kept)}
    drawn = [
        _line(f"e{i}", number[a], number[b], denied, found)
        for i, ((a, b, denied), found) in enumerate(sorted(lines.items(), key=lambda pair: pair[0]))
        if a in number and b in number
    ][:MOST_LINES]
    box = {key: _box(key, members[key]) for key in kept}
    places = positions(
        [Node(number[key], box[key]) for key in kept],
        ((str(line["source"]), str(line["target"])) for line in drawn),
    )
    nodes = [
        {
            "id": number[key],
            "kind": key[0],
            "name": printable(key[1]),
            "label": _label(key, members[key]),
            "box": "" if key[0] == "namespace" else box[key],
            "count": len(members[key]),
            "x": places[number[key]][0],
            "y": places[number[key]][1],
        }
        for key in kept
    ]
    return {
        "nodes": nodes,
        "boxes": sorted({str(node["box"]) for node in nodes} - {""}),
        "lines": drawn,
        "collapsed": collapse,
        "left_out": len(members) - len(kept),
    }


def _box(key: tuple[str, str], ends: Collection[End]) -> str:
    return "" if key[0] == "namespace" else printable(next(iter(ends)).place)


def _label(key: tuple[str, str], ends: Collection[End]) -> str:
    if key[0] == "namespace":
        count = len(ends)
        return f"{printable(key[1])}\n{count} {'end' if count == 1 else 'ends'}"
    end = next(iter(ends))
    label = printable(end.label)
    short = label.partition("/")[2] if end.namespace and "/" in label else label
    return short if len(short) <= 20 else short[:19] + "…"


def _line(line_id: str, source: str, target: str, denied: bool, edges: Sequence[Edge]) -> Item:
    if denied:
        count = sum(edge.count("denied") for edge in edges)
        return _as_line(line_id, source, target, "denied", f"✕ {short(count)}", edges)
    mtls = sum(edge.count("mtls") for edge in edges)
    plain = sum(edge.count("plaintext") for edge in edges)
    failed = sum(edge.count("failed") for edge in edges)
    own = sum(edge.count("self") for edge in edges)
    state: State
    if mtls and plain:
        state, label = "mixed", f"◐ {percent(mtls, mtls + plain)} % of {short(mtls + plain)}"
    elif plain:
        state, label = "plaintext", f"▲ {short(plain)}"
    elif mtls:
        state, label = "mtls", short(mtls)
    elif failed:
        state, label = "failed", f"! {short(failed)}"
    else:
        state, label = "self", f"○ {short(own)}"
    return _as_line(line_id, source, target, state, label, edges)


def _as_line(
    line_id: str, source: str, target: str, state: State, label: str, edges: Sequence[Edge]
) -> Item:
    ports = sorted({edge.port for edge in edges})
    said = ", ".join(str(port) for port in ports[:4]) + (", …" if len(ports) > 4 else "")
    return {
        "id": line_id,
        "source": source,
        "target": target,
        "state": state,
        "label": label,
        "ports": said,
    }


def short(count: int) -> str:
    """1234 as 1.2k."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)
