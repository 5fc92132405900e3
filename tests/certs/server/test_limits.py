"""Limits refuse at once, refill with time and remember a bounded number of callers."""

import pytest

from certs.server.limits import InFlight, TokenBuckets
from certs.server.refusals import TooMany


class Hand:
    """A monotonic clock that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_allows_a_burst_and_then_its_rate() -> None:
    clock = Hand()
    buckets = TokenBuckets(per_second=2.0, burst=3, monotonic=clock)
    for _ in range(3):
        buckets.take("pod")
    with pytest.raises(TooMany):
        buckets.take("pod")
    buckets.take("another pod")
    clock.now = 0.5
    buckets.take("pod")
    with pytest.raises(TooMany):
        buckets.take("pod")
    clock.now = 1e6
    for _ in range(3):
        buckets.take("pod")
    with pytest.raises(TooMany):
        buckets.take("pod")


def test_trying_on_while_refused_does_not_lengthen_the_wait() -> None:
    clock = Hand()
    buckets = TokenBuckets(per_second=1.0, burst=1, monotonic=clock)
    buckets.take("pod")
    for tenth in range(1, 10):
        clock.now = tenth / 10
        with pytest.raises(TooMany):
            buckets.take("pod")
    clock.now = 1.01
    buckets.take("pod")


@pytest.mark.attack_row(31)
def test_ten_thousand_pods_take_no_more_memory_than_allowed() -> None:
    buckets = TokenBuckets(per_second=1.0, burst=1, monotonic=Hand(), size=100)
    for number in range(10_000):
        buckets.take(str(number))
    assert len(buckets) == 100


def test_a_place_is_free_again_after_a_failure() -> None:
    places = InFlight(1, per_source=1)
    with pytest.raises(ZeroDivisionError), places.one("10.0.0.7"):
        raise ZeroDivisionError
    with places.one("10.0.0.7"), pytest.raises(TooMany), places.one("10.0.0.8"):
        pass
    assert places.now == 0


def test_one_source_cannot_take_every_place() -> None:
    places = InFlight(10, per_source=2)
    with places.one("10.0.0.7"), places.one("10.0.0.7"):
        with pytest.raises(TooMany, match="in_flight_per_source"), places.one("10.0.0.7"):
            pass
        with places.one("10.0.0.8"):
            assert places.now == 3
    with places.one("10.0.0.7"):
        pass
