"""Counts links by their records. Per link: a tuple, a lookup, and additions; no lock, no string made.

A link that is still open is looked at when somebody asks, so that bytes and openings are live
without any cost on the way.
"""

from collections.abc import Iterable
from typing import Final, Protocol

from kit.exposition import Family, Labels
from sidecar.metrics import catalogue as c
from sidecar.metrics.catalogue import MAX_SERIES, OVERFLOW
from sidecar.report import LinkRecord, Report

_REPORTERS: Final = {"outbound": "source", "inbound": "destination"}
_CLOSED, _SENT, _RECEIVED = 0, 1, 2


class Open(Protocol):
    """A link that has not ended (sidecar.dataplane.plane.LiveLink)."""

    record: LinkRecord

    @property
    def moved(self) -> tuple[int, int]: ...


class LinkMeter:
    """`report` takes every record, counts it, and hands it on to `then`."""

    def __init__(self, then: Report) -> None:
        self._then = then
        self._ended: dict[Labels, list[int]] = {}
        """Closed links, bytes sent, bytes received."""
        self._denied: dict[Labels, int] = {}
        self._failed: dict[Labels, int] = {}
        self._plaintext: dict[Labels, int] = {}
        self._pooled: dict[Labels, int] = {}

    def report(self, record: LinkRecord) -> None:
        if not record.still_open:
            self._count(record)
        self._then(record)

    def _count(self, record: LinkRecord) -> None:
        reporter = _REPORTERS[record.direction]
        verdict = record.verdict
        if verdict == "allowed" or verdict == "audited":
            row = self._row(record, reporter)
            row[_CLOSED] += 1
            row[_SENT] += record.bytes_sent
            row[_RECEIVED] += record.bytes_received
            if record.security != "mtls":
                _add(self._plaintext, (reporter, record.reason))
            elif record.pooled:
                _add(self._pooled, (reporter,))
        elif verdict == "denied":
            key = (reporter, record.reason, record.policy)
            if key not in self._denied and len(self._denied) >= MAX_SERIES:
                key = (reporter, record.reason, OVERFLOW)
            _add(self._denied, key)
        else:
            _add(self._failed, (reporter, record.reason))

    def _row(self, record: LinkRecord, reporter: str) -> list[int]:
        # Only the source knows what Service was asked for: the far end has the peer's word for it.
        service = record.service if reporter == "source" else ""
        security = record.security
        key = (
            reporter,
            record.source_identity,
            record.destination_identity,
            service,
            security,
        )
        row = self._ended.get(key)
        if row is None:
            if len(self._ended) >= MAX_SERIES:
                key = (reporter, OVERFLOW, OVERFLOW, OVERFLOW, security)
            row = self._ended.setdefault(key, [0, 0, 0])
        return row

    def families(self, live: Iterable[Open]) -> list[Family]:
        """The counts now, with the links that are still open."""
        plaintext = dict(self._plaintext)
        rows: dict[int, list[int]] = {}
        for link in live:
            record = link.record
            if record.verdict not in ("allowed", "audited"):
                continue
            reporter = _REPORTERS[record.direction]
            row = self._row(record, reporter)  # its place is kept for it, whatever comes later
            now = rows.setdefault(id(row), [0, 0, 0])
            sent, received = link.moved
            now[0] += 1
            now[_SENT] += sent
            now[_RECEIVED] += received
            if record.security != "mtls":
                _add(plaintext, (reporter, record.reason))
        found = [Family(each) for each in (c.OPENED, c.CLOSED, c.OPEN, c.SENT, c.RECEIVED)]
        opened, closed, open_, sent_, received_ = (family.samples for family in found)
        for key, row in self._ended.items():
            now = rows.get(id(row), _NONE)
            closed[key], open_[key] = row[_CLOSED], now[0]
            opened[key] = row[_CLOSED] + now[0]
            sent_[key] = row[_SENT] + now[_SENT]
            received_[key] = row[_RECEIVED] + now[_RECEIVED]
        counted = (
            (c.DENIED, self._denied),
            (c.FAILED, self._failed),
            (c.PLAINTEXT, plaintext),
            (c.POOLED, self._pooled),
        )
        found += [Family(metric, dict(samples)) for metric, samples in counted]
        return found


_NONE: Final = [0, 0, 0]


def _add(to: dict[Labels, int], key: Labels) -> None:
    to[key] = to.get(key, 0) + 1
