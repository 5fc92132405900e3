"""Where a link goes whose address says too little: what is asked, in which order, and what never leaves
in plaintext."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.trust.identity import WorkloadIdentity
from sidecar.dataplane.routing.choose import Memory
from sidecar.dataplane.routing.destination import Ask, Destination, Failed, Step
from sidecar.dataplane.routing.ejections import Ejections
from sidecar.dataplane.routing.route import Plaintext, Tunnelled
from sidecar.directory import (
    EXTERNAL,
    ByPort,
    Endpoint,
    Found,
    Gone,
    Own,
    Service,
    ToPod,
    ToService,
    Workload,
)
from sidecar.errors import AppUnreachable, EndpointUnreachable, NoEndpoints, RegistryUnavailable

API = WorkloadIdentity("cluster.local", "shop", "api")
OUTER, OUTER6, NODE, OTHER = "198.51.100.7", "2001:db8::7", "192.0.2.1", "192.0.2.2"
HOST = Workload("", "", "", None, (NODE,), host_network=True)


def pod(
    name: str, *ips: str, node: str = "n1", identity: WorkloadIdentity | None = API
) -> Workload:
    return Workload(f"u-{name}", "shop", name, identity, ips, node)


def service(*pods: Workload, **more: object) -> Service:
    to = {80: 8080}
    ends = tuple(Endpoint(ip, to, one) for one in pods for ip in one.ips)
    made = Service("shop", "web", ("10.96.0.1",), frozenset(to), ends)
    return replace(made, **more)  # type: ignore[arg-type]


class Heard:
    """A directory that knows nothing yet; `said` is what the registry will answer."""

    def __init__(self, said: Mapping[str, Found]) -> None:
        self.said, self.heard = said, dict[str, Found]()
        self.asked: list[str] = []

    def known(self, key: str) -> Found | None:
        return self.heard.get(key)


@dataclass
class Plane:
    directory: Heard
    own: Own = field(default_factory=lambda: Own("shop", "cli", "u", frozenset({"10.0.0.5"}), "n1"))
    ejections: Ejections = field(default_factory=Ejections)
    choices: Memory = field(default_factory=Memory)
    random: Random = field(default_factory=lambda: Random(1))
    now: Callable[[], float] = lambda: 0.0
    allow_external: bool = True
    open_links: Mapping[tuple[str, int], int] = field(default_factory=dict)


def follow(destination: Destination, plane: Plane, step: Step) -> Step:
    """Ask what is asked until there is a route or an error."""
    for _ in range(4):
        if not isinstance(step, Ask):
            return step
        plane.directory.asked.append(step.key)
        found = plane.directory.said.get(step.key)
        if found is not None:
            plane.directory.heard[step.key] = found
        step = destination.answered(plane, found, None)
    raise AssertionError(f"it asks for ever: {plane.directory.asked}")


def reached(said: Mapping[str, Found], ip: str, port: int) -> tuple[Step, list[str]]:
    plane = Plane(Heard(said))
    destination = Destination(ip, port, captured=True)
    plane.random.seed(1)
    step = follow(destination, plane, destination.resolve(plane))
    again = Destination(ip, port, captured=True)
    if all(key in said for key in plane.directory.asked):  # what is known is not asked again
        plane.random.seed(1)
        assert repr(follow(again, plane, again.resolve(plane))) == repr(step)
        assert len(plane.directory.asked) == len(set(plane.directory.asked))
    return step, plane.directory.asked


@pytest.mark.attack_row(60)
@pytest.mark.parametrize(("ip", "key"), [(OUTER, f"{OUTER}:80"), (OUTER6, f"[{OUTER6}]:80")])
def test_an_external_ip_leads_by_tunnel_to_an_endpoint_of_its_service(ip: str, key: str) -> None:
    web = pod("web", "10.0.0.1", "fd00::1")
    said: dict[str, Found] = {
        ip: ByPort(EXTERNAL), key: ToService("web.shop", 80), "web.shop": service(web)
    }  # fmt: skip
    step, asked = reached(said, ip, 80)
    end = "fd00::1" if ":" in ip else "10.0.0.1"
    assert step == Tunnelled(end, 8080, "only", web)
    assert asked == [ip, key, "web.shop"]


@pytest.mark.attack_row(60)
def test_a_node_port_leads_by_tunnel_to_the_port_of_its_service() -> None:
    web = pod("web", "10.0.0.1")
    key = f"{NODE}:30080"
    said: dict[str, Found] = {
        NODE: ByPort(HOST), key: ToService("web.shop", 80), "web.shop": service(web)
    }  # fmt: skip
    assert reached(said, NODE, 30080)[0] == Tunnelled("10.0.0.1", 8080, "only", web)


@pytest.mark.attack_row(60)
def test_a_host_port_leads_by_tunnel_to_its_pod() -> None:
    web = pod("web", "10.0.0.1", "fd00::1")
    for ip, end, key in (
        (NODE, "10.0.0.1", f"{NODE}:9000"),
        (OUTER6, "fd00::1", f"[{OUTER6}]:9000"),
    ):
        said: dict[str, Found] = {ip: ByPort(HOST), key: ToPod(web, 8080)}
        assert reached(said, ip, 9000)[0] == Tunnelled(end, 8080, "host-port", web)
    only6 = pod("web", "fd00::1")
    said = {NODE: ByPort(HOST), f"{NODE}:9000": ToPod(only6, 8080)}
    assert reached(said, NODE, 9000)[0] == Tunnelled("fd00::1", 8080, "host-port", only6)
    own = pod("cli", "10.0.0.5")
    said = {NODE: ByPort(HOST), f"{NODE}:9000": ToPod(own, 8080)}
    step = reached(said, NODE, 9000)[0]
    assert isinstance(step, Plaintext)
    assert (step.security, step.ip) == ("self", "10.0.0.5"), "it stays on loopback"


def test_a_port_that_leads_nowhere_is_the_addresss_own() -> None:
    for otherwise, reason in ((HOST, "host_network"), (EXTERNAL, "external")):
        said: dict[str, Found] = {NODE: ByPort(otherwise), f"{NODE}:22": otherwise}
        step, asked = reached(said, NODE, 22)
        assert isinstance(step, Plaintext)
        assert (step.ip, step.port, step.reason) == (NODE, 22, reason)
        assert asked == [NODE, f"{NODE}:22"], "it has to be asked for all the same"


@pytest.mark.attack_row(60)
@pytest.mark.parametrize("silent", [OUTER, f"{OUTER}:80", "web.shop"])
def test_while_the_registry_is_silent_nothing_is_sent(silent: str) -> None:
    said: dict[str, Found] = {
        OUTER: ByPort(EXTERNAL),
        f"{OUTER}:80": ToService("web.shop", 80),
        "web.shop": service(pod("web", "10.0.0.1")),
    }
    del said[silent]
    step, _ = reached(said, OUTER, 80)
    assert isinstance(step, Failed)
    assert isinstance(step.error, RegistryUnavailable)


@pytest.mark.attack_row(60)
@pytest.mark.parametrize("instead", [EXTERNAL, HOST, pod("plain", "10.0.0.3", identity=None)])
def test_a_service_that_went_away_meanwhile_makes_nothing_external(instead: Found) -> None:
    said: dict[str, Found] = {
        OUTER: ByPort(EXTERNAL), f"{OUTER}:80": ToService("web.shop", 80), "web.shop": instead
    }  # fmt: skip
    step, _ = reached(said, OUTER, 80)
    assert isinstance(step, Failed)
    assert isinstance(step.error, NoEndpoints)


@pytest.mark.attack_row(60)
def test_an_address_of_pods_that_nobody_has_is_refused() -> None:
    step, _ = reached({"10.244.1.9": Gone("")}, "10.244.1.9", 80)
    assert isinstance(step, Failed)
    assert isinstance(step.error, EndpointUnreachable)


def _by(only_node: str, **more: object) -> set[str]:
    near, far = pod("near", "10.0.0.1", node="n1"), pod("far", "10.0.0.2", node="n2")
    to = ToService("web.shop", 80, only_node)
    found = set()
    for seed in range(20):
        said: dict[str, Found] = {
            OTHER: ByPort(HOST), f"{OTHER}:30080": to, "web.shop": service(near, far, **more),
        }  # fmt: skip
        plane = Plane(Heard(said), random=Random(seed))
        destination = Destination(OTHER, 30080, captured=True)
        step = follow(destination, plane, destination.resolve(plane))
        found.add(step.ip if isinstance(step, Tunnelled) else type(step).__name__)
    return found


def test_the_policy_for_traffic_from_outside_is_honoured_as_kube_proxy_does_for_pods() -> None:
    assert _by("") == {"10.0.0.1", "10.0.0.2"}
    assert _by("n1") == {"10.0.0.1", "10.0.0.2"}, "our own node: pods are spared it"
    assert _by("n2") == {"10.0.0.2"}, "another node's port leads to that node's endpoints"
    assert _by("n3") == {"Failed"}, "and to nobody if it has none"


def test_the_policy_for_traffic_from_inside_has_no_say_where_the_cluster_ip_was_not_dialled() -> (
    None
):
    assert _by("", local_only=True) == {"10.0.0.1", "10.0.0.2"}
    said: dict[str, Found] = {
        "10.96.0.1": service(pod("far", "10.0.0.2", node="n2"), local_only=True)
    }
    assert isinstance(reached(said, "10.96.0.1", 80)[0], Failed)


meshed, plain = pod("meshed", "10.0.0.1"), pod("plain", "10.0.0.2", identity=None)
_ends = st.sampled_from([(meshed,), (plain,), (meshed, plain), ()])
_answers = st.sampled_from(
    [None, EXTERNAL, HOST, meshed, plain, Gone(""), Gone("shop/x"), ByPort(EXTERNAL), ByPort(HOST),
     ToService("web.shop", 80), ToService("web.shop", 80, "n2"), ToPod(meshed, 8080),
     ToPod(plain, 8080)],
)  # fmt: skip


@pytest.mark.attack_row(60)
@given(
    first=_answers,
    second=_answers,
    third=st.one_of(_answers, _ends.map(lambda pods: service(*pods))),
)
def test_whatever_is_answered_plaintext_goes_to_nobody_who_is_meshed(
    first: Found | None, second: Found | None, third: Found | None
) -> None:
    """And to the address that was dialled only if the last word about it was that it is no one's."""
    answers = {OUTER: first, f"{OUTER}:80": second, "web.shop": third}
    said = {key: found for key, found in answers.items() if found is not None}
    step, asked = reached(said, OUTER, 80)
    if not isinstance(step, Plaintext):
        return
    assert step.ip != "10.0.0.1"
    if step.ip == OUTER:
        last = said[asked[-1]]
        outside = last.otherwise if isinstance(last, ByPort) else last
        assert outside in (EXTERNAL, HOST, plain)
        assert "web.shop" not in asked


