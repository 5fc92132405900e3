"""Which endpoint a link goes to: properties of whole Services, times of affinity and ejection."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.trust.identity import WorkloadIdentity
from sidecar.dataplane.choose import (
    EJECT_LONGEST_S,
    Affinity,
    Choice,
    Ejections,
    choose,
    eligible,
)
from sidecar.directory import Endpoint, Own, Service, Workload

API = WorkloadIdentity("cluster.local", "shop", "api")
OWN = Own("shop", "web-0", "u", frozenset({"10.0.0.1"}), node="n1", zone="z1")


def endpoint(
    number: int,
    node: str = "",
    zone: str = "",
    ready: bool = True,
    serving: bool = True,
    terminating: bool = False,
) -> Endpoint:
    ip = f"10.0.1.{number}"
    pod = Workload(f"u{number}", "shop", f"api-{number}", API, (ip,), node=node, zone=zone)
    return Endpoint(ip, {80: 8080}, pod, ready, serving, terminating)


def service(
    *endpoints: Endpoint, affinity_s: int = 0, near: str = "", publish: bool = False
) -> Service:
    return Service(
        "shop",
        "api",
        ("10.96.0.1",),
        frozenset({80}),
        endpoints,
        affinity_timeout_s=affinity_s,
        traffic_distribution=near,
        publish_not_ready=publish,
    )


class Chooser:
    """One sidecar's memory."""

    def __init__(self, seed: int = 1) -> None:
        self.affinity, self.ejections, self.random = Affinity(), Ejections(), Random(seed)
        self.open: dict[tuple[str, int], int] = {}

    def __call__(self, it: Service, now: float = 0.0, tried: tuple[str, ...] = ()) -> Choice | None:
        return choose(
            it,
            80,
            OWN,
            now=now,
            affinity=self.affinity,
            ejections=self.ejections,
            open_links=lambda ip, port: self.open.get((ip, port), 0),
            random=self.random,
            tried=tried,
        )


endpoints = st.lists(
    st.builds(
        endpoint,
        st.integers(1, 250),
        st.sampled_from(["", "n1", "n2"]),
        st.sampled_from(["", "z1", "z2"]),
        st.booleans(),
        st.booleans(),
        st.booleans(),
    ),
    max_size=6,
    unique_by=lambda e: e.ip,
)
preferences = st.sampled_from(["", "PreferSameNode", "PreferSameZone", "PreferClose"])


@given(endpoints, preferences, st.booleans(), st.integers(0, 99), st.data())
def test_what_is_chosen_is_always_eligible_and_never_tried_twice(
    some: list[Endpoint], near: str, publish: bool, seed: int, data: st.DataObject
) -> None:
    it = service(*some, near=near, publish=publish)
    tried = tuple(data.draw(st.sets(st.sampled_from([e.ip for e in some]))) if some else ())
    chooser = Chooser(seed)
    for e in some:
        if data.draw(st.booleans()):
            chooser.ejections.failed(e.ip, 8080, 0.0)
    chosen = chooser(it, 0.5, tried)
    left = [e for e in eligible(it, 80) if e.ip not in tried]
    if chosen is None:
        assert not left
    else:
        assert chosen.endpoint in left
        assert chosen.port == 8080
        fit = [e for e in left if not chooser.ejections.out(e.ip, 8080, 0.5)]
        assert chosen.endpoint in (fit or left), "an ejected one only if all are"


@given(endpoints)
def test_terminating_endpoints_serve_only_when_none_is_ready(some: list[Endpoint]) -> None:
    found = eligible(service(*some), 80)
    ready = [e for e in some if e.ready and not e.terminating]
    assert found == (ready or [e for e in some if e.serving and e.terminating])
    assert eligible(service(*some, publish=True), 80) == some


def test_a_port_that_the_service_does_not_have_has_no_endpoint() -> None:
    assert eligible(service(endpoint(1)), 81) == []


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 99))
def test_of_two_the_one_with_fewer_open_links_is_chosen(one: int, two: int, seed: int) -> None:
    chooser = Chooser(seed)
    chooser.open = {("10.0.1.1", 8080): one, ("10.0.1.2", 8080): two}
    chosen = chooser(service(endpoint(1), endpoint(2)))
    assert chosen is not None and chosen.why == "least-open"
    if one != two:
        assert chosen.endpoint.ip == ("10.0.1.1" if one < two else "10.0.1.2")


