"""A deadline that does not blame others for our own standstill.

When this process did not run for a while (a starved CPU, SIGSTOP), timers are due before what lies
ready in the sockets has been read. A deadline that fires late therefore looks again once what came in
the meantime has been dealt with (docs/threat-model.md, `cpu-starvation`).
"""

import asyncio
from collections.abc import Callable
from typing import Final

from kit.clock import monotonic
from sidecar.dataplane.loop.poller import Poller

SLACK_S: Final = 0.5
"""Later than this is a standstill of ours."""
GRACE_S: Final = 1.0
MAX_GRACES: Final = 3
"""A loop that is always late must still end what never comes."""


class Deadline:
    """Calls `late` once `seconds` have passed, unless cancelled before."""

    __slots__ = ("_at", "_graces", "_late", "_poller", "_timer")

    def __init__(self, poller: Poller, seconds: float, late: Callable[[], None]) -> None:
        self._poller, self._late = poller, late
        self._graces = MAX_GRACES
        self._at = monotonic() + seconds
        self._timer: asyncio.TimerHandle = poller.call_later(seconds, self._fire)

    def cancel(self) -> None:
        self._timer.cancel()

    def broken(self, error: Exception) -> None:
        """What was to be done failed: so has whoever set the deadline."""
        self._poller.tell(self._late, error)

    def _fire(self) -> None:
        now = monotonic()
        if now - self._at <= SLACK_S or not self._graces:
            return self._late()
        self._graces -= 1
        self._at = now + GRACE_S
        self._timer = self._poller.call_later(GRACE_S, self._fire)
        return None
