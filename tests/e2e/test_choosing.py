"""Which pod behind a Service a link goes to: affinity, turns, hashes, nearness; and what fails."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from sidecar.dataplane.tunnels.acquire import FRESH_S
from tests.e2e.mesh import Mesh, now, until
from tests.e2e.objects import Object, pod, service, serving

NAMES = ("tills-0", "tills-1", "tills-2")
SAME_NODE = {"trafficDistribution": "PreferSameNode"}
ZONE = "topology.kubernetes.io/zone"


def _till(name: str, zone: str = "") -> Object:
    made = pod(name, serving("echo", 7001))
    made["metadata"]["labels"] |= {"app": "tills", **({ZONE: zone} if zone else {})}
    return made


def _balanced(name: str, how: str, **spec: Any) -> Object:
    made = service(name, 7001, app="tills", **spec)
    made["metadata"]["annotations"] = {"config.podlink.dev/balance": how} if how else {}
    return made


@pytest.fixture(scope="module", autouse=True)
def pods(mesh: Mesh) -> Iterator[None]:
    caller = pod("zoned-caller")
    caller["metadata"]["labels"][ZONE] = "east"
    made = [
        _balanced("sticky", "", sessionAffinity="ClientIP"),
        _balanced("turns", "round-robin"),
        _balanced("hashed", "source-hash"),
        _balanced("least", ""),
        _balanced("zoned", "", trafficDistribution="PreferSameZone"),
        _balanced("noded", "", **SAME_NODE),
        *(_till(name, zone) for name, zone in zip(NAMES, ("west", "east", "west"), strict=True)),
        caller,
        pod("fresh-caller"),
    ]
    mesh.apply(*made)
    yield
    mesh.delete(*made)


def _went(mesh: Mesh, name: str, count: int, source: str = "mesh/client") -> list[tuple[str, str]]:
    """Pod and reason of each of `count` links in a row to the Service, oldest first."""
    since = now()
    for _ in range(count):
        mesh.talk(source, name, 7001, "hello")
    links = mesh.eventually_links(since, count, sides=2, service=f"{name}.mesh")
    links.sort(key=lambda link: int(link["start_unix_ns"]))
    return [(link["destination"]["pod"], link["endpoint_choice"]) for link in links]


def test_in_turn_each_pod_gets_its_share(mesh: Mesh) -> None:
    went = _went(mesh, "turns", 9)
    assert {why for _, why in went} == {"round-robin"}
    assert sorted(to for to, _ in went) == sorted(f"mesh/{name}" for name in NAMES * 3)


def test_by_hash_a_source_stays_with_its_pod_and_another_may_have_another(mesh: Mesh) -> None:
    for source in ("mesh/client", "mesh/zoned-caller"):
        went = _went(mesh, "hashed", 4, source)
        assert len(set(went)) == 1 and went[0][1] == "source-hash"


def test_one_zone_and_one_node_are_preferred(mesh: Mesh) -> None:
    assert set(_went(mesh, "zoned", 4, "mesh/zoned-caller")) == {("mesh/tills-1", "same-zone:only")}
    # A pod that does not know its zone takes them all.
    assert {why for _, why in _went(mesh, "zoned", 4)} == {"least-open"}
    assert {why for _, why in _went(mesh, "noded", 4)} == {"same-node:least-open"}


def test_hints_of_the_slices_are_followed_against_the_pods_own_zones(mesh: Mesh) -> None:
    hinted = _balanced("hinted", "")
    del hinted["spec"]["selector"]
    by_hand = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "hinted",
            "namespace": "mesh",
            "labels": {"kubernetes.io/service-name": "hinted"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 7001, "protocol": "TCP"}],
        "endpoints": [
            {
                "addresses": [mesh.ip(f"mesh/{name}")],
                "conditions": {"ready": True},
                "hints": {"forZones": [{"name": zone}]},
            }
            for name, zone in (("tills-0", "east"), ("tills-1", "west"))
        ],
    }
    mesh.apply(hinted, by_hand)
    try:
        until(
            lambda: mesh.attempt("mesh/zoned-caller", "hinted", 7001, "hi")["got"] == "hi", "a link"
        )
        went = _went(mesh, "hinted", 3, "mesh/zoned-caller")
        assert set(went) == {("mesh/tills-0", "zone-hint:only")}
    finally:
        mesh.delete(hinted, by_hand)


def test_affinity_survives_churn_around_it_and_the_restart_of_sidecars(mesh: Mesh) -> None:
    """The pod's own proxy, its peer's proxy, and pods that come and go: the session stays."""
    ((kept, _),) = set(_went(mesh, "sticky", 1))
    assert set(_went(mesh, "sticky", 4)) == {(kept, "affinity")}
    extra = _till("tills-9")
    mesh.apply(extra)
    assert set(_went(mesh, "sticky", 3)) == {(kept, "affinity")}, "one came"
    mesh.delete(extra)
    assert set(_went(mesh, "sticky", 3)) == {(kept, "affinity")}, "one went"

    for proxy_of in (kept, "mesh/client"):
        before = _restarts(mesh, proxy_of)
        mesh.node("kill", "-9", str(mesh.proxy_pid(proxy_of)))
        until(lambda p=proxy_of, n=before: _restarts(mesh, p) > n, f"{proxy_of} restarted")
        until(
            lambda: mesh.attempt("mesh/client", "sticky", 7001, "hi")["got"] == "hi", "links again"
        )
        until(lambda: {to for to, _ in _went(mesh, "sticky", 3)} == {kept}, f"back to {kept}")


def _restarts(mesh: Mesh, name: str) -> int:
    statuses = mesh.cluster.get("Pod", name)["status"]["initContainerStatuses"]
    proxy = next(s for s in statuses if s["name"] == "podlink-proxy")
    return int(proxy["restartCount"]) if proxy["ready"] else 0


BLACKHOLE = (
    "add table inet hole; "
    "add chain inet hole in { type filter hook prerouting priority -400; policy drop; }; "
    "add chain inet hole out { type filter hook output priority -400; policy drop; }"
)


@pytest.mark.fault_row("endpoint-death")
@pytest.mark.fault_row("half-open")
@pytest.mark.parametrize("caller", ["fresh-caller", "client"])
def test_a_pod_that_vanishes_without_a_word_costs_its_service_time_and_no_error(
    caller: str, mesh: Mesh
) -> None:
    """Its address swallows everything. Links move to another endpoint before ACCEPT; the app notices
    nothing but the wait, and after that nobody is sent there. One of the callers has idle tunnels to
    each pod, which nobody has used for a moment: they are asked first."""
    if caller == "client":
        _went(mesh, "turns", 3)
        time.sleep(FRESH_S + 0.2)
    since, pod_pid = now(), str(mesh.pid("mesh/tills-0"))
    enter = ("nsenter", f"--net=/proc/{pod_pid}/ns/net", "nft")
    mesh.node(*enter, BLACKHOLE)
    try:
        for _ in range(6):
            mesh.talk(f"mesh/{caller}", "turns", 7001, "word")
        links = mesh.eventually_links(
            since, 6, sides=2, source=f"mesh/{caller}", service="turns.mesh"
        )
    finally:
        mesh.node(*enter, "delete table inet hole")
    assert {link["verdict"] for link in links} == {"allowed"}
    assert {link["destination"]["pod"] for link in links} == {"mesh/tills-1", "mesh/tills-2"}
    attempts = [int(link["attempts"]) for link in links]
    assert max(attempts) == 2, "it was tried, and given up for another"
    assert attempts.count(2) <= 3, "not by each of them: it sits out"
    until(lambda: "mesh/tills-0" in {to for to, _ in _went(mesh, "turns", 3)}, "it is back")
