"""Answers for the review page and the report, from roll-ups and small tables: none of them reads the
spans one by one, so none grows with how many there are.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from traces.edges import Edge, End, State, edges_of
from traces.rollups import FINE_S, traffic

MAX_CERTIFICATES: Final = 5000
_BARS: Final = 96
_EVENTS: Final = 500

EdgeName = tuple[End, End, int]
"""What makes an edge the same edge: source, destination, port."""


@dataclass(frozen=True, slots=True)
class FirstSeen:
    """When an edge was seen for the first time ever, and the trace that showed it."""

    first_ns: int
    first_trace: str


@dataclass(frozen=True, slots=True)
class Bar:
    """Links of one stretch of time, by how they went."""

    start_s: int
    end_s: int
    links: dict[State, int]


@dataclass(frozen=True, slots=True)
class Leaf:
    """One certificate as the CA told of it. `sender` is who told: empty if nobody proved to be."""

    event: str
    at_ns: int
    serial: str
    identity: str
    pod: str
    pod_uid: str
    node: str
    issuer: str
    not_before_ns: int
    not_after_ns: int
    reason: str
    sender: str

    def state(self, now_ns: int) -> str:
        """`valid`; `due` when more than three quarters of its life are over, and renewal comes at
        half; `expired`."""
        if now_ns >= self.not_after_ns:
            return "expired"
        life = self.not_after_ns - self.not_before_ns
        return "due" if (now_ns - self.not_before_ns) * 4 > life * 3 else "valid"


def edges(
    db: sqlite3.Connection,
    since_s: int,
    until_s: int,
    *,
    namespace: str = "",
    identity: str = "",
    by_destination: bool = False,
) -> list[Edge]:
    """Edges with traffic in [since, until), worst first. `outside` is the namespace of what has
    none. `by_destination`: as the destinations' own sides told (`rollups.traffic`)."""
    where, values = ["true"], list[object]()
    if namespace:
        where.append("(source_namespace = ? OR destination_namespace = ?)")
        values += ["" if namespace == "outside" else namespace] * 2
    if identity:
        where.append(
            "(source = ? OR destination = ? OR destination_kind = 'pod' AND destination IN "
            "(SELECT pod FROM certificates WHERE event = 'issued' AND identity = ?))"
        )
        values += [identity] * 3
    found = traffic(
        db, since_s, until_s, " AND ".join(where), tuple(values), by_destination=by_destination
    )
    identity_of = _Identities(db)
    return edges_of(
        t
        if t.destination_kind != "pod" or not (known := identity_of[t.destination])
        else replace(t, destination_kind="identity", destination=known)
        for t in found
    )


