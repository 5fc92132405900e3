"""A log line for every link that was denied or failed, as many as a person can read.

The span is the record; this is for the one who looks at the pod's log first, and for clusters without
a trace store. What goes beyond the rate is counted and said with the next line, so that nobody floods
the log.
"""

import logging
from typing import Final

from kit.clock import Monotonic, monotonic
from sidecar.report import LinkRecord, Report

LINES_PER_S: Final = 10.0
_BURST: Final = 20.0
_log = logging.getLogger("podlink.links")


class Denials:
    """`report` takes every record, says what must be said, and hands it on to `then`."""

    def __init__(self, then: Report, now: Monotonic = monotonic) -> None:
        self._then, self._now = then, now
        self._credit, self._at = _BURST, now()
        self._unsaid = 0

    def report(self, record: LinkRecord) -> None:
        if record.verdict != "allowed":
            self._say(record)
        self._then(record)

    def _say(self, record: LinkRecord) -> None:
        now = self._now()
        self._credit = min(_BURST, self._credit + (now - self._at) * LINES_PER_S)
        self._at = now
        if self._credit < 1:
            self._unsaid += 1
            return
        self._credit -= 1
        unsaid, self._unsaid = self._unsaid, 0
        _log.warning(
            f"link {record.verdict}",
            extra={
                "reason": record.reason,
                "error": record.error,
                "direction": record.direction,
                "source": record.source_pod or record.source_ip,
                "source_identity": record.source_identity,
                "destination": record.destination_pod or record.destination_ip,
                "service": record.service,
                "port": record.original_port or record.destination_port,
                "policy": record.policy,
                "trace_id": record.trace_id.hex(),
                "unsaid_before": unsaid,
            },
        )
