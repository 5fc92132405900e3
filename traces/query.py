"""Reads links and traces from the file, without getting in the writer's way.

Each question opens the file anew, read-only, runs in a thread and is cut off at a deadline: a
reviewer's question never holds up the spans that arrive meanwhile.
"""

import asyncio
import heapq
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from kit.clock import monotonic, unix_ns
from traces.blob import read_span
from traces.links import Item, LinkSpan, iso, join
from traces.rows import LINK_OPENED, plain_attributes
from traces.schema import open_for_reading

MAX_LINKS = 1000
MAX_SPANS_OF_TRACE = 1000
_PAGE = 500
_MAX_SCANNED = 200_000
_DEADLINE_S = 10.0
_AT_ONCE = 4
_FEW_EDGES = 200

T = TypeVar("T")


class QueryTooSlow(Exception):
    """The question took too long. Ask about less: a shorter time, a namespace."""

    reason = "query_too_slow"


@dataclass(frozen=True, kw_only=True)
class LinkFilter:
    """Which links are asked for; None is any. `identity` is of the source or the destination."""

    since_s: float | None = None
    namespace: str | None = None
    identity: str | None = None
    verdict: str | None = None
    security: str | None = None
    limit: int = 100


class Reader:
    def __init__(
        self,
        path: Path,
        *,
        clock_ns: Callable[[], int] = unix_ns,
        deadline_s: float = _DEADLINE_S,
    ) -> None:
        self._path, self._clock_ns, self._deadline_s = path, clock_ns, deadline_s
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def links(self, wanted: LinkFilter) -> list[Item]:
        """The newest links that fit, newest first; at most `wanted.limit`."""
        return await self.ask(lambda db: _links(db, wanted, self._clock_ns()))

    async def trace(self, trace_id: bytes) -> list[Item]:
        """Every span of one trace, oldest first; empty if there is none."""
        return await self.ask(lambda db: spans_of_trace(db, trace_id))

    async def ask(
        self, question: Callable[[sqlite3.Connection], T], deadline_s: float | None = None
    ) -> T:
        """The answer to a question, asked in a thread. Raises QueryTooSlow at the deadline."""

        def answer() -> T:
            with _reading(self._path, deadline_s or self._deadline_s) as db:
                return question(db)

        async with self._turns:
            return await asyncio.to_thread(answer)


@contextmanager
def _reading(path: Path, deadline_s: float) -> Iterator[sqlite3.Connection]:
    deadline = monotonic() + deadline_s
    db = open_for_reading(path)
    db.set_progress_handler(lambda: int(monotonic() > deadline), 10_000)
    try:
        yield db
    except sqlite3.OperationalError as e:
        if "interrupted" in str(e):
            raise QueryTooSlow from e
        raise
    finally:
        db.close()


def _links(db: sqlite3.Connection, wanted: LinkFilter, now_ns: int) -> list[Item]:
    """Walk back through the spans that could belong to a link that fits, a page at a time; join
    each page's traces; keep the links that fit as a whole."""
    candidates = _candidates(db, wanted, _first_id(db, wanted, now_ns))
    found: list[Item] = []
    seen: set[bytes] = set()
    scanned = 0
    while len(found) < wanted.limit and scanned < _MAX_SCANNED:
        page = list(islice(candidates, _PAGE))
        if not page:
            break
        scanned += len(page)
        traces = set(page) - seen
        seen |= traces
        found.extend(item for item in join(spans_of_links(db, traces)) if _fits(item, wanted))
    found.sort(key=lambda item: int(str(item["start_unix_ns"])), reverse=True)
    return found[: wanted.limit]


def _first_id(db: sqlite3.Connection, wanted: LinkFilter, now_ns: int) -> int:
    """Where the time asked about begins: ids grow with the time of arrival."""
    if wanted.since_s is None:
        return 0
    row = db.execute(
        "SELECT id FROM spans WHERE received_ns >= ? ORDER BY received_ns LIMIT 1",
        (max(0, now_ns - int(wanted.since_s * 1e9)),),
    ).fetchone()
    return int(row["id"]) if row is not None else (1 << 63) - 1


def _candidates(db: sqlite3.Connection, wanted: LinkFilter, first: int) -> Iterator[bytes]:
    """Trace ids of spans that could belong to a link that fits, newest first.

    What is neither allowed mTLS nor within a pod has an index of its own, few among many. Else, if
    few edges fit, their spans are merged; if many do, the newest spans are soon theirs.
    """
    where, values = ["direction IS NOT NULL", "id >= ?"], list[object]([first])
    edges = _numbers(
        db,
        "edges",
        {
            "(source_namespace = ? OR destination_namespace = ?)": [wanted.namespace] * 2,
            "(source = ? OR destination = ?)": [wanted.identity] * 2,
        },
    )
    ways = _numbers(
        db, "ways", {"verdict = ?": [wanted.verdict], "security = ?": [wanted.security]}
    )
    if [] in (edges, ways):
        # Nothing of the kind was ever told, and SQLite finds no way to use an index for `IN ()`.
        return iter(())
    if edges is not None:
        where.append(f"edge IN ({', '.join(map(str, edges))})")
    if ways is not None:
        where.append(f"way IN ({', '.join(map(str, ways))})")
    if wanted.verdict not in (None, "allowed") or wanted.security in ("plaintext", "none"):
        tables = [("spans INDEXED BY links_to_review", "NOT is_ordinary")]
    elif edges is not None and len(edges) <= _FEW_EDGES:
        tables = [("spans INDEXED BY spans_by_edge", f"edge = {edge}") for edge in edges]
    else:
        tables = [("spans NOT INDEXED", "true")]
    cursors = [
        db.execute(
            f"SELECT id, trace_id FROM {table} WHERE {more} AND {' AND '.join(where)} "  # noqa: S608 - fixed text and numbers
            "ORDER BY id DESC",
            values,
        )
        for table, more in tables
    ]
    return (row[1] for row in heapq.merge(*cursors, key=lambda row: int(row[0]), reverse=True))