# --- the other family ---------------------------------------------------------------------------


def test_endpoints_of_the_other_family_are_tried_when_those_of_the_dialled_one_refuse() -> None:
    """The app's connect has succeeded, so the app itself cannot fall back any more (case 09)."""
    web = pod("web", "10.0.0.1", "fd00::1")
    plane = Plane(Heard({}))
    plane.directory.heard["fd00:96::1"] = service(web)
    destination = Destination("fd00:96::1", 80, captured=True)
    step = destination.resolve(plane)
    assert isinstance(step, Tunnelled)
    assert step.ip == "fd00::1", "the family that was dialled first"
    destination.attempts = 1
    step = destination.elsewhere(plane, AppUnreachable("no"), "fd00::1")
    assert isinstance(step, Tunnelled)
    assert step.ip == "10.0.0.1"
    silent = EndpointUnreachable("no answer", silent=True)
    assert isinstance(destination.elsewhere(plane, silent, "fd00::1"), Failed), (
        "it is no less silent"
    )
    destination.attempts = 2
    assert isinstance(destination.elsewhere(plane, AppUnreachable("no"), "10.0.0.1"), Failed)


def test_the_last_try_is_one_of_the_other_family_however_many_endpoints_there_are() -> None:
    pods = [pod(f"web-{n}", f"10.0.0.{n}", f"fd00::{n}") for n in range(1, 9)]
    plane = Plane(Heard({}))
    plane.directory.heard["10.96.0.1"] = service(*pods)
    destination = Destination("10.96.0.1", 80, captured=True)
    step, tried = destination.resolve(plane), []
    while isinstance(step, Tunnelled):
        tried.append(":" in step.ip)
        destination.attempts += 1
        step = destination.elsewhere(plane, AppUnreachable("no"), step.ip)
    assert tried == [False, False, True]


def test_a_service_with_endpoints_of_one_family_alone_is_reached_at_an_address_of_the_other() -> (
    None
):
    web = pod("web", "10.0.0.1")
    step, _ = reached({"fd00:96::1": service(web)}, "fd00:96::1", 80)
    assert step == Tunnelled("10.0.0.1", 8080, "only", web)


def test_a_pod_without_sidecar_that_refuses_one_of_its_addresses_is_tried_at_the_other() -> None:
    """What a headless name leads to. A meshed pod's own sidecar does that."""
    plane = Plane(Heard({}))
    plain = pod("plain", "10.0.0.2", "fd00::2", identity=None)
    plane.directory.heard["fd00::2"] = plain
    destination = Destination("fd00::2", 80, captured=True)
    assert isinstance(step := destination.resolve(plane), Plaintext)
    destination.attempts = 1
    step = destination.dial_failed(plane, EndpointUnreachable("no"), "fd00::2")
    assert isinstance(step, Plaintext)
    assert (step.ip, step.port, step.pod) == ("10.0.0.2", 80, "shop/plain")
    destination.attempts = 2
    assert isinstance(destination.dial_failed(plane, EndpointUnreachable("no"), "10.0.0.2"), Failed)
