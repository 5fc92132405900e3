"""A wall clock that nobody can set back past what the CA has said.

A leaf that has expired would count again if the node's clock went back (docs/threat-model.md, attack
47). The CA says its time with every leaf; from then on the monotonic clock, which nobody sets, tells
how much later it must be at least. Imports no `cryptography`: the data plane's process uses it.
"""

import datetime as dt
import logging

from kit.clock import Clock, Monotonic, monotonic, utcnow

ALLOWANCE = dt.timedelta(seconds=5)
"""CAs and nodes may differ by so much without anybody being set back."""
_SAY_EVERY_S = 60.0
_log = logging.getLogger(__name__)


class TrustedClock:
    """The wall clock, or what the CA's word proves if that is later. Call it for the time."""

    def __init__(self, clock: Clock = utcnow, monotonic: Monotonic = monotonic) -> None:
        self._clock, self._monotonic = clock, monotonic
        self._said: dt.datetime | None = None
        self._at = 0.0
        self._told_at = -_SAY_EVERY_S

    def heard(self, said: dt.datetime, at: float) -> None:
        """The CA's clock showed `said` no later than at `at` by the monotonic clock."""
        if self._said is None or said - self._said > dt.timedelta(seconds=at - self._at):
            self._said, self._at = said, at

    def __call__(self) -> dt.datetime:
        wall = self._clock()
        if self._said is None:
            return wall
        steady = self._monotonic()
        least = self._said + dt.timedelta(seconds=steady - self._at) - ALLOWANCE
        if wall >= least:
            return wall
        if steady - self._told_at >= _SAY_EVERY_S:
            self._told_at = steady
            behind_s = (least - wall).total_seconds()
            _log.error(
                "this node's clock is behind or was set back; certificates are judged by the CA's",
                extra={"behind_s": round(behind_s, 1)},
            )
        return least

    def unix_s(self) -> float:
        """The same in seconds since 1970."""
        return self().timestamp()
