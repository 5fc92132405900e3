"""The answer of each view, from the store. A question is asked in a thread, with a deadline."""

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

from policy.linkpolicy import PolicyInvalid
from traces import views
from traces.edges import Edge, State, coverage
from traces.links import Item
from traces.page.asked import Asked, QueryMalformed
from traces.page.decisions import decisions, without_sidecar
from traces.page.graph import graph
from traces.page.packed import unpack
from traces.page.render import edge_row, iso_second, way_row
from traces.page.replay import read_policies, replay
from traces.page.waterfall import waterfall
from traces.query import read_trace

if TYPE_CHECKING:
    from traces.policies import Known

SHOWN: Final = 500
"""Rows in a table of the page; an export has all."""
_HOUR_NS: Final = 3600 * 10**9


@dataclass(frozen=True, slots=True)
class Answer:
    """What a template is filled with, and the same as rows for an export."""

    context: dict[str, Any]
    rows: list[dict[str, object]] = field(default_factory=list)
    columns: tuple[str, ...] = ()
    about: dict[str, object] = field(default_factory=dict)


Question = Callable[[sqlite3.Connection, Asked], Answer]

_EDGE_COLUMNS: Final = (
    "source", "source_kind", "source_namespace", "destination", "destination_kind",
    "destination_namespace", "services", "port", "state", "mtls_percent", "links", "links_mtls",
    "links_plaintext", "links_denied", "links_failed", "links_self", "bytes", "first", "last",
    "last_trace",
)  # fmt: skip
_WAY_COLUMNS: Final = (
    "source", "source_namespace", "destination", "destination_namespace", "services", "port",
    "security", "verdict", "reasons", "policies", "nearest_rules", "links", "bytes_sent",
    "bytes_received", "first", "last", "last_trace",
)  # fmt: skip
_LEAF_COLUMNS: Final = (
    "event", "state", "identity", "pod", "pod_uid", "node", "serial", "issuer", "at", "not_before",
    "not_after", "reason", "told_by",
)  # fmt: skip


def _edges(db: sqlite3.Connection, asked: Asked, *, by_destination: bool = False) -> list[Edge]:
    found = views.edges(
        db,
        asked.since_s,
        asked.until_s,
        namespace=asked.namespace,
        identity=asked.identity,
        by_destination=by_destination,
    )
    return [edge for edge in found if asked.fits(edge)]


def overview(db: sqlite3.Connection, asked: Asked) -> Answer:
    edges = _edges(db, asked)
    since_ns, until_ns = asked.since_s * 10**9, asked.until_s * 10**9
    began_ns = views.recorded_since(db)
    # In the first hours of a store everything is new, and nothing is news.
    new = views.first_seen(db, since_ns, until_ns) if (began_ns or asked.now_ns) < since_ns else {}
    leaves = [
        leaf
        for leaf in views.newest_leaves(db, asked.now_ns - _HOUR_NS)
        if not asked.namespace or f"/ns/{asked.namespace}/" in leaf.identity
    ]
    refused = views.refusals(db, since_ns, until_ns)
    found = decisions(edges, new, leaves, refused, asked.now_ns)
    alive = [leaf for leaf in leaves if leaf.not_after_ns > asked.now_ns]
    return Answer(
        {
            "coverage": coverage(edges),
            "edges": edges,
            "plaintext_edges": sum(1 for e in edges if e.count("plaintext")),
            "denied_edges": sum(1 for e in edges if e.count("denied")),
            "without_sidecar": without_sidecar(edges),
            "new_count": len({(e.source, e.destination, e.port) for e in edges} & set(new)),
            "new_known": bool(new) or (began_ns or asked.now_ns) < since_ns,
            "decisions": found[:SHOWN],
            "left_out": max(0, len(found) - SHOWN),
            "leaves": alive,
            "shortest_ns": min((leaf.not_after_ns for leaf in alive), default=None),
            "timeline": views.timeline(db, asked.since_s, asked.until_s, namespace=asked.namespace),
            "began_ns": began_ns,
        },
        [
            {
                "kind": item.kind,
                "source": item.edge.source.name if item.edge else item.end.name if item.end else "",
                "destination": item.edge.destination.name if item.edge else "",
                "port": item.edge.port if item.edge else None,
                "why": item.why,
                "reasons": list(item.reasons),
                "count": item.count,
                "first": iso_second(item.first_ns),
                "last": iso_second(item.last_ns),
                "trace": item.trace,
            }
            for item in found
        ],
        (
            "kind",
            "source",
            "destination",
            "port",
            "why",
            "reasons",
            "count",
            "first",
            "last",
            "trace",
        ),
    )


