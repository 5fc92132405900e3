"""Which of a pod's ports its Services say speak HTTP, and who hears of a change."""

from hypothesis import given
from hypothesis import strategies as st

from registry.answers import Answers
from registry.model import settings_topic
from tests.registry.cluster import Cluster, Raw
from tests.registry.objects import endpoint, pod, service, slice_of

WEB = ({"name": "web", "port": 80, "appProtocol": "http"}, {"name": "db", "port": 5432})
TARGETS = ({"name": "web", "port": 8080}, {"name": "db", "port": 15432})


def shop(ports: tuple[Raw, ...] = WEB) -> tuple[Cluster, Raw]:
    cluster, one = Cluster(), pod("a", "10.0.0.1", uid="1")
    cluster.pods(one)
    cluster.services(service("api", "10.96.0.1", ports=ports))
    cluster.slices(slice_of("api", endpoint("10.0.0.1", one), ports=TARGETS))
    return cluster, one


def http_ports(cluster: Cluster, uid: str = "1") -> list[int]:
    settings = Answers(cluster.model, "allow-meshed").settings(uid)
    assert settings is not None
    return list(settings.http_ports)


def test_the_pod_hears_of_its_own_port_and_not_of_the_services() -> None:
    assert http_ports(shop()[0]) == [8080]


def test_each_protocol_that_is_http_in_plain_text_counts_and_no_other() -> None:
    for protocol, counts in (
        ("http", True),
        ("kubernetes.io/h2c", True),
        ("grpc", True),
        ("https", False),
        ("HTTP", False),
        ("mysql", False),
    ):
        ports = ({"name": "web", "port": 80, "appProtocol": protocol},)
        assert http_ports(shop(ports)[0]) == ([8080] if counts else []), protocol


def test_only_the_pods_whose_ports_differ_hear_of_a_change() -> None:
    cluster, one = shop()
    two = pod("b", "10.0.0.2", uid="2")
    cluster.pods(two)
    both = [endpoint("10.0.0.1", one), endpoint("10.0.0.2", two)]
    changed = cluster.slices(slice_of("api", *both, ports=TARGETS))
    assert settings_topic("2") in changed and settings_topic("1") not in changed
    changed = cluster.services(service("api", "10.96.0.1", ports=({"name": "web", "port": 80},)))
    assert {settings_topic("1"), settings_topic("2")} <= changed
    assert http_ports(cluster) == []
    cluster.services(service("api", "10.96.0.1", ports=WEB))
    changed = cluster.remove("service", service("api", "10.96.0.1"))
    assert settings_topic("1") in changed
    assert http_ports(cluster) == []


def test_a_service_of_another_namespace_says_nothing_of_a_pod() -> None:
    """Tenants write Services and slices: none may have somebody else's links read."""
    cluster, one = shop(({"name": "web", "port": 80},))
    cluster.services(service("thief", "10.96.0.2", namespace="other", ports=WEB))
    cluster.slices(slice_of("thief", endpoint("10.0.0.1", one), namespace="other", ports=TARGETS))
    assert http_ports(cluster) == []


@given(st.lists(st.tuples(st.sampled_from("psl"), st.booleans()), max_size=10))
def test_any_order_of_events_ends_with_the_same_ports(events: list[tuple[str, bool]]) -> None:
    cluster, one = Cluster(), pod("a", "10.0.0.1", uid="1")
    there = {"p": one, "s": service("api", "10.96.0.1", ports=WEB)}
    there["l"] = slice_of("api", endpoint("10.0.0.1", one), ports=TARGETS)
    kinds, put = {"p": "pod", "s": "service", "l": "slice"}, set[str]()
    for what, present in [*events, *((what, True) for what in "psl")]:
        if present:
            {"p": cluster.pods, "s": cluster.services, "l": cluster.slices}[what](there[what])
            put.add(what)
        elif what in put:
            cluster.remove(kinds[what], there[what])
            put.discard(what)
    assert http_ports(cluster) == [8080]


def test_the_annotation_travels_with_the_pod_and_none_with_nobody() -> None:
    for said, told in (("8080,9000-9010", ["8080", "9000-9010"]), ("none", [])):
        cluster = Cluster()
        cluster.pods(pod("a", "10.0.0.1", env={"PODLINK_HTTP_PORTS": said}))
        assert list(cluster.at("10.0.0.1").http_ports) == told