class _Identities(dict[str, str]):
    """Of each pod the identity that the CA issued its last leaf to; empty if it issued none.

    A link that went to a pod without mutual TLS knows its name only: with this it stands beside those
    that went to the same identity under mutual TLS, and what both make of the edge is seen as one. Of a
    source it is not asked: who has not shown a leaf is nobody yet, whatever its address says.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        super().__init__()
        self._db = db

    def __missing__(self, pod: str) -> str:
        row = self._db.execute(
            "SELECT identity FROM certificates WHERE pod = ? AND event = 'issued' "
            "ORDER BY at_ns DESC LIMIT 1",
            (pod,),
        ).fetchone()
        self[pod] = found = row[0] if row is not None else ""
        return found


_FIRST: Final = (
    "SELECT source_kind, source, source_namespace, destination_kind, destination, "
    "destination_namespace, port, min(first_ns) AS first_ns, first_trace FROM edges "
)


def first_seen(db: sqlite3.Connection, since_ns: int, until_ns: int) -> dict[EdgeName, FirstSeen]:
    """Edges that nobody had seen before `since`. A Service asked for is no part of an edge's name, nor
    is whether the destination showed its identity (see `edges`)."""
    identity_of, found = _Identities(db), dict[EdgeName, FirstSeen]()
    by_pod = dict[EdgeName, FirstSeen]()
    where = "WHERE destination_kind = 'pod' GROUP BY 1, 2, 3, 4, 5, 6, 7"
    for row in db.execute(_FIRST + where):
        if known := identity_of[row[4]]:
            _keep_first(by_pod, row, End("identity", known, row[5]))
    having = "GROUP BY 1, 2, 3, 4, 5, 6, 7 HAVING min(first_ns) >= ? AND min(first_ns) < ?"
    for row in db.execute(_FIRST + having, (since_ns, until_ns)):
        to = End(*row[3:6])
        if to.kind == "pod" and (known := identity_of[to.name]):
            to = End("identity", known, to.namespace)
            seen = db.execute(
                "SELECT 1 FROM edges WHERE source = ? AND source_kind = ? AND destination = ? AND "
                "port = ? AND first_ns < ? LIMIT 1",
                (row[1], row[0], known, row[6], since_ns),
            ).fetchone()
            if seen is not None:
                continue
        _keep_first(found, row, to)
    return {
        name: first
        for name, first in found.items()
        if name not in by_pod or by_pod[name].first_ns >= since_ns
    }


def _keep_first(found: dict[EdgeName, FirstSeen], row: sqlite3.Row, to: End) -> None:
    name, first = (End(*row[0:3]), to, row[6]), FirstSeen(row[7], row[8].hex())
    found[name] = min(first, found.get(name, first), key=lambda one: one.first_ns)


def recorded_since(db: sqlite3.Connection) -> int | None:
    """Unix nanoseconds of the first edge ever seen; None in an empty store."""
    row = db.execute("SELECT min(first_ns) FROM edges").fetchone()
    return None if row is None or row[0] is None else int(row[0])


def namespaces(db: sqlite3.Connection) -> list[str]:
    """Every namespace that any edge touches, sorted; at most 1000."""
    rows = db.execute(
        "SELECT source_namespace AS n FROM edges UNION SELECT destination_namespace FROM edges "
        "ORDER BY n LIMIT 1000"
    )
    return [row[0] for row in rows if row[0]]


def timeline(
    db: sqlite3.Connection, since_s: int, until_s: int, *, namespace: str = ""
) -> list[Bar]:
    """Links over time, in up to about a hundred bars of equal length."""
    finest = 60 if until_s - since_s <= 2 * FINE_S else 3600
    length = max(finest, -(-(until_s - since_s) // _BARS // finest) * finest)
    start = since_s // length * length
    step = 86400 if length % 86400 == 0 else 3600 if length % 3600 == 0 else 60
    only = "" if not namespace else " AND (source_namespace = ? OR destination_namespace = ?)"
    values = [] if not namespace else ["" if namespace == "outside" else namespace] * 2
    edges = " JOIN edges ON edges.id = edge" if namespace else ""
    rows = db.execute(
        # Told by both sides, counted once: per bar, as per edge, by whichever side told more.
        "SELECT bar, security, verdict, max(o, i) FROM ("  # noqa: S608 - fixed text
        "SELECT (bucket_s - ?) / ? AS bar, security, verdict, sum(out_links) AS o, "
        f"sum(in_links) AS i FROM rollups{edges} JOIN ways ON ways.id = way "
        f"WHERE step_s = ? AND bucket_s >= ? AND bucket_s < ?{only} GROUP BY 1, 2, 3)",
        (start, length, step, start, until_s, *values),
    )
    found: dict[int, dict[State, int]] = defaultdict(lambda: defaultdict(int))
    for bar, security, verdict, links in rows:
        found[bar][_state(security, verdict)] += links
    count = -(-(until_s - start) // length)
    return [
        Bar(start + i * length, start + (i + 1) * length, dict(found.get(i, {})))
        for i in range(count)
    ]


def _state(security: str, verdict: str) -> State:
    if verdict == "denied":
        return "denied"
    if verdict == "failed":
        return "failed"
    return {"plaintext": "plaintext", "self": "self", "mtls": "mtls"}.get(security, "failed")  # type: ignore[return-value]


_LEAF: Final = (
    "event, at_ns, serial, identity, pod, pod_uid, node, issuer, not_before_ns, not_after_ns, "
    "reason, sender"
)


def newest_leaves(db: sqlite3.Connection, ended_after_ns: int) -> list[Leaf]:
    """Of each pod the leaf that was issued last, if it ends after this; soonest to end first."""
    rows = db.execute(
        f"SELECT {_LEAF}, max(at_ns) FROM certificates INDEXED BY certificates_by_end "  # noqa: S608 - fixed text
        "WHERE event = 'issued' AND not_after_ns > ? GROUP BY pod, pod_uid, identity "
        "ORDER BY not_after_ns LIMIT ?",
        (ended_after_ns, MAX_CERTIFICATES),
    )
    return [Leaf(*row[:12]) for row in rows]


def refusals(db: sqlite3.Connection, since_ns: int, until_ns: int) -> list[Leaf]:
    """What the CA refused or banned in this time, newest first, at most 500."""
    rows = db.execute(
        f"SELECT {_LEAF} FROM certificates INDEXED BY certificates_not_issued "  # noqa: S608 - fixed text
        "WHERE event <> 'issued' AND at_ns >= ? AND at_ns < ? ORDER BY at_ns DESC LIMIT ?",
        (since_ns, until_ns, _EVENTS),
    )
    return [Leaf(*row) for row in rows]


def leaves_by_serial(db: sqlite3.Connection, serials: Iterable[str]) -> dict[str, Leaf]:
    """Serial (lower-case hex) to what the CA told of its issue."""
    found: dict[str, Leaf] = {}
    for serial in set(serials):
        row = db.execute(
            f"SELECT {_LEAF} FROM certificates WHERE serial = ? AND event = 'issued' "  # noqa: S608 - fixed text
            "ORDER BY at_ns LIMIT 1",
            (serial,),
        ).fetchone()
        if row is not None:
            found[serial] = Leaf(*row)
    return found
