"""Rows into the tables, inside a transaction that the writer opens and ends.

Edges and ways get their numbers here, bounded: names come from whoever may send spans, and a flood of
ever new ones must cost a row called `other`, not the store. Roll-ups are added up in memory and
written once per transaction; a span that was kept before (a retry) counts nowhere twice.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterable
from typing import Final, Literal

from traces.blob import pack
from traces.rows import LINK, Certificate, EdgeKey, ResourceRows, SpanRow, WayKey
from traces.schema import SPAN_OVERHEAD

MAX_EDGES: Final = 100_000
"""Of all senders. Beyond it ends known by address only share the name `other`; beyond twice as many all
new ones do."""
MAX_WAYS: Final = 10_000
SHARES: Final = 20
"""One sender may be the first to tell of a twentieth of all edges and ways. Beyond that its own new ones
share the name `other`, so that it takes nobody else's room."""
_RESERVE: Final = 10
"""A sender that has used less than a tenth of its share gets its rows also when all room is taken."""
OTHER: Final = "other"
STEPS_S: Final = (60, 3600, 86400)
_REMEMBERED: Final = 20_000
_LATE_NS: Final = 3600 * 10**9
_EARLY_NS: Final = 60 * 10**9

_OTHER_EDGE = EdgeKey(OTHER, "", "", OTHER, "", "", "", 0)
_SPAN = (
    "INSERT OR IGNORE INTO spans (received_ns, trace_id, digest, span_id, parent_span_id, name, "
    "start_ns, end_ns, direction, edge, way, source_pod, destination_pod, is_ordinary, chain, "
    "sequence, resource, span, sender, size) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
)
_SUMS = ("out_links", "in_links", "out_opened", "in_opened")
_BYTES = ("out_sent", "out_received", "in_sent", "in_received")
_ROLLUP = (
    f"INSERT INTO rollups (step_s, bucket_s, edge, way, {', '.join(_SUMS + _BYTES)}, first_ns, "  # noqa: S608 - constants
    f"last_ns, last_trace) VALUES ({','.join('?' * 15)}) "
    "ON CONFLICT (step_s, bucket_s, edge, way) DO UPDATE SET "
    + ", ".join(f"{n} = {n} + excluded.{n}" for n in _SUMS)
    + ", "
    # Bytes are what the reporter says: held to what SQLite can add.
    + ", ".join(f"{n} = min({n} + excluded.{n}, {1 << 60})" for n in _BYTES)
    + ", first_ns = min(first_ns, excluded.first_ns), last_ns = max(last_ns, excluded.last_ns), "
    "last_trace = CASE WHEN excluded.last_ns >= last_ns THEN excluded.last_trace ELSE last_trace END"
)
_MAX_BYTES_OF_LINK: Final = 1 << 50


class _Sum:
    __slots__ = ("counts", "first_ns", "last_ns", "trace")

    def __init__(self, at_ns: int, trace: bytes) -> None:
        self.counts = [0] * 8
        self.first_ns = self.last_ns = at_ns
        self.trace = trace


