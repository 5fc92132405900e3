"""Reads the roll-ups: traffic per edge and way over any time, in as few rows as there are.

A link that both sides told of is in the sums of both; it is counted once, by whichever side told
more. Times are held to whole minutes within the last day and to whole hours before.
"""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
FINE_S: Final = 3 * _HOUR
"""Up to this length a time is read by the minute at its ends."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one edge carried in one way. `links` have ended; `opened` had lived for a minute."""

    edge: int
    way: int
    source_kind: str
    source: str
    source_namespace: str
    destination_kind: str
    destination: str
    destination_namespace: str
    service: str
    port: int
    security: str
    verdict: str
    reason: str
    policy: str
    rule: str
    nearest_rule: str
    links: int
    opened: int
    bytes_sent: int
    bytes_received: int
    first_ns: int
    last_ns: int
    last_trace: bytes
    """One of its traces, of late."""
    sides: str
    """Who told of it: `both`, `outbound` or `inbound`."""
    in_links: int
    in_opened: int
    """As `links` and `opened`, by the destination's own side alone."""


def segments(since_s: int, until_s: int) -> list[tuple[int, int, int]]:
    """Steps that add up to [since, until): (step, first bucket, end), days in the middle where there
    are whole ones, hours beside them, minutes beside those if the time is short. Pure."""
    finest = _MINUTE if until_s - since_s <= FINE_S else _HOUR
    found: list[tuple[int, int, int]] = []

    def cover(low: int, high: int, steps: tuple[int, ...]) -> None:
        step, finer = steps[0], steps[1:]
        if not finer:
            found.append((step, low // step * step, -(-high // step) * step))
            return
        first, end = -(-low // step) * step, high // step * step
        if first >= end:
            cover(low, high, finer)
            return
        if low < first:
            cover(low, first, finer)
        found.append((step, first, end))
        if end < high:
            cover(end, high, finer)

    if until_s > since_s:
        cover(since_s, until_s, (_DAY, _HOUR) if finest == _HOUR else (_HOUR, _MINUTE))
    return found


_EDGE = (
    "source_kind, source, source_namespace, destination_kind, destination, destination_namespace, "
    "service, port"
)
_WAY = "security, verdict, reason, policy, rule, nearest_rule"


def traffic(
    db: sqlite3.Connection,
    since_s: int,
    until_s: int,
    where: str = "true",
    values: tuple[object, ...] = (),
    *,
    by_destination: bool = False,
) -> Iterator[Traffic]:
    """Traffic per edge and way. `where` is fixed text over the columns of `edges` and `ways`.

    `by_destination`: only what the destination's own side told, which alone knows what it let in. A
    source may tell of links that never were.
    """
    parts = segments(since_s, until_s)
    if not parts:
        return
    pieces = " UNION ALL ".join(
        ["SELECT * FROM rollups WHERE step_s = ? AND bucket_s >= ? AND bucket_s < ?"] * len(parts)
    )
    bounds = [number for part in parts for number in part]
    rows = db.execute(
        "SELECT r.edge, r.way, "  # noqa: S608 - fixed text
        f"{_EDGE}, {_WAY}, out_links, in_links, out_opened, in_opened, out_sent, out_received, "
        "in_sent, in_received, r.first_ns, r.last_ns, r.last_trace FROM ("
        "SELECT edge, way, sum(out_links) AS out_links, sum(in_links) AS in_links, "
        "sum(out_opened) AS out_opened, sum(in_opened) AS in_opened, total(out_sent) AS out_sent, "
        "total(out_received) AS out_received, total(in_sent) AS in_sent, "
        "total(in_received) AS in_received, min(first_ns) AS first_ns, max(last_ns) AS last_ns, "
        f"last_trace FROM ({pieces}) GROUP BY edge, way) AS r "
        f"JOIN edges ON edges.id = r.edge JOIN ways ON ways.id = r.way WHERE {where}",
        (*bounds, *values),
    )
    for row in rows:
        found = _traffic(tuple(row))
        if not by_destination:
            yield found
        elif found.sides != "outbound":
            yield _of_destination(tuple(row), found)


def _of_destination(row: tuple[Any, ...], found: Traffic) -> Traffic:
    sent, received = row[22], row[23]
    return replace(
        found,
        links=found.in_links,
        opened=found.in_opened,
        bytes_sent=int(sent),
        bytes_received=int(received),
        sides="inbound",
    )


def _traffic(row: tuple[Any, ...]) -> Traffic:
    edge, way = row[:16], row[16:]
    out, into, out_opened, in_opened, out_sent, out_received, in_sent, in_received = way[:8]
    first_ns, last_ns, last_trace = way[8:]
    outward, inward = out or out_opened, into or in_opened
    return Traffic(
        **dict(zip(_NAMES, edge, strict=True)),
        links=max(out, into),
        opened=max(out_opened, in_opened),
        bytes_sent=int(max(out_sent, in_sent)),
        bytes_received=int(max(out_received, in_received)),
        first_ns=first_ns,
        last_ns=last_ns,
        last_trace=last_trace,
        sides="both" if outward and inward else "outbound" if outward else "inbound",
        in_links=into,
        in_opened=in_opened,
    )


_NAMES = ("edge", "way", *_EDGE.split(", "), *_WAY.split(", "))
