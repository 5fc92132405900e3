"""Token buckets by source. Pure: the clock is an argument."""

from collections import OrderedDict
from typing import Final

KEPT_SOURCES: Final = 4096


class Buckets:
    """A token bucket per source. The sources asked longest ago are forgotten, full again."""

    __slots__ = ("_burst", "_kept", "_rate")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._kept: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Tokens left, and when that was so."""

    def take(self, source: str, now: float) -> bool:
        """Whether `source` may do it once more; `now` is monotonic."""
        left, at = self._kept.get(source, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._rate)
        if left < 1.0:
            return False
        self._keep(source, left - 1.0, now)
        return True

    def charge(self, source: str, now: float, cost: float) -> None:
        """Take up to `cost` tokens of `source`, as far as it has them: it cost more than asked for."""
        left, at = self._kept.get(source, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._rate)
        self._keep(source, max(0.0, left - cost), now)

    def _keep(self, source: str, left: float, now: float) -> None:
        self._kept[source] = (left, now)
        self._kept.move_to_end(source)
        if len(self._kept) > KEPT_SOURCES:
            self._kept.popitem(last=False)