class Inserter:
    """Belongs to the writer's thread. After a rollback call `forget`."""

    def __init__(self, db: sqlite3.Connection, max_edges: int = MAX_EDGES) -> None:
        self._db = db
        self._edges: dict[EdgeKey, int] = {}
        self._ways: dict[WayKey, int] = {}
        self._chains: dict[tuple[str, int], int] = {}
        self._resources: dict[bytes, int] = {}
        self._sums: dict[tuple[int, int, int], _Sum] = {}
        self._touched: dict[tuple[str, int], int] = {}
        self._senders: dict[str, int] = {}
        self._bytes: Counter[int] = Counter()
        self._edge_room, self._way_room = Room(max_edges), Room(MAX_WAYS)
        self.forget()

    def forget(self) -> None:
        """Nothing of the present transaction was kept, or somebody else has deleted."""
        for known in (
            self._edges,
            self._ways,
            self._chains,
            self._resources,
            self._sums,
            self._touched,
            self._senders,
            self._bytes,
        ):
            known.clear()
        self._edge_room.set(self._counts("edges"))
        self._way_room.set(self._counts("ways"))

    def insert(self, of: ResourceRows, received_ns: int) -> int:
        """Keep the spans of one resource; returns how many were new."""
        if not of.rows:
            return 0  # what is not believed leaves nothing behind
        sender = self._sender(of.sender)
        resource = self._resource(of, sender, received_ns)
        self._touched["resources", resource] = received_ns
        kept = 0
        for row in of.rows:
            kept += self._insert(row, of, sender, resource, received_ns)
        return kept

    def _insert(
        self, row: SpanRow, of: ResourceRows, sender: int, resource: int, received_ns: int
    ) -> int:
        edge = way = chain = None
        at_ns = row.end_ns
        if not received_ns - _LATE_NS <= at_ns <= received_ns + _EARLY_NS:
            at_ns = received_ns  # whoever's clock it is, it does not write history here
        if row.edge is not None and row.way is not None:
            edge = self._edge(row.edge, at_ns, row.trace_id, of.sender, sender)
            way = self._way(row.way, of.sender, sender)
        if row.chain:
            chain = self._chain(row.chain, resource, received_ns)
            self._touched["chains", chain] = received_ns
        kept = pack(row.span)
        size = len(kept) + SPAN_OVERHEAD
        cursor = self._db.execute(
            _SPAN,
            (
                received_ns,
                row.trace_id,
                row.digest,
                row.span_id,
                row.parent_span_id,
                row.name,
                row.start_ns,
                row.end_ns,
                row.direction or None,
                edge,
                way,
                row.source_pod or None,
                row.destination_pod or None,
                row.is_ordinary,
                chain,
                row.sequence if chain is not None else None,
                resource,
                kept,
                sender,
                size,
            ),
        )
        if cursor.rowcount != 1:
            return 0
        self._bytes[sender] += size
        if edge is not None and way is not None:
            self._add(row, edge, way, at_ns)
        if row.certificate is not None:
            self._certificate(int(cursor.lastrowid or 0), row.certificate, of.sender)
        return 1

    def _add(self, row: SpanRow, edge: int, way: int, at_ns: int) -> None:
        bucket = at_ns // 60_000_000_000 * 60
        found = self._sums.get((bucket, edge, way))
        if found is None:
            found = self._sums[bucket, edge, way] = _Sum(at_ns, row.trace_id)
        if at_ns >= found.last_ns:
            found.last_ns, found.trace = at_ns, row.trace_id
        elif at_ns < found.first_ns:
            found.first_ns = at_ns
        counts, inward = found.counts, row.direction == "inbound"
        if row.name == LINK:
            counts[1 if inward else 0] += 1
            counts[6 if inward else 4] += min(row.bytes_sent, _MAX_BYTES_OF_LINK)
            counts[7 if inward else 5] += min(row.bytes_received, _MAX_BYTES_OF_LINK)
        else:
            counts[3 if inward else 2] += 1

    def flush(self) -> None:
        """Write what was added up; before COMMIT."""
        for step_s in STEPS_S:
            self._db.executemany(
                _ROLLUP,
                [
                    (
                        step_s,
                        bucket // step_s * step_s,
                        edge,
                        way,
                        *found.counts,
                        found.first_ns,
                        found.last_ns,
                        found.trace,
                    )
                    for (bucket, edge, way), found in self._sums.items()
                ],
            )
        self._db.executemany(
            "UPDATE edges SET first_ns = min(first_ns, ?), last_ns = max(last_ns, ?) WHERE id = ?",
            [(f.first_ns, f.last_ns, edge) for (_, edge, _), f in self._sums.items()],
        )
        for (table, number), at_ns in self._touched.items():
            self._db.execute(f"UPDATE {table} SET last_ns = ? WHERE id = ?", (at_ns, number))  # noqa: S608
        self._db.executemany(
            "UPDATE senders SET bytes = bytes + ? WHERE id = ?",
            [(size, sender) for sender, size in self._bytes.items()],
        )
        self._sums.clear()
        self._touched.clear()
        self._bytes.clear()
        for known in (self._edges, self._ways, self._chains, self._resources, self._senders):
            if len(known) > _REMEMBERED:
                known.clear()

    # --- numbers for what repeats -----------------------------------------------------------

    def _sender(self, name: str) -> int:
        known = self._senders.get(name)
        if known is None:
            known = self._senders[name] = self._numbered(
                "SELECT id FROM senders WHERE name = ?",
                (name,),
                "INSERT INTO senders (name, bytes) VALUES (?, 0)",
                (name,),
            )[0]
        return known

    def _resource(self, of: ResourceRows, sender: int, received_ns: int) -> int:
        known = self._resources.get(of.digest)
        if known is None:
            values = (of.digest, of.resource, of.sender, received_ns)
            known, new = self._numbered(
                "SELECT id FROM resources WHERE digest = ?",
                (of.digest,),
                "INSERT INTO resources (digest, resource, sender, last_ns) VALUES (?,?,?,?)",
                values,
            )
            self._bytes[sender] += resource_bytes(of.resource) if new else 0
            self._resources[of.digest] = known
        return known

    def _chain(self, name: str, resource: int, at_ns: int) -> int:
        known = self._chains.get((name, resource))
        if known is None:
            known = self._numbered(
                "SELECT id FROM chains WHERE name = ? AND resource = ?",
                (name, resource),
                "INSERT INTO chains (name, resource, first_ns, last_ns) VALUES (?,?,?,?)",
                (name, resource, at_ns, at_ns),
            )[0]
            self._chains[name, resource] = known
        return known

    def _edge(self, key: EdgeKey, at_ns: int, trace: bytes, of: str, sender: int) -> int:
        known = self._edges.get(key)
        if known is not None:
            return known
        found = self._find_edge(key)
        if found is None:
            match self._edge_room.left(of):
                case "some":
                    key = _folded(key)
                    found = self._find_edge(key)
                case "none":
                    key = _OTHER_EDGE
                    found = self._find_edge(key)
        if found is None:
            self._edge_room.take(of)
            found = self._new(
                "INSERT INTO edges (source_kind, source, source_namespace, destination_kind, "
                "destination, destination_namespace, service, port, first_ns, last_ns, first_trace, "
                "sender) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
                (*key, at_ns, at_ns, trace, sender),
            )
        self._edges[key] = found
        return found

    def _find_edge(self, key: EdgeKey) -> int | None:
        row = self._db.execute(
            "SELECT id FROM edges WHERE source_kind = ? AND source = ? AND source_namespace = ? AND "
            "destination_kind = ? AND destination = ? AND destination_namespace = ? AND "
            "service = ? AND port = ?",
            key,
        ).fetchone()
        return int(row[0]) if row is not None else None

    def _way(self, key: WayKey, of: str, sender: int) -> int:
        known = self._ways.get(key)
        if known is not None:
            return known
        found = self._find_way(key)
        if found is None:
            match self._way_room.left(of):
                case "some":
                    key = WayKey(key.security, key.verdict, OTHER, OTHER, OTHER, "")
                    found = self._find_way(key)
                case "none":
                    key = WayKey(OTHER, OTHER, OTHER, OTHER, OTHER, "")
                    found = self._find_way(key)
        if found is None:
            self._way_room.take(of)
            found = self._new(
                "INSERT INTO ways (security, verdict, reason, policy, rule, nearest_rule, sender) "
                "VALUES (?,?,?,?,?,?,?)",
                (*key, sender),
            )
        self._ways[key] = found
        return found

    def _find_way(self, key: WayKey) -> int | None:
        row = self._db.execute(
            "SELECT id FROM ways WHERE security = ? AND verdict = ? AND reason = ? AND policy = ? "
            "AND rule = ? AND nearest_rule = ?",
            key,
        ).fetchone()
        return int(row[0]) if row is not None else None

    def _certificate(self, span: int, c: Certificate, sender: str) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO certificates (id, event, at_ns, serial, identity, pod, pod_uid, "
            "node, issuer, not_before_ns, not_after_ns, reason, sender) "
            "VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (span, *c, sender),
        )

    def _numbered(
        self, select: str, key: tuple[object, ...], insert: str, values: tuple[object, ...]
    ) -> tuple[int, bool]:
        row = self._db.execute(select, key).fetchone()
        return (int(row[0]), False) if row is not None else (self._new(insert, values), True)

    def _new(self, insert: str, values: tuple[object, ...]) -> int:
        return int(self._db.execute(insert, values).lastrowid or 0)

    def _counts(self, table: str) -> list[tuple[str, int]]:
        return self._db.execute(
            f"SELECT coalesce(name, ''), count(*) FROM {table} "  # noqa: S608 - one of two names
            "LEFT JOIN senders ON senders.id = sender GROUP BY 1"
        ).fetchall()


