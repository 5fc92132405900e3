"""Reads links and traces from the file, without getting in the writer's way.

Each question opens the file anew, read-only, runs in a thread and is cut off at a deadline: a
reviewer's question never holds up the spans that arrive meanwhile.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from kit.clock import monotonic, unix_ns
from traces.links import Item, LinkSpan, iso, join
from traces.rows import LINK_OPENED, plain_attributes
from traces.schema import open_for_reading

MAX_LINKS = 1000
MAX_SPANS_OF_TRACE = 1000
_PAGE = 500
_MAX_SCANNED = 200_000
_DEADLINE_S = 10.0
_AT_ONCE = 4

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
        return await self._ask(lambda db: _links(db, wanted, self._clock_ns()))

    async def trace(self, trace_id: bytes) -> list[Item]:
        """Every span of one trace, oldest first; empty if there is none."""
        return await self._ask(lambda db: _trace(db, trace_id))

    async def _ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        def answer() -> T:
            with _reading(self._path, self._deadline_s) as db:
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
    table, where, values = _candidates(wanted)
    first = _first_id(db, wanted, now_ns)
    found: list[Item] = []
    seen: set[bytes] = set()
    before, scanned = (1 << 63) - 1, 0
    while len(found) < wanted.limit and scanned < _MAX_SCANNED:
        page = db.execute(
            f"SELECT id, trace_id FROM {table} "  # noqa: S608 - every part is fixed text
            f"WHERE id >= ? AND id < ? AND {where} ORDER BY id DESC LIMIT ?",
            (first, before, *values, _PAGE),
        ).fetchall()
        if not page:
            break
        before, scanned = page[-1]["id"], scanned + len(page)
        traces = {row["trace_id"] for row in page} - seen
        seen |= traces
        found.extend(item for item in join(_link_spans(db, traces)) if _fits(item, wanted))
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


def _candidates(wanted: LinkFilter) -> tuple[str, str, list[str]]:
    """The table (and index) to walk, the condition on one span, and its values."""
    table, where, values = "spans", ["is_link"], list[str]()
    if wanted.namespace is not None:
        where.append("(source_namespace = ? OR destination_namespace = ?)")
        values += [wanted.namespace] * 2
    if wanted.identity is not None:
        where.append("(source_identity = ? OR destination_identity = ?)")
        values += [wanted.identity] * 2
    for column, value in (("verdict", wanted.verdict), ("security", wanted.security)):
        if value is not None:
            where.append(f"{column} = ?")
            values.append(value)
    if wanted.verdict not in (None, "allowed") or wanted.security in ("plaintext", "none"):
        table = "spans INDEXED BY links_to_review"  # few among many, and what reviewers ask for
        where.append("NOT is_ordinary")
    return table, " AND ".join(where), values


def _fits(item: Item, wanted: LinkFilter) -> bool:
    """Two sides may have fitted one by one; this asks the link as a whole."""
    return all(
        value is None or item[name] == value
        for name, value in (("verdict", wanted.verdict), ("security", wanted.security))
    )


def _link_spans(db: sqlite3.Connection, traces: set[bytes]) -> Iterator[LinkSpan]:
    for trace_id in traces:
        rows = db.execute(
            "SELECT span FROM spans WHERE trace_id = ? AND is_link ORDER BY id LIMIT ?",
            (trace_id, MAX_SPANS_OF_TRACE),
        )
        for row in rows:
            yield link_span(Span.FromString(row["span"]))


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


def _trace(db: sqlite3.Connection, trace_id: bytes) -> list[Item]:
    rows = db.execute(
        "SELECT span, resource, received_ns FROM spans LEFT JOIN resources "
        "ON spans.resource_digest = resources.digest "
        "WHERE trace_id = ? ORDER BY start_ns, spans.id LIMIT ?",
        (trace_id, MAX_SPANS_OF_TRACE),
    )
    return [_span_item(row["span"], row["resource"] or b"", row["received_ns"]) for row in rows]


def _span_item(blob: bytes, resource: bytes, received_ns: int) -> Item:
    span = Span.FromString(blob)
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
