"""Writes down each refused call, and keeps a flood of them from filling the disk.

A caller needs no token to be refused, so the number of lines must not be its to choose: past the
limit, lines are counted, and the next one written says how many are missing.
"""

import logging

from certs.server.limits import TokenBuckets
from certs.server.refusals import CallRefused, TooMany
from kit.clock import Monotonic

LINES_PER_S = 10.0
BURST = 100
_log = logging.getLogger(__name__)


class RefusalLog:
    def __init__(self, monotonic: Monotonic) -> None:
        self._lines = TokenBuckets(LINES_PER_S, BURST, monotonic, size=1)
        self.unwritten = 0

    def write(self, rpc: str, peer: str, code: str, error: Exception, caller: str = "") -> bool:
        """One line for a refusal; for anything else a line with its traceback, as it is a bug.

        Says whether it was written.
        """
        fields = {"rpc": rpc, "peer": peer, "code": code, "caller": caller}
        if not isinstance(error, CallRefused):
            _log.error("call failed", extra=fields, exc_info=error)
            return True
        try:
            self._lines.take("refusals")
        except TooMany:
            self.unwritten += 1
            return False
        unwritten, self.unwritten = self.unwritten, 0
        found = {"reason": error.reason, "detail": str(error), "unwritten_before": unwritten}
        _log.warning("call refused", extra={**fields, **found})
        return True
