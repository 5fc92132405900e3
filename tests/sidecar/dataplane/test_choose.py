"""Which endpoint a link goes to: properties of whole Services, times of affinity and ejection."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.trust.identity import WorkloadIdentity
from sidecar.dataplane.routing import choose as module
from sidecar.dataplane.routing.choose import Choice, Memory, choose, eligible
from sidecar.dataplane.routing.ejections import EJECT_LONGEST_S, PROBE_S, Ejections
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
    hints: tuple[str, ...] = (),
    prefix: str = "10.0.1.",
) -> Endpoint:
    ip = f"{prefix}{number}"
    pod = Workload(f"u{number}", "shop", f"api-{number}", API, (ip,), node=node, zone=zone)
    return Endpoint(ip, {80: 8080}, pod, ready, serving, terminating, frozenset(hints))


def service(
    *endpoints: Endpoint,
    affinity_s: int = 0,
    near: str = "",
    publish: bool = False,
    balance: str = "",
    local: bool = False,
    cluster_ips: tuple[str, ...] = ("10.96.0.1",),
) -> Service:
    return Service(
        "shop",
        "api",
        cluster_ips,
        frozenset({80}),
        endpoints,
        affinity_timeout_s=affinity_s,
        traffic_distribution=near,
        publish_not_ready=publish,
        balance=balance,
        local_only=local,
    )


class Chooser:
    """One sidecar's memory."""

    def __init__(self, seed: int = 1, own: Own = OWN) -> None:
        self.memory, self.ejections, self.random = Memory(), Ejections(), Random(seed)
        self.open: dict[tuple[str, int], int] = {}
        self.own = own

    def __call__(
        self, it: Service, now: float = 0.0, tried: tuple[str, ...] = (), version: int = 0
    ) -> Choice | None:
        return choose(
            it,
            80,
            self.own,
            now=now,
            memory=self.memory,
            ejections=self.ejections,
            open_links=lambda ip, port: self.open.get((ip, port), 0),
            random=self.random,
            tried=tried,
            version=version,
        )

    def ip(self, it: Service, now: float = 0.0, tried: tuple[str, ...] = ()) -> str:
        chosen = self(it, now, tried)
        assert chosen is not None
        return chosen.endpoint.ip


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


balances = st.sampled_from(["", "round-robin", "source-hash"])


@given(endpoints, preferences, balances, st.booleans(), st.integers(0, 99), st.data())
def test_what_is_chosen_is_always_eligible_and_never_tried_twice(
    some: list[Endpoint], near: str, balance: str, publish: bool, seed: int, data: st.DataObject
) -> None:
    it = service(*some, near=near, balance=balance, publish=publish)
    tried = tuple(data.draw(st.sets(st.sampled_from([e.ip for e in some]))) if some else ())
    chooser = Chooser(seed)
    for e in some:
        if data.draw(st.booleans()):
            chooser.ejections.failed(e.ip, 8080, 0.0)
    left = [e for e in eligible(it, 80) if e.ip not in tried]
    fit = [e for e in left if not chooser.ejections.out(e.ip, 8080, 0.5)]
    chosen = chooser(it, 0.5, tried)
    if chosen is None:
        assert not left
    else:
        assert chosen.endpoint in left
        assert chosen.port == 8080
        assert chosen.endpoint in (fit or left), "an ejected one only if all are"


@given(endpoints)
def test_terminating_endpoints_serve_only_when_none_is_ready(some: list[Endpoint]) -> None:
    found = eligible(service(*some), 80)
    ready = [e for e in some if e.ready and not e.terminating]
    assert found == (ready or [e for e in some if e.serving and e.terminating])
    # Published though not ready: but who leaves still comes last.
    staying = [e for e in some if not e.terminating]
    assert eligible(service(*some, publish=True), 80) == (staying or some)


def test_a_dual_stack_service_is_dialled_in_the_version_that_the_app_dialled() -> None:
    both = service(
        endpoint(1), endpoint(1, prefix="fd00::"), cluster_ips=("10.96.0.1", "fd00:a::1")
    )
    assert [e.ip for e in eligible(both, 80, 4)] == ["10.0.1.1"]
    assert [e.ip for e in eligible(both, 80, 6)] == ["fd00::1"]
    assert [e.ip for e in eligible(service(endpoint(1)), 80, 6)] == ["10.0.1.1"], (
        "better than nobody"
    )


