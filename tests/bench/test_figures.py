"""Medians, spreads, ratios and verdicts of the bench."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.figures import KINDS, Figure, Kind, Value, added, figures, summarise

LOWER = Kind("cost", "Cost", "us", of_envoy=0.8)
HIGHER = Kind("speed", "Speed", "1/s", better="higher", of_envoy=3.0)
BOUND = Kind("size", "Size", "MiB", of_envoy=0.65, absolute=45.0)


def figure(kind: Kind, **medians: float) -> Figure:
    return Figure(kind, {name: Value(median, None) for name, median in medians.items()})


def test_one_wild_round_does_not_move_the_median() -> None:
    assert summarise([30.0, 31.0, 900.0]).median == 31.0


def test_the_spread_is_half_the_range_as_a_share_of_the_median() -> None:
    assert summarise([90.0, 100.0, 110.0]).spread == pytest.approx(0.1)


def test_one_round_has_no_spread() -> None:
    assert summarise([5.0]).spread is None


@given(st.lists(st.floats(0.001, 1e9), min_size=1))
def test_the_median_lies_among_the_samples(samples: list[float]) -> None:
    value = summarise(samples)
    assert min(samples) <= value.median <= max(samples)
    assert value.spread is None or value.spread >= 0


@pytest.mark.parametrize(
    ("measured", "met"),
    [
        (figure(LOWER, podlink=80.0, envoy=100.0), True),
        (figure(LOWER, podlink=81.0, envoy=100.0), False),
        (figure(HIGHER, podlink=300.0, envoy=100.0), True),
        (figure(HIGHER, podlink=299.0, envoy=100.0), False),
        (figure(BOUND, podlink=44.0, envoy=70.0), True),
        (figure(BOUND, podlink=46.0, envoy=100.0), False),  # small beside Envoy, yet too large
        (figure(BOUND, podlink=44.0, envoy=50.0), False),  # small, yet not beside Envoy
        (figure(Kind("p99_added", "", "us", of_envoy=1.0), podlink=-3.0, envoy=-2.0), True),
    ],
)
def test_a_goal_is_met_only_if_every_bound_holds(measured: Figure, met: bool) -> None:
    assert measured.met is met


@pytest.mark.parametrize(
    "measured",
    [
        figure(LOWER, envoy=100.0),
        figure(LOWER, podlink=80.0),
        figure(Kind("cost", "Cost", "us"), podlink=80.0, envoy=100.0),
    ],
)
def test_what_was_not_measured_is_neither_met_nor_missed(measured: Figure) -> None:
    assert measured.met is None


def test_the_ratio_is_podlink_to_envoy() -> None:
    assert figure(LOWER, podlink=30.0, envoy=40.0, haproxy=1.0).ratio == 0.75


def test_there_is_no_ratio_to_nothing() -> None:
    assert figure(LOWER, podlink=30.0, envoy=0.0).ratio is None
    assert figure(LOWER, podlink=30.0, envoy=-1.0).ratio is None


def test_added_latency_compares_each_round_with_its_own_bare_path() -> None:
    assert added([300.0, 900.0], [100.0, 800.0]) == [200.0, 100.0]


def test_rounds_that_do_not_pair_up_are_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        added([300.0], [100.0, 800.0])


def test_figures_come_in_the_order_of_the_table_and_only_if_measured() -> None:
    last, first = KINDS[-1].name, KINDS[0].name
    got = figures({last: {"envoy": [1.0]}, first: {"envoy": [1.0], "podlink": []}})
    assert [one.kind.name for one in got] == [first, last]
    assert "podlink" not in got[0].values


def test_the_json_form_holds_what_a_reader_of_the_file_needs() -> None:
    measured = Figure(LOWER, {"podlink": Value(30.06, 0.0512), "envoy": Value(40.0, None)})
    assert json.loads(json.dumps(measured.as_json())) == {
        "name": "cost",
        "title": "Cost",
        "unit": "us",
        "better": "lower",
        "none": None,
        "podlink": 30.1,
        "envoy": 40.0,
        "haproxy": None,
        "spread": {"podlink": 0.051},
        "ratio": 0.751,
        "goal": "<= 0.8 x Envoy",
        "met": True,
    }


def test_a_goal_of_two_bounds_says_both() -> None:
    assert BOUND.goal == "<= 0.65 x Envoy, <= 45 MiB"
    assert HIGHER.goal == ">= 3 x Envoy"


def test_names_of_figures_are_unique() -> None:
    names = [kind.name for kind in KINDS]
    assert len(set(names)) == len(names)
