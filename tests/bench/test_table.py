"""The printed table."""

from bench.figures import Figure, Kind, Value
from bench.table import render

MEASURED = [
    Figure(
        Kind("cost", "CPU per request", "us", of_envoy=0.8),
        {"podlink": Value(30.0, 0.04), "envoy": Value(40.0, 0.1), "haproxy": Value(33.0, None)},
    ),
    Figure(
        Kind("speed", "New connections", "1/s", better="higher", of_envoy=3.0),
        {"none": Value(11512.4, None), "podlink": Value(20.0, None), "envoy": Value(10.0, None)},
    ),
]


def test_a_row_shows_medians_spreads_ratio_goal_and_verdict() -> None:
    row = render(MEASURED).splitlines()[2]
    assert " ".join(row.split()) == (
        "CPU per request us - 30.0 +-4% 40.0 +-10% 33.0 0.75 <= 0.8 x Envoy yes"
    )


def test_a_missed_goal_stands_out() -> None:
    row = render(MEASURED).splitlines()[3]
    assert "11,512" in row
    assert row.endswith("NO")


def test_columns_line_up() -> None:
    head, rule, first, second = render(MEASURED).splitlines()[:4]
    at = head.index("goal")
    assert first[at:].startswith("<= 0.8")
    assert second[at:].startswith(">= 3")
    assert rule[at] == "-"


def test_the_footnotes_say_who_shakes_hands_for_each_connection() -> None:
    assert "full handshake for each new connection" in render(MEASURED)