def test_links_that_stay_open_spread_evenly() -> None:
    chooser, it = Chooser(7), service(*(endpoint(n) for n in range(1, 11)))
    for _ in range(1000):
        chosen = chooser(it)
        assert chosen is not None
        key = chosen.endpoint.ip, chosen.port
        chooser.open[key] = chooser.open.get(key, 0) + 1
    assert max(chooser.open.values()) - min(chooser.open.values()) <= 5


# --- affinity -------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.0, 9.9), max_size=20), st.integers(0, 99))
def test_links_within_the_timeout_of_the_one_before_go_to_the_same_endpoint(
    waits: list[float], seed: int
) -> None:
    chooser, now = Chooser(seed), 100.0
    it = service(*(endpoint(n) for n in range(1, 9)), affinity_s=10)
    first = chooser(it, now)
    assert first is not None
    for wait in waits:
        now += wait
        again = chooser(it, now)
        assert again is not None
        assert (again.endpoint, again.why) == (first.endpoint, "affinity")


def test_affinity_ends_with_its_timeout_and_when_its_endpoint_is_gone() -> None:
    chooser, both = Chooser(), service(endpoint(1), endpoint(2), affinity_s=10)
    first = chooser(both, 0.0)
    assert first is not None
    late = chooser(both, 10.0)
    assert late is not None and late.why != "affinity"
    gone = service(*(e for e in both.endpoints if e.ip != late.endpoint.ip), affinity_s=10)
    other = chooser(gone, 11.0)
    assert other is not None and other.endpoint.ip != late.endpoint.ip
    back = chooser(both, 12.0)
    assert back is not None and back.endpoint == other.endpoint, "it stays where it went"


# --- ejection -------------------------------------------------------------------------------------


@given(st.integers(1, 40))
def test_each_failure_in_a_row_doubles_the_time_out_up_to_a_minute(failures: int) -> None:
    ejections = Ejections()
    for _ in range(failures):
        ejections.failed("10.0.1.1", 80, 1000.0)
    sits_out_s = min(EJECT_LONGEST_S, 2.0 ** (failures - 1))
    assert ejections.out("10.0.1.1", 80, 1000.0 + sits_out_s - 0.01)
    assert not ejections.out("10.0.1.1", 80, 1000.0 + sits_out_s)
    assert not ejections.out("10.0.1.2", 80, 1000.0)
    ejections.worked("10.0.1.1", 80)
    ejections.failed("10.0.1.1", 80, 2000.0)
    assert not ejections.out("10.0.1.1", 80, 2001.0), "one success forgives all"


def test_what_is_long_past_is_forgotten() -> None:
    ejections = Ejections()
    ejections.failed("10.0.1.1", 80, 0.0)
    ejections.forget_before(30.0)
    ejections.failed("10.0.1.1", 80, 30.0)
    assert ejections.out("10.0.1.1", 80, 31.9), "still counted as the second failure"
    ejections.forget_before(1000.0)
    ejections.failed("10.0.1.1", 80, 1000.0)
    assert not ejections.out("10.0.1.1", 80, 1001.0)


# --- node and zone --------------------------------------------------------------------------------

FAR, ZONE, NODE = endpoint(1, "n2", "z2"), endpoint(2, "n3", "z1"), endpoint(3, "n1", "z1")


@pytest.mark.parametrize(
    ("near", "offered", "expected", "why"),
    [
        ("PreferSameNode", (FAR, ZONE, NODE), (NODE,), "same-node:only"),
        ("PreferSameNode", (FAR, ZONE), (ZONE,), "same-zone:only"),
        ("PreferSameZone", (FAR, ZONE, NODE), (ZONE, NODE), "same-zone:least-open"),
        ("PreferClose", (FAR, ZONE), (ZONE,), "same-zone:only"),
        ("PreferSameZone", (FAR,), (FAR,), "only"),
        ("", (FAR, ZONE, NODE), (FAR, ZONE, NODE), "least-open"),
    ],
)
def test_traffic_distribution_prefers_what_is_near_and_falls_back(
    near: str, offered: tuple[Endpoint, ...], expected: tuple[Endpoint, ...], why: str
) -> None:
    ips = {e.ip for e in expected}
    for seed in range(20):
        chosen = Chooser(seed)(service(*offered, near=near))
        assert chosen is not None
        assert chosen.endpoint.ip in ips
        assert chosen.why == why
