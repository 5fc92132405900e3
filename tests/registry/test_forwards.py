"""Ports that lead elsewhere: node ports, host ports, load balancers, external IPs, and who may claim."""

import pytest

from proto import registry_pb2 as pb
from registry.answers import Answers
from registry.forwards import ToPod, ToService
from registry.keys import Key, KeyMalformed
from registry.model import OUTSIDE, UNASSIGNED, NodeView, ServiceView
from tests.registry.cluster import Cluster
from tests.registry.objects import endpoint, node, pod, service, slice_of, with_host_port

NODE, OTHER_NODE = "192.0.2.1", "192.0.2.2"
OUTER, OUTER6 = "198.51.100.7", "2001:db8::7"
WEB = {"name": "web", "port": 80, "nodePort": 30080}


def entry(cluster: Cluster, key: str) -> pb.Entry:
    framed = Answers(cluster.model, "deny").entry(Key.parse(key)).framed
    return pb.DiscoverResponse.FromString(framed).entries[0]


@pytest.mark.parametrize("ip", [OUTER, OUTER6])
@pytest.mark.parametrize("field", ["externalIPs", "balancer"])
def test_a_port_of_an_address_from_outside_leads_to_its_service(ip: str, field: str) -> None:
    cluster = Cluster()
    made = service("web", "10.96.0.1", ports=(WEB,), **{field: [ip]})  # type: ignore[arg-type]
    assert {ip, ":80", ":30080"} <= cluster.services(made)
    assert cluster.model.at_ip(ip) is OUTSIDE
    assert cluster.model.at_port(ip, 80) == ToService("web.shop", 80)
    assert cluster.model.at_port(ip, 81) is OUTSIDE, "the other ports lead nowhere in the cluster"
    assert {ip, ":80", ":30080"} <= cluster.remove("service", made)
    assert cluster.model.at_ip(ip) is None
    assert cluster.model.at_port(ip, 80) is None


def test_a_node_port_leads_there_at_every_address_of_every_node() -> None:
    cluster = Cluster()
    cluster.nodes(node("n1", NODE, "fd00:1::1"), node("n2", OTHER_NODE))
    cluster.services(service("web", "10.96.0.1", ports=(WEB,), type="NodePort"))
    for ip in (NODE, "fd00:1::1", OTHER_NODE):
        assert cluster.model.at_port(ip, 30080) == ToService("web.shop", 80)
        assert cluster.model.at_port(ip, 80) == cluster.model.at_ip(ip) == NodeView(ip)
    assert cluster.model.at_port("192.0.2.99", 30080) is None, "no node's address"


def test_a_node_is_known_by_its_pods_where_nobody_may_read_nodes() -> None:
    cluster = Cluster()
    cluster.pods(pod("a", "10.0.0.1", node_ip=NODE))
    cluster.services(service("web", "10.96.0.1", ports=(WEB,)))
    assert cluster.model.at_port(NODE, 30080) == ToService("web.shop", 80)


def test_under_a_local_policy_another_node_leads_to_its_own_endpoints_alone() -> None:
    """A load balancer's address does not: for whoever is in the cluster it is subject to neither policy
    (kube-proxy, "pod traffic for external destinations")."""
    cluster = Cluster()
    cluster.nodes(node("n1", NODE), node("n2", OTHER_NODE))
    local = service(
        "web", "10.96.0.1", ports=(WEB,), balancer=[OUTER], externalTrafficPolicy="Local"
    )
    cluster.services(local)
    assert cluster.model.at_port(NODE, 30080) == ToService("web.shop", 80, only_node="n1")
    assert cluster.model.at_port(OTHER_NODE, 30080) == ToService("web.shop", 80, only_node="n2")
    assert cluster.model.at_port(OUTER, 80) == ToService("web.shop", 80)


def test_a_host_port_leads_to_its_pod_on_its_own_node() -> None:
    cluster = Cluster()
    cluster.nodes(node("n1", NODE), node("n2", OTHER_NODE))
    web = with_host_port(pod("web", "10.0.0.1", node="n1", node_ip=NODE), 8080, 80)
    assert ":8080" in cluster.pods(web)
    assert cluster.model.at_port(NODE, 8080) == ToPod(cluster.at("10.0.0.1"), 80)
    assert cluster.model.at_port(OTHER_NODE, 8080) == NodeView(OTHER_NODE)
    assert ":8080" in cluster.remove("pod", web)
    assert cluster.model.at_port(NODE, 8080) == NodeView(NODE)