def graph_view(db: sqlite3.Connection, asked: Asked) -> Answer:
    edges = _edges(db, asked)
    opened = frozenset(filter(None, asked.raw.get("open", "").split(",")[:200]))
    drawn = graph(edges, opened=opened, expand=asked.raw.get("expand") == "all")
    return Answer(
        {
            "edges": edges[:SHOWN],
            "left_out": max(0, len(edges) - SHOWN),
            "coverage": coverage(edges),
            "collapsed": drawn["collapsed"],
            "expanded": asked.raw.get("expand") == "all",
            "graph": drawn,
            "ends": len({end for e in edges for end in (e.source, e.destination)}),
        },
        [edge_row(edge) for edge in edges],
        _EDGE_COLUMNS,
        {"graph": drawn},
    )


def _ways(state: State) -> Question:
    def question(db: sqlite3.Connection, asked: Asked) -> Answer:
        edges = _edges(db, asked)
        found = [(e, way) for e in edges for way in e.ways if way.state == state]
        found.sort(key=lambda pair: (-pair[1].count, -pair[1].last_ns))
        by_reason: dict[str, list[int]] = {}
        for _, way in found:
            for reason in way.reasons or ("",):
                counted = by_reason.setdefault(reason, [0, 0])
                counted[0] += 1
                counted[1] += way.count
        return Answer(
            {
                "found": found[:SHOWN],
                "left_out": max(0, len(found) - SHOWN),
                "links": sum(way.count for _, way in found),
                "coverage": coverage(edges),
                "by_reason": sorted(by_reason.items(), key=lambda pair: -pair[1][1]),
                "edge_count": len(found),
                "all_edges": len(edges),
            },
            [way_row(edge, way) for edge, way in found],
            _WAY_COLUMNS,
        )

    return question


def new_edges(db: sqlite3.Connection, asked: Asked) -> Answer:
    seen = views.first_seen(db, asked.since_s * 10**9, asked.until_s * 10**9)
    edges = _edges(db, asked)
    found = [
        (edge, seen[edge.source, edge.destination, edge.port])
        for edge in edges
        if (edge.source, edge.destination, edge.port) in seen
    ]
    found.sort(key=lambda pair: -pair[1].first_ns)
    return Answer(
        {
            "found": found[:SHOWN],
            "left_out": max(0, len(found) - SHOWN),
            "new_count": len(found),
            "all_edges": len(edges),
            "began_ns": views.recorded_since(db),
        },
        [
            {**edge_row(edge), "first_seen": iso_second(s.first_ns), "first_trace": s.first_trace}
            for edge, s in found
        ],
        ("first_seen", "first_trace", *_EDGE_COLUMNS),
    )


def certificates(db: sqlite3.Connection, asked: Asked) -> Answer:
    leaves = [
        leaf
        for leaf in views.newest_leaves(db, asked.now_ns - 24 * _HOUR_NS)
        if (not asked.namespace or f"/ns/{asked.namespace}/" in leaf.identity)
        and (not asked.identity or leaf.identity == asked.identity)
        and asked.text.casefold() in f"{leaf.identity} {leaf.pod} {leaf.serial}".casefold()
    ]
    order = {"expired": 0, "due": 1, "valid": 2}
    leaves.sort(key=lambda leaf: (order[leaf.state(asked.now_ns)], leaf.not_after_ns))
    refused = views.refusals(db, asked.since_s * 10**9, asked.until_s * 10**9)
    issuers: dict[str, int] = {}
    for leaf in leaves:
        if leaf.not_after_ns > asked.now_ns:
            issuers[leaf.issuer] = issuers.get(leaf.issuer, 0) + 1
    return Answer(
        {
            "leaves": leaves[:SHOWN],
            "left_out": max(0, len(leaves) - SHOWN),
            "refused": refused,
            "issuers": sorted(issuers.items()),
            "counts": {s: sum(1 for x in leaves if x.state(asked.now_ns) == s) for s in order},
        },
        [
            {
                "event": leaf.event,
                "state": leaf.state(asked.now_ns) if leaf.event == "issued" else leaf.event,
                "identity": leaf.identity,
                "pod": leaf.pod,
                "pod_uid": leaf.pod_uid,
                "node": leaf.node,
                "serial": leaf.serial,
                "issuer": leaf.issuer,
                "at": iso_second(leaf.at_ns),
                "not_before": iso_second(leaf.not_before_ns),
                "not_after": iso_second(leaf.not_after_ns),
                "reason": leaf.reason,
                "told_by": leaf.sender,
            }
            for leaf in [*leaves, *refused]
        ],
        _LEAF_COLUMNS,
    )


