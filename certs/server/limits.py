"""How often one pod may call, and how many calls may be in work at once."""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from certs.server.refusals import TooMany
from kit.clock import Monotonic


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class TokenBuckets:
    """One token bucket per key: `burst` calls at once, then `per_second`.

    At most `size` keys are remembered; the longest unused is forgotten, which gives it a full
    bucket again. Keys are pod UIDs out of token reviews, so a caller cannot invent them.
    """

    def __init__(
        self, per_second: float, burst: int, monotonic: Monotonic, size: int = 65536
    ) -> None:
        self._rate, self._burst, self._monotonic, self._size = per_second, burst, monotonic, size
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, key: str) -> None:
        """Take one token of `key`'s bucket; raises TooMany if it is empty."""
        now = self._monotonic()
        bucket = self._buckets.setdefault(key, _Bucket(float(self._burst), now))
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._size:
            self._buckets.popitem(last=False)
        grown = bucket.tokens + (now - bucket.filled_at) * self._rate
        bucket.tokens, bucket.filled_at = min(float(self._burst), grown), now
        if bucket.tokens < 1.0:
            raise TooMany("rate_per_pod", key)
        bucket.tokens -= 1.0

    def __len__(self) -> int:
        return len(self._buckets)


class InFlight:
    """At most `most` at once, and at most `per_source` of them from one address.

    One more is refused at once, not queued: the caller backs off. The second limit keeps a single
    pod, which need not even hold a token, from taking every place.
    """

    def __init__(self, most: int, per_source: int) -> None:
        self._most, self._per_source, self.now = most, per_source, 0
        self._sources: Counter[str] = Counter()

    @contextmanager
    def one(self, source: str) -> Iterator[None]:
        """Hold one place for a call from `source`; raises TooMany if none is free."""
        if self.now >= self._most:
            raise TooMany("in_flight", f"{self.now} calls in work")
        if self._sources[source] >= self._per_source:
            raise TooMany("in_flight_per_source", source)
        self.now += 1
        self._sources[source] += 1
        try:
            yield
        finally:
            self.now -= 1
            self._sources[source] -= 1
            if not self._sources[source]:
                del self._sources[source]
