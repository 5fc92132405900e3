"""Rows into the tables, inside a transaction that the writer opens and ends.

Edges and ways get their numbers here, bounded: names come from whoever may send spans, and a flood of
ever new ones must cost a row called `other`, not the store. Roll-ups are added up in memory and
written once per transaction; a span that was kept before (a retry) counts nowhere twice.
"""

import sqlite3
from typing import Final

from traces.blob import pack
from traces.rows import LINK, Certificate, EdgeKey, ResourceRows, SpanRow, WayKey

MAX_EDGES: Final = 100_000
"""Beyond it ends known by address only share the name `other`; beyond twice as many all new ones do."""
MAX_WAYS: Final = 10_000
OTHER: Final = "other"
STEPS_S: Final = (60, 3600, 86400)
_REMEMBERED: Final = 20_000
_LATE_NS: Final = 3600 * 10**9
_EARLY_NS: Final = 60 * 10**9

_OTHER_EDGE = EdgeKey(OTHER, "", "", OTHER, "", "", "", 0)
_SPAN = (
    "INSERT OR IGNORE INTO spans (received_ns, trace_id, digest, span_id, parent_span_id, name, "
    "start_ns, end_ns, direction, edge, way, source_pod, destination_pod, is_ordinary, chain, "
    "sequence, resource, span) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
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
        self._db, self._max_edges = db, max_edges
        self._edges: dict[EdgeKey, int] = {}
        self._ways: dict[WayKey, int] = {}
        self._chains: dict[tuple[str, int], int] = {}
        self._resources: dict[bytes, int] = {}
        self._sums: dict[tuple[int, int, int], _Sum] = {}
        self._touched: dict[tuple[str, int], int] = {}
        self._edge_count = self._way_count = 0
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
        ):
            known.clear()
        self._edge_count = self._count("edges")
        self._way_count = self._count("ways")

    def insert(self, of: ResourceRows, received_ns: int) -> int:
        """Keep the spans of one resource; returns how many were new."""
        resource = self._resource(of, received_ns)
        self._touched["resources", resource] = received_ns
        kept = 0
        for row in of.rows:
            kept += self._insert(row, of, resource, received_ns)
        return kept

    def _insert(self, row: SpanRow, of: ResourceRows, resource: int, received_ns: int) -> int:
        edge = way = chain = None
        at_ns = row.end_ns
        if not received_ns - _LATE_NS <= at_ns <= received_ns + _EARLY_NS:
            at_ns = received_ns  # whoever's clock it is, it does not write history here
        if row.edge is not None and row.way is not None:
            edge = self._edge(row.edge, at_ns, row.trace_id)
            way = self._way(row.way)
        if row.chain:
            chain = self._chain(row.chain, resource, received_ns)
            self._touched["chains", chain] = received_ns
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
                pack(row.span),
            ),
        )
        if cursor.rowcount != 1:
            return 0
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
        self._sums.clear()
        self._touched.clear()
        for known in (self._edges, self._ways, self._chains, self._resources):
            if len(known) > _REMEMBERED:
                known.clear()

    # --- numbers for what repeats -----------------------------------------------------------

    def _resource(self, of: ResourceRows, received_ns: int) -> int:
        known = self._resources.get(of.digest)
        if known is None:
            values = (of.digest, of.resource, of.sender, received_ns)
            known = self._numbered(
                "SELECT id FROM resources WHERE digest = ?",
                (of.digest,),
                "INSERT INTO resources (digest, resource, sender, last_ns) VALUES (?,?,?,?)",
                values,
            )[0]
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

    def _edge(self, key: EdgeKey, at_ns: int, trace: bytes) -> int:
        known = self._edges.get(key)
        if known is not None:
            return known
        found = self._find_edge(key)
        if found is None and self._edge_count >= self._max_edges:
            key = _folded(key) if self._edge_count < 2 * self._max_edges else _OTHER_EDGE
            found = self._find_edge(key)
        if found is None:
            self._edge_count += 1
            found = self._new(
                "INSERT INTO edges (source_kind, source, source_namespace, destination_kind, "
                "destination, destination_namespace, service, port, first_ns, last_ns, first_trace) "
                "VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                (*key, at_ns, at_ns, trace),
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

    def _way(self, key: WayKey) -> int:
        known = self._ways.get(key)
        if known is not None:
            return known
        if self._way_count >= MAX_WAYS:
            key = WayKey(key.security[:16], key.verdict[:16], OTHER, OTHER, OTHER, "")
            if self._way_count >= 2 * MAX_WAYS:
                key = WayKey(OTHER, OTHER, OTHER, OTHER, OTHER, "")
        known, new = self._numbered(
            "SELECT id FROM ways WHERE security = ? AND verdict = ? AND reason = ? AND policy = ? "
            "AND rule = ? AND nearest_rule = ?",
            key,
            "INSERT INTO ways (security, verdict, reason, policy, rule, nearest_rule) "
            "VALUES (?,?,?,?,?,?)",
            key,
        )
        self._way_count += new
        self._ways[key] = known
        return known

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

    def _count(self, table: str) -> int:
        return int(self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608


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
