"""When to renew: half the life, spread out, never hot and never too late."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.client.renewal import (
    FLOOR_S,
    ask_for_addresses_after_s,
    longest_pause_s,
    pause_s,
    renew_after_s,
)
from kit.backoff import Backoff

lifetimes = st.floats(0, 1e7, allow_nan=False)


@given(lifetimes)
def test_it_is_half_the_life_give_or_take_a_tenth_or_the_floor(lifetime_s: float) -> None:
    after_s = renew_after_s(lifetime_s)
    assert after_s == FLOOR_S or 0.45 * lifetime_s <= after_s <= 0.55 * lifetime_s


@given(st.floats(2, 1e7))
def test_a_leaf_of_seconds_is_still_renewed_before_it_ends(lifetime_s: float) -> None:
    assert renew_after_s(lifetime_s) < lifetime_s


@pytest.mark.fault_row("clock-skew")
@given(st.floats(-1e6, 1, allow_nan=False))
def test_a_leaf_that_came_too_late_makes_no_hot_loop(lifetime_s: float) -> None:
    assert renew_after_s(lifetime_s) >= FLOOR_S
    assert longest_pause_s(lifetime_s) >= FLOOR_S


@given(lifetimes, st.floats(0, 1e6))
def test_pauses_are_never_hot_and_short_against_the_life(lifetime_s: float, drawn: float) -> None:
    assert pause_s(drawn) >= FLOOR_S / 4
    assert longest_pause_s(lifetime_s) <= max(FLOOR_S, lifetime_s / 10)


@pytest.mark.fault_row("renewal-stampede")
def test_pods_that_started_together_do_not_come_back_together() -> None:
    times = sorted(renew_after_s(3600) for _ in range(500))
    busiest = max(sum(t <= u < t + 1 for u in times) for t in times)
    assert busiest <= 15, "500 calls over six minutes, not in one second"


@pytest.mark.fault_row("control-plane-down")
@given(st.floats(60, 86_400))
def test_an_outage_of_a_third_of_the_life_is_survived(lifetime_s: float) -> None:
    now = renew_after_s(lifetime_s, lambda _low, high: high)
    backoff = Backoff(0.5, longest_pause_s(lifetime_s), draw=lambda _low, high: high)
    back_at = now + lifetime_s / 3
    while now < back_at:
        now += pause_s(backoff.next_s())
    assert now < lifetime_s


@given(st.floats(60, 86_400))
def test_a_leaf_without_addresses_is_replaced_soon_and_then_ever_later(lifetime_s: float) -> None:
    times = [ask_for_addresses_after_s(lifetime_s, n) for n in range(1, 40)]
    assert times[0] == 2 * FLOOR_S
    assert all(t >= FLOOR_S for t in times)
    assert times[-1] >= 0.45 * lifetime_s
