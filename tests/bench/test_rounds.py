"""A whole small run, over no proxy and over real HAProxys."""

import os
import shutil
from pathlib import Path

import pytest

from bench.figures import figures
from bench.haproxy import HaproxyPair
from bench.proxies import NoProxy, Site
from bench.rounds import Bench, Plan

TINY = Plan(
    rounds=2,
    requests=200,
    connections=40,
    bulk_bytes=2_000_000,
    latency_runs=1,
    latency_s=0.1,
    idle_links=10,
    kept_alive=8,
    settle_s=0.05,
)


@pytest.mark.skipif(
    shutil.which("haproxy", path="/usr/sbin:/usr/bin") is None, reason="needs haproxy"
)
def test_a_run_gives_each_proxy_a_sample_per_round_and_leaves_nothing_behind(site: Site) -> None:
    pair = HaproxyPair(site)
    bench = Bench([NoProxy(site), pair], TINY, site.cpus, app_pid=os.getpid())
    try:
        bench.start()
        progress = list(bench.measure())
        pids = pair.pids()
    finally:
        bench.stop()
    assert progress == ["idle links", "round 1 of 2", "round 2 of 2"]
    for name in ("cpu_per_request", "cpu_per_connection", "cpu_per_gb", "p99_added"):
        assert list(bench.samples[name]) == ["haproxy"], name
        assert len(bench.samples[name]["haproxy"]) == 2, name
    for name in ("requests_per_second", "connections_per_second", "p50", "p99"):
        assert {proxy: len(got) for proxy, got in bench.samples[name].items()} == {
            "none": 2,
            "haproxy": 2,
        }, name
    assert len(pids) == 2
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    costs = {one.kind.name: one.values["haproxy"].median for one in figures(bench.samples)}
    assert costs["memory_idle"] > costs["memory_idle_anonymous"] > 0


def test_the_pairs_take_turns_at_going_first(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever goes first always, always meets the machine in the same mood."""
    went: list[str] = []
    first, second = NoProxy(site), NoProxy(site)
    first.name, second.name = "first", "second"
    bench = Bench([first, second], TINY, site.cpus, app_pid=os.getpid())
    for load in ("_requests", "_connections", "_bulk", "_latency"):
        monkeypatch.setattr(bench, load, lambda proxy: went.append(proxy.name))
    list(bench.measure())
    assert went == ["first", "second"] * 4 + ["second", "first"] * 4