def resource_bytes(resource: bytes) -> int:
    """What a resource takes in the store, about."""
    return len(resource) + SPAN_OVERHEAD


class Room:
    """How many rows of a bounded table each sender was the first to need. Pure."""

    def __init__(self, most: int) -> None:
        self._most, self._all = most, 0
        self._of: dict[str, int] = {}

    def set(self, counts: Iterable[tuple[str, int]]) -> None:
        self._of = dict(counts)
        self._all = sum(self._of.values())

    def take(self, sender: str) -> None:
        self._of[sender] = self._of.get(sender, 0) + 1
        self._all += 1

    def left(self, sender: str) -> Literal["all", "some", "none"]:
        """How exactly a new row of this sender's may be told apart: `some` from its own share on, `none`
        from twice its share on. Likewise of all room, but for a sender that has hardly used its share.
        Who proves nothing is one sender, with all of the room."""
        share = max(1, self._most // SHARES) if sender else self._most
        own = self._of.get(sender, 0)
        modest = bool(sender) and own < max(1, share // _RESERVE)
        if own >= 2 * share or (self._all >= 2 * self._most and not modest):
            return "none"
        return "some" if own >= share or (self._all >= self._most and not modest) else "all"


def _folded(key: EdgeKey) -> EdgeKey:
    """The edge without addresses: they are what anybody can make up without end."""
    source = (OTHER, "", key.source_namespace)
    destination = (OTHER, "", key.destination_namespace)
    return EdgeKey(
        *(source if key.source_kind in ("address", "pod") else key[:3]),
        *(destination if key.destination_kind in ("address", "pod") else key[3:6]),
        key.service if key.destination_kind == "identity" else "",
        key.port if key.destination_kind == "identity" else 0,
    )