def test_a_host_port_of_one_address_of_the_node_is_at_no_other() -> None:
    cluster = Cluster()
    cluster.nodes(node("n1", NODE, "192.0.2.9"))
    cluster.pods(
        with_host_port(pod("web", "10.0.0.1"), 8080, 80, NODE),
        with_host_port(pod("any", "10.0.0.2"), 8081, 80, "0.0.0.0"),
    )
    assert cluster.model.at_port(NODE, 8080) == ToPod(cluster.at("10.0.0.1"), 80)
    assert cluster.model.at_port("192.0.2.9", 8080) == NodeView("192.0.2.9")
    assert cluster.model.at_port("192.0.2.9", 8081) == ToPod(cluster.at("10.0.0.2"), 80)


@pytest.mark.parametrize("made", [{"phase": "Failed"}, {"host_network": True}, {"ips": ()}])
def test_a_pod_that_cannot_be_behind_a_host_port_is_not(made: dict[str, object]) -> None:
    ips = made.pop("ips", ("10.0.0.1",))
    cluster = Cluster()
    cluster.pods(with_host_port(pod("web", *ips, **made), 8080, 80))  # type: ignore[arg-type, misc]
    assert cluster.model.at_port(NODE, 8080) == NodeView(NODE)


# --- what a tenant may not take -------------------------------------------------------------------


@pytest.mark.attack_row(59)
@pytest.mark.parametrize("field", ["externalIPs", "balancer"])
def test_nobody_claims_the_address_of_a_pod_or_of_another_service(field: str) -> None:
    cluster = Cluster()
    cluster.pods(pod("db", "10.0.0.1"))
    cluster.services(service("db", "10.96.0.1", ports=({"port": 80},)))
    trap = {field: ["10.0.0.1", "10.96.0.1"]}
    cluster.services(
        service(
            "trap", "10.96.0.2", namespace="evil", ports=(WEB,), created="2000-01-01T00:00:00Z",
            **trap,  # type: ignore[arg-type]
        )
    )  # fmt: skip
    assert cluster.at("10.0.0.1").name == "db"
    assert cluster.model.at_port("10.0.0.1", 80) is cluster.at("10.0.0.1")
    found = cluster.model.at_port("10.96.0.1", 80)
    assert isinstance(found, ServiceView)
    assert found.service.name == "db"


@pytest.mark.attack_row(59)
@pytest.mark.parametrize("field", ["externalIPs", "balancer"])
def test_an_address_and_port_that_another_service_has_is_kept(field: str) -> None:
    """Whatever is first, by age, and by the order in which the registry hears of them."""
    first = service(
        "web", "10.96.0.1", ports=(WEB,), created="2026-11-21T07:00:00Z", externalIPs=[OUTER]
    )
    later = {"created": "2026-11-21T07:00:09Z", "externalIPs": [OUTER]}
    trap = service("trap", "10.96.0.2", namespace="evil", ports=(WEB,), **later)  # type: ignore[arg-type]
    if field == "balancer":  # even younger: a controller's word goes before a claim
        first = service(
            "web", "10.96.0.1", ports=(WEB,), created="2026-11-21T07:00:10Z", balancer=[OUTER]
        )
    for order in ((first, trap), (trap, first)):
        cluster = Cluster()
        cluster.services(*order)
        assert cluster.model.at_port(OUTER, 80) == ToService("web.shop", 80)
        assert ":80" in cluster.remove("service", first)
        assert cluster.model.at_port(OUTER, 80) == ToService("trap.evil", 80)


@pytest.mark.attack_row(59)
def test_no_claim_goes_before_a_node_port_or_a_host_port() -> None:
    cluster = Cluster()
    cluster.nodes(node("n1", NODE))
    cluster.services(
        service("web", "10.96.0.1", ports=(WEB,)),
        service(
            "trap", "10.96.0.2", namespace="evil", created="2000-01-01T00:00:00Z",
            ports=({"name": "a", "port": 30080}, {"name": "b", "port": 8080}), externalIPs=[NODE],
        ),
    )  # fmt: skip
    cluster.pods(
        with_host_port(pod("web", "10.0.0.1"), 8080, 80),
        with_host_port(pod("trap", "10.0.0.9", namespace="evil"), 30080, 80),
    )
    assert cluster.model.at_port(NODE, 30080) == ToService("web.shop", 80)
    assert cluster.model.at_port(NODE, 8080) == ToPod(cluster.at("10.0.0.1"), 80)