@pytest.mark.parametrize(
    ("cluster_ips", "expected"),
    [
        (("10.96.0.1", "fd00:a::1"), "10.0.1.1"),
        (("fd00:a::1", "10.96.0.1"), "fd00::1"),
        ((), "10.0.1.1"),
    ],
)
def test_a_name_prefers_the_version_of_the_services_first_address(
    cluster_ips: tuple[str, ...], expected: str
) -> None:
    both = endpoint(1), endpoint(1, prefix="fd00::")
    assert [e.ip for e in eligible(service(*both, cluster_ips=cluster_ips), 80)] == [expected]
    only = eligible(service(both[1], cluster_ips=("10.96.0.1",)), 80)
    assert [e.ip for e in only] == ["fd00::1"]


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
    first = chooser.ip(both)
    late = chooser(both, 10.0)
    assert late is not None and late.why == "source-hash"
    gone = service(*(e for e in both.endpoints if e.ip != first), affinity_s=10)
    other = chooser.ip(gone, 11.0)
    assert other != first
    back = chooser(both, 12.0)
    assert back is not None and back.endpoint.ip == other, "it stays where it went"


def test_affinity_holds_while_endpoints_come_and_go_around_it() -> None:
    chooser = Chooser()
    first = chooser.ip(service(*(endpoint(n) for n in range(1, 6)), affinity_s=60))
    keeps = next(n for n in range(1, 6) if endpoint(n).ip == first)
    for now, numbers in enumerate(([*range(1, 50)], [keeps, 7], [keeps], [keeps, 8, 9]), 1):
        it = service(*(endpoint(n) for n in sorted(numbers)), affinity_s=60)
        assert chooser.ip(it, float(now)) == first


def test_an_endpoint_whose_sidecar_restarts_gets_its_links_back() -> None:
    chooser, it = Chooser(), service(*(endpoint(n) for n in range(1, 5)), affinity_s=60)
    first = chooser.ip(it)
    chooser.ejections.failed(first, 8080, 1.0)
    aside = chooser.ip(it, 1.0, tried=(first,))
    assert aside != first
    assert chooser.ip(it, 1.5) == aside, "the same stand-in meanwhile"
    again = chooser(it, 2.0)
    assert again is not None and (again.endpoint.ip, again.why) == (first, "affinity")


def test_a_sidecar_that_restarts_itself_comes_to_the_same_endpoint() -> None:
    it = service(*(endpoint(n) for n in range(1, 9)), affinity_s=60)
    assert len({Chooser(seed).ip(it) for seed in range(10)}) == 1
    others = {
        Chooser(1, Own("shop", "x", "u", frozenset({f"10.0.0.{n}"}))).ip(it) for n in range(40)
    }
    assert len(others) == 8, "but not all pods to one"


# --- source hash ----------------------------------------------------------------------------------


def sources(count: int) -> list[Own]:
    return [Own("shop", "x", "u", frozenset({f"10.1.{n // 250}.{n % 250}"})) for n in range(count)]


@given(st.integers(2, 12), st.data())
def test_an_endpoint_that_goes_moves_only_what_was_sent_to_it(
    count: int, data: st.DataObject
) -> None:
    some = [endpoint(n) for n in range(1, count + 1)]
    gone = data.draw(st.sampled_from(some))
    before = service(*some, balance="source-hash")
    after = service(*(e for e in some if e is not gone), balance="source-hash")
    for own in sources(60):
        chooser = Chooser(own=own)
        was, now_is = chooser.ip(before), chooser.ip(after)
        assert now_is == was or was == gone.ip
        assert chooser.ip(before) == was, "and it comes back with it"


def test_the_hash_spreads_sources_evenly_and_one_source_stays() -> None:
    it = service(*(endpoint(n) for n in range(1, 6)), balance="source-hash")
    counts: dict[str, int] = {}
    for own in sources(1000):
        chooser = Chooser(own=own)
        ip = chooser.ip(it)
        assert {chooser.ip(it) for _ in range(3)} == {ip}
        counts[ip] = counts.get(ip, 0) + 1
    assert len(counts) == 5
    assert all(130 <= count <= 270 for count in counts.values()), counts  # 200 +- 5.5 sigma


def test_the_hash_knows_the_endpoints_of_now_and_not_those_of_before() -> None:
    chooser = Chooser()
    chooser.ip(service(endpoint(1), endpoint(2), balance="source-hash"))
    assert chooser.ip(service(endpoint(3), endpoint(4), balance="source-hash")) in (
        "10.0.1.3",
        "10.0.1.4",
    )


