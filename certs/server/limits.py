"""How often one may call, and how many calls may be in work at once; per caller and in all."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from certs.server.refusals import TooMany
from kit.buckets import Buckets
from kit.clock import Monotonic


class TokenBuckets:
    """A token bucket per key (`kit.buckets`), whose refusal has a reason and says when to come again.

    `reason` is the slug of the refusal. Keys are pod UIDs and identities out of token reviews, or source
    addresses, so a caller cannot invent them at will.
    """

    def __init__(
        self,
        per_second: float,
        burst: int,
        monotonic: Monotonic,
        size: int = 65536,
        reason: str = "rate_per_pod",
    ) -> None:
        self._monotonic, self._reason = monotonic, reason
        self._buckets = Buckets(per_second, float(burst), size)

    def take(self, key: str) -> None:
        """Take one token of `key`'s bucket; raises TooMany, with when the next is due, if it is
        empty."""
        self.demand(key)
        self.spend(key)

    def demand(self, key: str) -> None:
        """Raise as `take` does, but take nothing."""
        if wait_s := self._buckets.wait_s(key, self._monotonic()):
            raise TooMany(self._reason, key, wait_s)

    def spend(self, key: str) -> None:
        """Take one token, whether there is one or not."""
        self._buckets.charge(key, self._monotonic(), 1.0)

    def __len__(self) -> int:
        return len(self._buckets)


class InFlight:
    """At most `most` at once, and at most `per_source` of them of one key.

    One more is refused at once, not queued: the caller backs off. The second limit keeps a single
    pod, which need not even hold a token, from taking every place.
    """

    def __init__(self, most: int, per_source: int, reason: str = "in_flight") -> None:
        self._most, self._per_source, self._reason = most, per_source, reason
        self.now, self.peak = 0, 0
        self._sources: Counter[str] = Counter()

    @contextmanager
    def one(self, source: str) -> Iterator[None]:
        """Hold one place for a call from `source`; raises TooMany if none is free."""
        if self.now >= self._most:
            raise TooMany(self._reason, f"{self.now} calls in work", 0.5)
        if self._sources[source] >= self._per_source:
            raise TooMany(f"{self._reason}_per_source", source, 0.5)
        self.now += 1
        self.peak = max(self.peak, self.now)
        self._sources[source] += 1
        try:
            yield
        finally:
            self.now -= 1
            self._sources[source] -= 1
            if not self._sources[source]:
                del self._sources[source]


@dataclass(slots=True)
class Limits:
    """Every limit of the CA, in the order in which a call meets them."""

    unread: InFlight
    """Calls whose request has not come yet, whose token nobody has asked about."""
    in_flight: InFlight
    """Calls in admission: each costs the API server two questions."""
    per_source: TokenBuckets
    """Before anything is asked of the API server: one address may hold no token at all."""
    bad_tokens: TokenBuckets
    """Reviews that an address may have refused: each cost the API server a question."""
    in_all: TokenBuckets
    """Of callers that are known: strangers cannot use it up."""
    per_identity: TokenBuckets
    per_pod: TokenBuckets
    identities_in_flight: InFlight
    """Calls of one identity, which may be a Deployment of a thousand pods that start together."""
    connections_per_source: int = 256
    """TCP connections. A sidecar has one; a node may hide some pods behind its own address."""

    @classmethod
    def usual(cls, monotonic: Monotonic) -> "Limits":
        return cls(
            unread=InFlight(1024, 16, reason="unread"),
            in_flight=InFlight(64, 16),
            per_source=TokenBuckets(100.0, 200, monotonic, reason="rate_per_source"),
            bad_tokens=TokenBuckets(1.0, 50, monotonic, reason="rate_bad_tokens"),
            in_all=TokenBuckets(300.0, 600, monotonic, size=1, reason="rate"),
            per_identity=TokenBuckets(100.0, 300, monotonic, reason="rate_per_identity"),
            per_pod=TokenBuckets(1.0, 10, monotonic, reason="rate_per_pod"),
            identities_in_flight=InFlight(64, 48, reason="in_flight_identity"),
        )