@pytest.mark.attack_row(59)
def test_a_host_port_that_an_older_pod_has_is_kept_until_that_leaves() -> None:
    cluster = Cluster()
    first = with_host_port(pod("web", "10.0.0.1", created="2026-11-21T08:00:00Z"), 8080, 80)
    trap = pod("trap", "10.0.0.2", namespace="evil", created="2026-11-21T08:00:09Z")
    cluster.pods(first, with_host_port(trap, 8080, 80))
    assert cluster.model.at_port(NODE, 8080) == ToPod(cluster.at("10.0.0.1"), 80)
    first["metadata"]["deletionTimestamp"] = "2026-11-21T09:00:00Z"
    cluster.pods(first)
    assert cluster.model.at_port(NODE, 8080) == ToPod(cluster.at("10.0.0.2"), 80)


@pytest.mark.attack_row(59)
def test_an_endpoint_at_an_address_that_a_service_claims_is_dropped() -> None:
    """It would be dialled in plaintext, and kube-proxy lead it to that Service's pods."""
    cluster = Cluster()
    around = service("around", "10.96.0.2")
    cluster.services(around, service("web", "10.96.0.1", ports=(WEB,), externalIPs=[OUTER]))
    aims = ({"name": "db", "port": 80, "protocol": "TCP"},)
    cluster.slices(slice_of("around", endpoint(OUTER), ports=aims))
    assert cluster.reasons("around.shop") == {OUTER: "external_ip"}
    # At another port there is nobody of the cluster.
    cluster.slices(slice_of("around", endpoint(OUTER)))
    assert cluster.service("around.shop").endpoints[0].ip == OUTER


def test_the_api_servers_own_endpoints_are_nobodys_to_claim() -> None:
    cluster = Cluster()
    api = service("kubernetes", "10.96.0.1", namespace="default", ports=({"port": 443},))
    ports = ({"name": "", "port": 6443, "protocol": "TCP"},)
    cluster.services(api)
    cluster.slices(slice_of("kubernetes", endpoint(OUTER), namespace="default", ports=ports))
    cluster.services(
        service("trap", "10.96.0.2", namespace="evil", ports=({"port": 6443},), externalIPs=[OUTER])
    )
    assert [one.ip for one in cluster.service("kubernetes.default").endpoints] == [OUTER]


@pytest.mark.parametrize("kind", [{"clusterIP": "None"}, {"type": "ExternalName"}])
def test_a_service_without_an_address_of_its_own_claims_none(kind: dict[str, str]) -> None:
    cluster = Cluster()
    made = service("web", ports=(WEB,), externalIPs=[OUTER], balancer=[OUTER], **kind)  # type: ignore[arg-type]
    cluster.services(made)
    assert cluster.model.at_ip(OUTER) is None


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1", "169.254.1.1", "224.0.0.1", "0.0.0.0", "web"])
def test_an_address_that_cannot_be_reached_from_elsewhere_is_left_out(ip: str) -> None:
    cluster = Cluster()
    made = service("web", "10.96.0.1", ports=(WEB,), externalIPs=[ip, OUTER], balancer=[ip])
    cluster.services(made)
    if ip != "web":
        assert cluster.model.at_ip(ip) is None
    assert cluster.model.at_ip(OUTER) is OUTSIDE, "what is beside it counts"


# --- addresses of pods that nobody knows -------------------------------------------------------


@pytest.mark.attack_row(60)
def test_an_address_of_the_pods_range_that_no_pod_has_is_not_external() -> None:
    cluster = Cluster()
    assert cluster.nodes(node("n1", NODE, cidrs=["10.244.1.0/24"])) == {NODE}
    assert cluster.model.at_ip("10.244.1.9") is None, "no pod was ever seen there"
    assert "range/10.244.1.0/24" in cluster.pods(pod("a", "10.244.1.2"))
    assert cluster.model.at_ip("10.244.1.9") is UNASSIGNED
    assert cluster.model.at_ip("10.244.2.9") is None
    assert entry(cluster, "10.244.1.9").unassigned
    assert "range/10.244.2.0/24" in cluster.nodes(node("n2", OTHER_NODE, cidrs=["10.244.2.0/24"]))
    assert cluster.model.at_ip("10.244.2.9") is UNASSIGNED
    cluster.pods(pod("b", "10.244.1.9"))
    assert cluster.at("10.244.1.9").name == "b"