def test_endpoints_that_change_count_at_once() -> None:
    chooser = Chooser()
    assert chooser.ip(service(endpoint(1))) == "10.0.1.1"
    assert chooser.ip(service(endpoint(2))) == "10.0.1.2"
    assert chooser(service()) is None
    assert chooser.ip(service(endpoint(3))) == "10.0.1.3"


# --- round robin ----------------------------------------------------------------------------------


@given(st.integers(2, 9), st.integers(1, 5))
def test_in_turn_each_is_chosen_as_often_as_the_others(count: int, rounds: int) -> None:
    chooser = Chooser()
    it = service(*(endpoint(n) for n in range(1, count + 1)), balance="round-robin")
    chosen = [chooser.ip(it) for _ in range(count * rounds)]
    assert all(chosen.count(e.ip) == rounds for e in it.endpoints)
    assert chosen[:count] * rounds == chosen, "and in the same order each time"


def test_in_turn_goes_on_where_it_was_when_endpoints_come_and_go() -> None:
    chooser = Chooser()
    three = service(endpoint(1), endpoint(3), endpoint(5), balance="round-robin")
    assert [chooser.ip(three) for _ in range(2)] == ["10.0.1.1", "10.0.1.3"]
    grown = service(*(endpoint(n) for n in range(1, 7)), balance="round-robin")
    assert chooser.ip(grown) == "10.0.1.4"
    assert chooser.ip(service(endpoint(2), endpoint(3), balance="round-robin")) == "10.0.1.2"


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED", 3)
    chooser = Chooser()
    for number in range(10):
        for balance, affinity_s in (("round-robin", 0), ("source-hash", 0), ("", 60)):
            it = service(endpoint(1), endpoint(2), balance=balance, affinity_s=affinity_s)
            chooser(replace(it, name=f"s{number}"))
    memory = chooser.memory
    kept = (memory._kept, memory._last, memory._ranked, memory._usable)
    assert [len(one) for one in kept] == [3, 3, 3, 3]


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


def test_one_link_tries_an_endpoint_again_while_the_others_keep_away() -> None:
    chooser, it = Chooser(), service(endpoint(1), endpoint(2), balance="round-robin")
    chooser.ejections.failed("10.0.1.1", 8080, 0.0)
    assert [chooser.ip(it, 0.5) for _ in range(3)] == ["10.0.1.2"] * 3
    assert [chooser.ip(it, 1.5) for _ in range(4)] == ["10.0.1.1"] + ["10.0.1.2"] * 3
    assert chooser.ejections.listed(1.5) == [("10.0.1.1", 8080, PROBE_S, 1)]
    chooser.ejections.worked("10.0.1.1", 8080)
    assert {chooser.ip(it, 1.6) for _ in range(2)} == {"10.0.1.1", "10.0.1.2"}


def test_when_all_are_ejected_they_are_tried_anyway() -> None:
    chooser, it = Chooser(), service(endpoint(1), endpoint(2))
    for number in (1, 2):
        for _ in range(9):
            chooser.ejections.failed(f"10.0.1.{number}", 8080, 0.0)
    assert {chooser.ip(it, 1.0) for _ in range(30)} == {"10.0.1.1", "10.0.1.2"}


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


def test_local_only_means_the_same_node_or_nothing() -> None:
    assert Chooser().ip(service(FAR, NODE, local=True)) == NODE.ip
    assert Chooser()(service(FAR, ZONE, local=True)) is None


HINTED = endpoint(1, "n2", "z2", hints=("z1", "z2")), endpoint(2, "n3", "z1", hints=("z2",))


@pytest.mark.parametrize("near", ["", "PreferSameZone"])
def test_hints_of_the_slices_go_before_the_zones_of_the_endpoints(near: str) -> None:
    chosen = Chooser()(service(*HINTED, near=near))
    assert chosen is not None
    assert (chosen.endpoint, chosen.why) == (HINTED[0], "zone-hint:only")


@pytest.mark.parametrize(
    "others", [(endpoint(3, "n4", "z3"),), (endpoint(3, "n4", "z3", hints=("z9",)),)]
)
def test_hints_count_only_if_every_endpoint_has_one_and_one_is_for_us(
    others: tuple[Endpoint, ...],
) -> None:
    some = HINTED[1], *others
    assert {Chooser(seed).ip(service(*some)) for seed in range(30)} == {e.ip for e in some}


def test_when_everybody_near_was_tried_the_link_goes_farther() -> None:
    it = service(*HINTED, near="PreferSameZone")
    assert Chooser().ip(it, tried=(HINTED[0].ip,)) == HINTED[1].ip
