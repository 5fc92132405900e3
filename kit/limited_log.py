"""Warnings about what comes from outside, whose number must not be the sender's to choose."""

import logging
from typing import Final

from kit.buckets import Buckets
from kit.clock import Monotonic, monotonic

LINES_PER_S: Final = 1.0
BURST: Final = 20


class LimitedLog:
    """Writes warnings to `log`, at most BURST at once and then LINES_PER_S. The next line that is
    written says how many were not.
    """

    def __init__(self, log: logging.Logger, clock: Monotonic = monotonic) -> None:
        self._log, self._clock = log, clock
        self._lines = Buckets(LINES_PER_S, BURST)
        self.unwritten = 0

    def warning(self, message: str, **extra: object) -> None:
        """`message` is a fixed text; what varies goes into `extra`."""
        if not self._lines.take("", self._clock()):
            self.unwritten += 1
            return
        if self.unwritten:
            extra["unwritten_before"] = self.unwritten
            self.unwritten = 0
        self._log.warning(message, extra=extra)
