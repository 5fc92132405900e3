"""Counts handshakes: how many, with what result, and how long those took that came about."""

from bisect import bisect_left
from typing import Final

from kit.exposition import Family, Labels
from sidecar.metrics import catalogue as c

BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class HandshakeMeter:
    """`ended` is called once per handshake. `reporter`: `source` dialled, `destination` accepted."""

    def __init__(self) -> None:
        self._results: dict[Labels, int] = {}
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    def ended(self, reporter: str, result: str, took_s: float) -> None:
        """`result` is `ok` or a reason."""
        key = (reporter, result)
        self._results[key] = self._results.get(key, 0) + 1
        if result == "ok":
            counts = self._counts.get(reporter)
            if counts is None:
                counts = self._counts[reporter] = [0] * (len(BUCKETS_S) + 1)
            counts[bisect_left(BUCKETS_S, took_s)] += 1
            self._sums[reporter] = self._sums.get(reporter, 0.0) + took_s

    def families(self) -> list[Family]:
        seconds = Family(c.HANDSHAKE_SECONDS)
        for reporter, counts in sorted(self._counts.items()):
            total = 0
            for end, count in zip((*map(str, BUCKETS_S), "+Inf"), counts, strict=True):
                total += count
                seconds.samples[reporter, end] = total
            seconds.sums[reporter,] = self._sums[reporter]
        return [Family(c.HANDSHAKES, dict(self._results)), seconds]
