"""What one address may ask of the webhook's port, which every pod of the cluster may reach. No I/O.

The API server comes from one address or a few and shows no certificate, so it cannot be told from a pod
that floods the port. The bounds are such that no API server feels them: controllers make some tens of
pods a second. Whoever is over one is answered 429, which the API server takes for a failure of the
webhook: then the guard, or failurePolicy Fail, keeps the pod out.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from kit.buckets import Buckets
from kit.clock import Monotonic

REVIEWS_PER_S, REVIEWS_BURST = 100.0, 1000.0
AFRESH_PER_S, AFRESH_BURST = 5.0, 50.0
"""Questions for a namespace that our watch has already: each is a call to the API server."""
SOURCE_BYTES, ALL_BYTES = 16 << 20, 96 << 20
"""Bodies that are being read or judged at one time."""
BODY_WITHIN_S = 5.0
"""The API server sends at once; whoever takes longer holds room that others need."""


class TooMuch(Exception):
    """Not now. `reason` is a stable slug, `tell` whether to log it: no source can flood the log."""

    def __init__(self, reason: str, tell: bool) -> None:
        super().__init__(reason)
        self.reason, self.tell = reason, tell


class Limits:
    def __init__(self, monotonic: Monotonic) -> None:
        self._monotonic = monotonic
        self._reviews = Buckets(REVIEWS_PER_S, REVIEWS_BURST)
        self._afresh = Buckets(AFRESH_PER_S, AFRESH_BURST)
        self._told = Buckets(0.1, 1.0)
        self._bytes: Counter[str] = Counter()

    @contextmanager
    def review(self, source: str, size_bytes: int) -> Iterator[None]:
        """Room for one review of at most this size. Raises TooMuch."""
        if not self._reviews.take(source, self._monotonic()):
            raise self._too_much("review_rate", source)
        if (
            self._bytes[source] + size_bytes > SOURCE_BYTES
            or self._bytes.total() + size_bytes > ALL_BYTES
        ):
            raise self._too_much("review_bytes", source)
        self._bytes[source] += size_bytes
        try:
            yield
        finally:
            self._bytes[source] -= size_bytes
            if not self._bytes[source]:
                del self._bytes[source]

    def ask_afresh(self, source: str) -> None:
        """Raises TooMuch."""
        if not self._afresh.take(source, self._monotonic()):
            raise self._too_much("asked_afresh", source)

    def _too_much(self, reason: str, source: str) -> TooMuch:
        return TooMuch(reason, self._told.take(source, self._monotonic()))
