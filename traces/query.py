"""Reads links and traces from the file, without getting in the writer's way.

Each question opens the file anew, read-only, runs in a thread and is cut off at a deadline: a
reviewer's question never holds up the spans that arrive meanwhile.
"""

import asyncio
import heapq
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from kit.clock import monotonic, unix_ns
from traces.attributes import understood
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
_CROWD = 256
"""Links' spans of one trace at which it counts as crowded; a link has two, and rarely a few more."""
_LOOK = 5000
"""Spans of a crowded trace among which answers are looked for."""
_LINK_ROWS = (
    "SELECT spans.id, span, resources.sender, parent_span_id FROM spans LEFT JOIN resources "
    "ON spans.resource = resources.id WHERE trace_id = ? AND direction IS NOT NULL"
)

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


@dataclass(frozen=True, slots=True)
class Trace:
    """What is kept of one trace."""

    spans: list[Item]
    """Oldest first, as JSON can say it."""
    links: list[Item]
    """As `join` makes them of these spans."""
    left_out: int
    """Spans beyond MAX_SPANS_OF_TRACE."""


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

    async def trace(self, trace_id: bytes) -> Trace:
        """One trace; without spans if there is none."""
        return await self.ask(lambda db: read_trace(db, trace_id))

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
    whole: set[bytes] = set()
    seen: set[tuple[object, ...]] = set()
    scanned = 0
    while len(found) < wanted.limit and scanned < _MAX_SCANNED:
        page = list(islice(candidates, _PAGE))
        if not page:
            break
        scanned += len(page)
        for item in join(_around(db, page, whole)):
            told = (item["trace_id"], *cast(list[object], item["told_by"]))
            if told not in seen and _fits(item, wanted):
                found.append(item)
            seen.add(told)
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


def _around(
    db: sqlite3.Connection, page: Sequence["_Candidate"], whole: set[bytes]
) -> Iterator[LinkSpan]:
    """These spans and what may be their other sides. `whole` are traces of which all was given.

    Of a trace with few spans it is all of them. The dialler chooses the trace's id and may have crowded
    it: of such a one it is each of these spans itself, the span that it answers, and of answers to it as
    many as are found in a bounded look.
    """
    of_trace: dict[bytes, list[_Candidate]] = defaultdict(list)
    for one in page:
        if one.trace_id not in whole:
            of_trace[one.trace_id].append(one)
    for trace_id, those in of_trace.items():
        rows = db.execute(f"{_LINK_ROWS} ORDER BY spans.id LIMIT ?", (trace_id, _CROWD)).fetchall()
        if len(rows) < _CROWD:
            whole.add(trace_id)
        else:
            rows = _of_a_crowd(db, trace_id, those)
        yield from (link_span(read_span(blob), sender or "") for _, blob, sender, _ in rows)


def _of_a_crowd(
    db: sqlite3.Connection, trace_id: bytes, those: Sequence["_Candidate"]
) -> list[sqlite3.Row]:
    ids = {i for one in those for i in (one.span_id, one.parent_span_id) if i}
    own, other = ", ".join("?" * len(those)), ", ".join("?" * len(ids))
    rows = db.execute(
        f"{_LINK_ROWS} AND spans.id IN ({own})",
        (trace_id, *(one.id for one in those)),
    ).fetchall()
    rows += db.execute(
        f"{_LINK_ROWS} AND span_id IN ({other}) LIMIT {_CROWD}", (trace_id, *ids)
    ).fetchall()
    rows += db.execute(
        f"SELECT * FROM ({_LINK_ROWS} LIMIT {_LOOK}) WHERE parent_span_id IN ({other})",  # noqa: S608 - fixed text
        (trace_id, *ids),
    ).fetchall()
    return list({int(row[0]): row for row in rows}.values())


class _Candidate(NamedTuple):
    id: int
    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes | None


def _candidates(db: sqlite3.Connection, wanted: LinkFilter, first: int) -> Iterator[_Candidate]:
    """Spans that could belong to a link that fits, newest first.

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
    few = edges is not None and len(edges) <= _FEW_EDGES
    if wanted.verdict not in (None, "allowed") or wanted.security in ("plaintext", "none"):
        tables = [("spans INDEXED BY links_to_review", "NOT is_ordinary")]
        if few:
            index = "spans INDEXED BY notable_by_edge"
            tables = [(index, f"NOT is_ordinary AND edge = {edge}") for edge in edges or ()]
    elif few:
        tables = [("spans INDEXED BY spans_by_edge", f"edge = {edge}") for edge in edges or ()]
    else:
        tables = [("spans NOT INDEXED", "true")]
    cursors = [
        db.execute(
            f"SELECT id, trace_id, span_id, parent_span_id FROM {table} "  # noqa: S608 - fixed text and numbers
            f"WHERE {more} AND {' AND '.join(where)} "
            "ORDER BY id DESC",
            values,
        )
        for table, more in tables
    ]
    merged = heapq.merge(*cursors, key=lambda row: int(row[0]), reverse=True)
    return (_Candidate(*row) for row in merged)


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


def link_span(span: Span, sender: str = "") -> LinkSpan:
    """A stored span of a link. `link opened` is the child of the span that it foretells."""
    opened = span.name == LINK_OPENED
    return LinkSpan(
        trace_id=span.trace_id.hex(),
        link_id=(span.parent_span_id if opened else span.span_id).hex(),
        parent_id="" if opened else span.parent_span_id.hex(),
        name=span.name,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=understood(plain_attributes(span.attributes)),
        sender=sender,
    )


def read_trace(db: sqlite3.Connection, trace_id: bytes) -> Trace:
    """Of a trace with too many spans each sender's each way of each edge has its turn, and what is not
    an allowed mTLS link before what is: who crowds a trace hides nobody else's word in it."""
    rows = db.execute(
        "WITH ranked AS (SELECT id, direction, ROW_NUMBER() OVER (PARTITION BY sender, edge, way, "
        "direction ORDER BY is_ordinary, id) AS turn, is_ordinary FROM spans WHERE trace_id = ?) "
        "SELECT spans.span, resources.resource, resources.sender, received_ns, spans.direction "
        "FROM (SELECT id FROM ranked ORDER BY turn, is_ordinary, id LIMIT ?) AS chosen "
        "JOIN spans ON spans.id = chosen.id "
        "LEFT JOIN resources ON spans.resource = resources.id ORDER BY start_ns, spans.id",
        (trace_id, MAX_SPANS_OF_TRACE),
    ).fetchall()
    (count,) = db.execute("SELECT count(*) FROM spans WHERE trace_id = ?", (trace_id,)).fetchone()
    return Trace(
        [_span_item(row[0], row[1] or b"", row[3], row[2] or "") for row in rows],
        join(link_span(read_span(row[0]), row[2] or "") for row in rows if row[4] is not None),
        count - len(rows),
    )


def chain_items(db: sqlite3.Connection, first_id: int, last_id: int) -> Iterator[Item]:
    """Every span that is in a chain, of those kept as `first_id` to `last_id`, in the order of
    arrival: what `certs.evidence.verify.verify_spans` judges. One at a time, however many there are."""
    rows = db.execute(
        "SELECT span, resources.resource, resources.sender, received_ns FROM spans "
        "LEFT JOIN resources "
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
        "attributes": understood(plain_attributes(span.attributes)),
        "resource": understood(plain_attributes(Resource.FromString(resource).attributes)),
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
