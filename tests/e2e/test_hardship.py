"""Faults of machines and networks, made for real: packets dropped, processes stopped, nothing left."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.e2e.mesh import DEADLINE_S, Mesh, Running, now, until
from tests.e2e.objects import MESH, pod, serving

CLIENT = f"{MESH}/client"
CUT = (
    "table inet cut { chain in { type filter hook input priority -300; policy drop; }; "
    "chain out { type filter hook output priority -300; policy drop; }; }"
)


@pytest.fixture(scope="module", autouse=True)
def servers(mesh: Mesh) -> Iterator[None]:
    echo = serving("echo", 7001)
    made = [pod(name, echo) for name in ("vanishing", "frozen", "scarce", "leaving", "staying")]
    made[3]["spec"]["terminationGracePeriodSeconds"] = 20
    mesh.apply(*made)
    yield
    mesh.delete(*made)


def apps(*argv: object) -> list[str]:
    return ["python", "-m", "tests.e2e.apps", *map(str, argv)]


def opened(running: Running) -> Running:
    assert json.loads(running.line()) == {"open": True}
    return running


@pytest.mark.fault_row("half-open")
def test_a_peer_that_vanishes_is_noticed_idle_and_with_data_under_way(mesh: Mesh) -> None:
    name, since = f"{MESH}/vanishing", now()
    host = mesh.ip(name)
    inside = ("nsenter", "-t", str(mesh.proxy_pid(name)), "-n")
    with ExitStack() as stack:
        idle, busy = (
            opened(stack.enter_context(mesh.in_pod(CLIENT, *apps(what, host, 7001))))
            for what in ("hold", "trickle")
        )
        mesh.node(*inside, "nft", CUT)
        try:
            for each in (idle, busy):
                ended = json.loads(each.line(2 * DEADLINE_S))["ended"]
                assert ended in ("ConnectionResetError", "BrokenPipeError")
        finally:
            mesh.node(*inside, "nft", "delete", "table", "inet", "cut")
    links = mesh.eventually_links(since, 2, reason="peer_lost", source=CLIENT)
    assert {link["close"] for link in links} == {"lost"}
    until(lambda: mesh.attempt(CLIENT, host, 7001, "hello")["got"] == "hello", "it is back")


@pytest.mark.fault_row("cpu-starvation")
@pytest.mark.parametrize("stopped", ["frozen", "client"])
def test_a_proxy_that_stands_still_for_two_seconds_fails_nobody(mesh: Mesh, stopped: str) -> None:
    host, pid = mesh.ip(f"{MESH}/frozen"), str(mesh.proxy_pid(f"{MESH}/{stopped}"))
    with ExitStack() as stack:
        held = opened(stack.enter_context(mesh.in_pod(CLIENT, *apps("drip", host, 7001, 30))))
        mesh.node("kill", "-STOP", pid)
        try:
            burst = stack.enter_context(mesh.in_pod(CLIENT, *apps("burst", host, 7001, 40)))
            time.sleep(2.0)
        finally:
            mesh.node("kill", "-CONT", pid)
        counted = json.loads(burst.line())
        assert json.loads(held.line()) == {"good": 30, "ended": "end"}
    assert counted == {"answered": 40}
    if stopped == "frozen":
        seen = json.loads(
            mesh.cluster.exec(
                f"{MESH}/frozen",
                ("python", "-m", "sidecar.admin", "/loop"),
                container="podlink-proxy",
            ).stdout
        )
        assert seen["stalls"] >= 1 and seen["worst_s"] > 1


@pytest.mark.fault_row("fd-exhaustion")
def test_without_descriptors_open_links_live_and_new_ones_come_again(mesh: Mesh) -> None:
    name = f"{MESH}/scarce"
    host, pid = mesh.ip(name), str(mesh.proxy_pid(name))
    with ExitStack() as stack:
        held = opened(stack.enter_context(mesh.in_pod(CLIENT, *apps("drip", host, 7001, 60))))
        used = int(mesh.node("sh", "-c", f"ls /proc/{pid}/fd | sort -n | tail -1")) + 2
        before = mesh.node(
            "prlimit", "--pid", pid, "--nofile", "--output=SOFT,HARD", "--noheadings"
        )
        soft, hard = before.split()
        mesh.node("prlimit", "--pid", pid, f"--nofile={used}:{hard}")
        began, cpu = time.monotonic(), _cpu_s(mesh, pid)
        counted = json.loads(mesh.run(CLIENT, *apps("burst", host, 7001, 60)))
        assert sum(counted.values()) == 60 and counted.get("answered", 0) < 60
        assert _cpu_s(mesh, pid) - cpu < 0.5 * (time.monotonic() - began) + 0.5, "it spins"
        mesh.node("prlimit", "--pid", pid, f"--nofile={soft}:{hard}")
        until(lambda: mesh.attempt(CLIENT, host, 7001, "hello")["got"] == "hello", "it is back")
        assert json.loads(held.line()) == {"good": 60, "ended": "end"}


def _cpu_s(mesh: Mesh, pid: str) -> float:
    fields = mesh.node("cat", f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


@pytest.mark.fault_row("drain")
def test_sigterm_lets_a_long_link_finish_and_the_apps_own_links_go_on(mesh: Mesh) -> None:
    name = f"{MESH}/leaving"
    host, pid = mesh.ip(name), str(mesh.proxy_pid(name))
    with mesh.in_pod(CLIENT, *apps("drip", host, 7001, 50)) as long:
        opened(long)
        mesh.node("kill", "-TERM", pid)
        until(lambda: mesh.attempt(CLIENT, host, 7001, "hello")["got"] != "hello", "no new link")
        for number in range(3):  # the app has not gone: its own calls work
            word = f"out-{number}"
            assert mesh.attempt(name, mesh.ip(f"{MESH}/staying"), 7001, word)["got"] == word
        assert json.loads(long.line()) == {"good": 50, "ended": "end"}
    until(lambda: _last_exit(mesh, name) is not None, "the proxy has ended")
    assert _last_exit(mesh, name) == 0
    until(lambda: mesh.attempt(CLIENT, host, 7001, "hello")["got"] == "hello", "it is there again")


def _last_exit(mesh: Mesh, name: str) -> int | None:
    statuses = mesh.cluster.get("Pod", name)["status"]["initContainerStatuses"]
    proxy = next(s for s in statuses if s["name"] == "podlink-proxy")
    ended = (proxy.get("lastState") or {}).get("terminated")
    return None if ended is None else int(ended["exitCode"])
