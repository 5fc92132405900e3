"""Token buckets by source. Pure: the clock is an argument."""

from collections import OrderedDict
from typing import Final

KEPT_SOURCES: Final = 4096


class Buckets:
    """A token bucket per source: `burst` at once, then `rate` a second. Of at most `size` sources: those
    asked longest ago are forgotten, full again."""

    __slots__ = ("_burst", "_kept", "_rate", "_size")

    def __init__(self, rate: float, burst: float, size: int = KEPT_SOURCES) -> None:
        self._rate, self._burst, self._size = rate, burst, size
        self._kept: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Tokens left, and when that was so."""

    def take(self, source: str, now: float) -> bool:
        """Whether `source` may do it once more; `now` is monotonic."""
        left = self._left(source, now)
        if left < 1.0:
            return False
        self._keep(source, left - 1.0, now)
        return True

    def charge(self, source: str, now: float, cost: float) -> None:
        """Take up to `cost` tokens of `source`, as far as it has them: it cost more than asked for."""
        self._keep(source, max(0.0, self._left(source, now) - cost), now)

    def wait_s(self, source: str, now: float) -> float:
        """Seconds until `source` may do it once more; 0 if it may now. Takes nothing."""
        return max(0.0, (1.0 - self._left(source, now)) / self._rate)

    def _left(self, source: str, now: float) -> float:
        left, at = self._kept.get(source, (self._burst, now))
        return min(self._burst, left + (now - at) * self._rate)

    def __len__(self) -> int:
        return len(self._kept)

    def _keep(self, source: str, left: float, now: float) -> None:
        self._kept[source] = (left, now)
        self._kept.move_to_end(source)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)