def _numbers(
    db: sqlite3.Connection, table: str, conditions: Mapping[str, Sequence[str | None]]
) -> list[int] | None:
    """Ids of the rows that fit the conditions which have values; None if none has."""
    asked = {c: v for c, v in conditions.items() if v[0] is not None}
    if not asked:
        return None
    rows = db.execute(
        f"SELECT id FROM {table} WHERE {' AND '.join(asked)}",  # noqa: S608 - fixed text
        [value for values in asked.values() for value in values],
    )
    return [int(row[0]) for row in rows]


def _fits(item: Item, wanted: LinkFilter) -> bool:
    """Two sides may have fitted one by one; this asks the link as a whole."""
    return all(
        value is None or item[name] == value
        for name, value in (("verdict", wanted.verdict), ("security", wanted.security))
    )


def spans_of_links(db: sqlite3.Connection, traces: set[bytes]) -> Iterator[LinkSpan]:
    """The spans of links in these traces, for `join`."""
    for trace_id in traces:
        rows = db.execute(
            "SELECT span FROM spans WHERE trace_id = ? AND direction IS NOT NULL ORDER BY id LIMIT ?",
            (trace_id, MAX_SPANS_OF_TRACE),
        )
        for row in rows:
            yield link_span(read_span(row["span"]))


def link_span(span: Span) -> LinkSpan:
    """A stored span of a link. `link opened` is the child of the span that it foretells."""
    opened = span.name == LINK_OPENED
    return LinkSpan(
        trace_id=span.trace_id.hex(),
        link_id=(span.parent_span_id if opened else span.span_id).hex(),
        parent_id="" if opened else span.parent_span_id.hex(),
        name=span.name,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=plain_attributes(span.attributes),
    )


def spans_of_trace(db: sqlite3.Connection, trace_id: bytes) -> list[Item]:
    """Every span of one trace, oldest first, as JSON can say it."""
    rows = db.execute(
        "SELECT span, resources.resource, sender, received_ns FROM spans LEFT JOIN resources "
        "ON spans.resource = resources.id "
        "WHERE trace_id = ? ORDER BY start_ns, spans.id LIMIT ?",
        (trace_id, MAX_SPANS_OF_TRACE),
    )
    return [
        _span_item(row["span"], row["resource"] or b"", row["received_ns"], row["sender"] or "")
        for row in rows
    ]


def chain_items(db: sqlite3.Connection, first_id: int, last_id: int) -> Iterator[Item]:
    """Every span that is in a chain, of those kept as `first_id` to `last_id`, in the order of
    arrival: what `certs.evidence.verify.verify_spans` judges. One at a time, however many there are."""
    rows = db.execute(
        "SELECT span, resources.resource, sender, received_ns FROM spans LEFT JOIN resources "
        "ON spans.resource = resources.id "
        "WHERE spans.id BETWEEN ? AND ? AND chain IS NOT NULL ORDER BY spans.id",
        (first_id, last_id),
    )
    for row in rows:
        yield _span_item(row[0], row[1] or b"", row[3], row[2] or "")


def _span_item(blob: bytes, resource: bytes, received_ns: int, sender: str) -> Item:
    span = read_span(blob)
    return {
        "trace_id": span.trace_id.hex(),
        "span_id": span.span_id.hex(),
        "parent_span_id": span.parent_span_id.hex(),
        "name": span.name,
        "kind": _enum_name(Span.SpanKind, span.kind, "SPAN_KIND_"),
        "start": iso(span.start_time_unix_nano),
        "start_unix_ns": str(span.start_time_unix_nano),
        "end_unix_ns": str(span.end_time_unix_nano),
        "duration_ms": round((span.end_time_unix_nano - span.start_time_unix_nano) / 1e6, 3),
        "received": iso(received_ns),
        "sender": sender,
        "status": _enum_name(Status.StatusCode, span.status.code, "STATUS_CODE_"),
        "status_message": span.status.message,
        "attributes": plain_attributes(span.attributes),
        "resource": plain_attributes(Resource.FromString(resource).attributes),
        "links": [
            {
                "trace_id": link.trace_id.hex(),
                "span_id": link.span_id.hex(),
                "attributes": plain_attributes(link.attributes),
            }
            for link in span.links
        ],
        "dropped_attributes": span.dropped_attributes_count,
    }


def _enum_name(enum: object, number: int, prefix: str) -> str:
    try:
        name: str = enum.Name(number)  # type: ignore[attr-defined]
    except ValueError:
        return str(number)
    return name.removeprefix(prefix).lower()