def test_ranges_that_the_network_plugin_does_not_use_count_for_nothing() -> None:
    cluster = Cluster()
    cluster.nodes(node("n1", NODE, cidrs=["10.244.1.0/24"]))
    cluster.pods(pod("a", "172.20.1.2"), pod("host", "10.244.1.3", host_network=True))
    assert cluster.model.at_ip("10.244.1.9") is None


@pytest.mark.attack_row(60)
def test_a_pod_that_shows_its_address_before_the_kubelet_tells_has_it() -> None:
    cluster = Cluster()
    cluster.pods(pod("new", uid="u1"))
    assert "10.0.0.5" in cluster.model.vouch("u1", ["10.0.0.5", "fd00::5"])
    assert cluster.at("10.0.0.5") is cluster.at("fd00::5")
    assert cluster.at("10.0.0.5").meshed
    cluster.pods(pod("new", uid="u1", labels={"still": "without"}))
    assert cluster.at("10.0.0.5").name == "new"
    cluster.pods(pod("new", "10.0.0.6", uid="u1"))
    assert cluster.model.at_ip("10.0.0.5") is None, "the kubelet's word is the last"
    assert cluster.at("10.0.0.6").name == "new"
    assert cluster.model.vouch("u1", ["10.0.0.5"]) == set()


@pytest.mark.attack_row(60)
def test_a_pod_shows_no_address_that_another_has() -> None:
    cluster = Cluster()
    cluster.services(service("db", "10.96.0.1"))
    cluster.pods(pod("db", "10.0.0.1"), pod("thief", uid="u1", created="2026-11-21T09:00:00Z"))
    cluster.model.vouch("u1", ["10.0.0.1", "10.96.0.1"])
    assert cluster.at("10.0.0.1").name == "db"
    assert isinstance(cluster.model.at_ip("10.96.0.1"), ServiceView)
    cluster.remove("pod", pod("db", "10.0.0.1"))
    assert cluster.model.at_ip("10.0.0.1") is None


# --- as messages ---------------------------------------------------------------------------------


def test_what_is_said_of_such_addresses_and_ports() -> None:
    cluster = Cluster()
    web = pod("web", "10.0.0.1")
    cluster.pods(with_host_port(web, 8080, 80))
    cluster.services(service("web", "10.96.0.1", ports=(WEB,), externalIPs=[OUTER, OUTER6]))
    outer = entry(cluster, OUTER)
    assert (outer.external, outer.forwards) == (True, True)
    near = entry(cluster, NODE)
    assert (near.workload.host_network, near.forwards) == (True, True)
    for key in (f"{OUTER}:80", f"[{OUTER6}]:80", f"{NODE}:30080"):
        said = entry(cluster, key)
        assert (said.forward.service, said.forward.port) == ("web.shop", 80), key
        assert not said.forwards
    host = entry(cluster, f"{NODE}:8080").forward
    assert (host.workload.name, host.port) == ("web", 80)
    assert not entry(cluster, "10.0.0.1").forwards
    assert entry(cluster, "10.0.0.1:80").workload.name == "web", "a pod's own port is the pod"


@pytest.mark.parametrize(
    "text", ["192.0.2.1:0", "192.0.2.1:65536", "192.0.2.1:080", "fd00::1:80x", "[fd00::1]", "[x]:1",
             "192.0.2.300:80", "[192.0.2.1:80", "web.shop:80"],
)  # fmt: skip
def test_what_is_no_port_of_an_address_is_refused(text: str) -> None:
    with pytest.raises(KeyMalformed):
        Key.parse(text)


def test_a_port_is_heard_of_by_its_address_and_by_its_number() -> None:
    key = Key.parse("[::ffff:192.0.2.1]:30080")
    assert (key.topics, key.port) == (("192.0.2.1", ":30080"), 30080)
