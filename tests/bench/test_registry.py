"""The registry's bench: its arithmetic, its cluster, and a short form of the real run."""

import json

import pytest

from bench.registry import cluster
from bench.registry.__main__ import run
from bench.registry.cluster import Churn, Size
from bench.registry.measure import Missed, latencies_ms, percentile

MS = 1_000_000
A, B, C = ("10.0.0.1",), ("10.0.0.2",), ("10.0.0.3",)


def test_a_change_counts_from_when_it_was_told_to_when_it_arrived() -> None:
    changes = [(0, A), (100 * MS, B)]
    notes = {1: [(5 * MS, A), (130 * MS, B)], 2: [(10 * MS, A), (101 * MS, B)]}
    assert latencies_ms(changes, notes) == [5.0, 30.0, 10.0, 1.0]


def test_who_was_told_only_the_newest_has_been_told_what_came_before() -> None:
    changes = [(0, A), (100 * MS, B), (200 * MS, C)]
    assert latencies_ms(changes, {1: [(250 * MS, C)]}) == [250.0, 150.0, 50.0]


def test_what_was_told_before_the_change_does_not_count_and_a_missed_one_fails() -> None:
    with pytest.raises(Missed):
        latencies_ms([(100 * MS, A)], {1: [(50 * MS, A)]})
    with pytest.raises(Missed):
        latencies_ms([(0, A), (100 * MS, B)], {1: [(5 * MS, A)]})


def test_the_percentile_is_one_of_the_values() -> None:
    assert percentile(list(map(float, range(100))), 0.99) == 99.0
    assert percentile([7.0], 0.5) == 7.0


def test_the_cluster_is_of_the_size_that_was_asked_for() -> None:
    found: dict[str, list[cluster.Raw]] = {}
    for path, raw in cluster.objects(Size(3_000, 100, 50)):
        found.setdefault(path, []).append(raw)
    assert len(found[cluster.PODS]) == 3_000
    assert len(found[cluster.SERVICES]) == 100
    ips = [pod["status"]["podIP"] for pod in found[cluster.PODS]]
    assert len(set(ips)) == 3_000 - 50 + 1  # all sidecars of the bench live on loopback


def test_the_churn_stays_within_its_bounds_and_never_repeats_a_set() -> None:
    churn, seen = Churn(), set()
    for _ in range(200):
        added, removed = churn.rescale()
        assert added or removed
        assert 85 <= len(churn.numbers) <= 115
        assert not set(removed) & set(churn.numbers)
        seen.add(tuple(churn.numbers))
    assert len(seen) == 200


@pytest.mark.fault_row("endpoint-churn")
def test_a_small_cluster_churns_and_every_change_reaches_every_sidecar() -> None:
    report = run(Size(pods=400, services=20, sidecars=8), seconds=3, relabel_every_s=2)
    figures = {one["name"]: one for one in report["figures"]}  # type: ignore[attr-defined]
    assert report["plan"]["samples"] == 3 * 8  # type: ignore[index]
    assert figures["lists_per_kind"]["podlink"] == 1
    assert figures["sidecar_growth"]["met"]
    assert json.dumps(report)
