"""Watches the bytes of one link for HTTP requests, and tells of each. Never raises, never waits.

Made only for ports that ask for it (`http-ports`, `appProtocol`). What cannot be followed without
guessing is not followed: the link goes on, its request spans end.
"""

import logging
from collections.abc import Callable
from typing import Final

from sidecar.report import LinkRecord, ReportRequest, RequestRecord
from sidecar.wire.http1 import Exchange, Http1, NotFollowed
from sidecar.wire.http2 import PREFACE, Http2, may_begin_answers

_MAX_PATH: Final = 256
_MAX_EARLY: Final = 4096
_log = logging.getLogger(__name__)


class RequestWatcher:
    """Fed with what goes to the destination and what comes from it, each in order."""

    __slots__ = ("_clock_ns", "_early", "_first", "_link", "_protocol", "_report")

    def __init__(
        self, link: LinkRecord, report: ReportRequest, clock_ns: Callable[[], int]
    ) -> None:
        self._link, self._report, self._clock_ns = link, report, clock_ns
        self._protocol: Http1 | Http2 | None = None
        self._first: bytes | None = b""
        """What has come while it is not clear which version it is; None once that is known."""
        self._early = b""
        """What the app said before that: of HTTP/2 either side may begin (RFC 9113, 3.4)."""

    def request(self, view: memoryview) -> None:
        if self._first is not None:
            return self._begin(view)
        if self._protocol is not None:
            self._feed(self._protocol.request, view)
        return None

    def answer(self, view: memoryview) -> None:
        if self._protocol is not None:
            self._feed(self._protocol.answer, view)
        elif self._first is not None:
            self._early += view[:_MAX_EARLY]
            if len(self._early) >= _MAX_EARLY or not may_begin_answers(self._early):
                self._first, self._early = None, b""  # the app speaks first: this is no HTTP

    def end(self) -> None:
        """The link is over."""
        protocol, self._protocol, self._first = self._protocol, None, None
        if protocol is not None:
            protocol.end(self._clock_ns())

    def _begin(self, view: memoryview) -> None:
        assert self._first is not None
        first = self._first + bytes(view)
        if len(first) < len(PREFACE) and PREFACE.startswith(first):
            self._first = first
            return
        self._first = None
        second = first.startswith(PREFACE)
        early, self._early = self._early, b""
        if early and not second:
            return
        self._protocol = protocol = Http2(self._told) if second else Http1(self._told)
        self._feed(protocol.request, memoryview(first))
        if early and self._protocol is not None:
            self._feed(protocol.answer, memoryview(early))

    def _feed(self, take: Callable[[memoryview, int], None], view: memoryview) -> None:
        try:
            take(view, self._clock_ns())
        except NotFollowed:
            self._protocol = None
        except Exception:  # a link is not to suffer from who watches it
            self._protocol = None
            _log.exception("requests of a link are not followed any more")

    def _told(self, exchange: Exchange) -> None:
        self._report(
            RequestRecord(
                self._link,
                exchange.method,
                exchange.path[:_MAX_PATH],
                exchange.status,
                exchange.grpc_status,
                exchange.version,
                exchange.started_ns,
                exchange.ended_ns,
                exchange.claimed_traceparent,
            )
        )