def trace(db: sqlite3.Connection, asked: Asked) -> Answer:
    trace_id = asked.raw.get("id", "").lower()
    if len(trace_id) != 32 or set(trace_id) - set("0123456789abcdef"):
        raise QueryMalformed("id must be a trace id: 32 hex digits")
    found = read_trace(db, bytes.fromhex(trace_id))
    spans = found.spans
    told: dict[str, list[Item]] = {}
    for span in spans:
        if span["name"] == "link" and isinstance(a := span["attributes"], dict):
            key = f"{span['sender']} {a.get('podlink.direction')} {span['span_id']}"
            told.setdefault(key, []).append(span)
    sides = [
        {
            "link": link,
            **{
                direction: [
                    span
                    for key in cast(list[str], link["told_by"])
                    if f" {direction} " in key
                    for span in told.get(key, ())
                ]
                for direction in ("outbound", "inbound")
            },
        }
        for link in found.links
    ]
    serials = {
        str(a["podlink.certificate.serial"])
        for s in spans
        if isinstance(a := s["attributes"], dict) and "podlink.certificate.serial" in a
    }
    return Answer(
        {
            "trace_id": trace_id,
            "spans": spans,
            "left_out": found.left_out,
            "sides": sides,
            "issued": views.leaves_by_serial(db, serials),
            "rows": waterfall(spans),
        },
        [dict(span) for span in spans],
        ("trace_id", "span_id", "parent_span_id", "name", "kind", "start", "duration_ms", "status"),
    )


def replay_view(db: sqlite3.Connection, asked: Asked, known: "Known | None" = None) -> Answer:
    """`known` is what is in force: to pick from, and to judge beside what was pasted."""
    packed, pick = asked.raw.get("policy", ""), asked.raw.get("pick", "")
    text = asked.raw.get("text", "") or (unpack(packed) if packed else "")
    choices = {one.name: one for one in known.policies} if known is not None else {}
    if not text and pick in choices:
        text = choices[pick].text
    chosen = asked.raw["pods"].split("\n") if "pods" in asked.raw else None
    result, said = None, ""
    if text.strip():
        try:
            cluster = known.cluster if known is not None else None
            # A policy is the destination's: what its own side let in or refused is what it would judge.
            seen = _edges(db, asked, by_destination=True)
            result = replay(read_policies(text), seen, chosen, cluster)
        except PolicyInvalid as e:
            said = str(e)
    found = result.found if result is not None else ()
    return Answer(
        {
            "text": text,
            "packed": packed,
            "said": said,
            "pick": pick,
            "choices": [(one.name, one.version.state) for one in choices.values()],
            "known": known is not None,
            "result": result,
            "chosen": chosen,
            "shown": found[:SHOWN],
            "cut_edges": len({id(item.edge) for item in found if item.fate == "cut"}),
        },
        [
            {"fate": item.fate, "because": item.why, **way_row(item.edge, item.way)}
            for item in found
        ],
        ("fate", "because", *_WAY_COLUMNS),
        {"unused_rules": list(result.unused) if result is not None else [], "error": said},
    )


QUESTIONS: Final[Mapping[str, Question]] = {
    "overview": overview,
    "graph": graph_view,
    "plaintext": _ways("plaintext"),
    "denied": _ways("denied"),
    "failed": _ways("failed"),
    "new": new_edges,
    "certificates": certificates,
    "trace": trace,
    "replay": replay_view,
}
