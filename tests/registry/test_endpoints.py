"""A Service's endpoints: ports by name, conditions, and slices that point where they must not."""

import pytest

from registry import endpoints
from registry.endpoints import MAX_ENDPOINTS
from tests.registry.cluster import Cluster
from tests.registry.objects import endpoint, pod, service, slice_of


def shop() -> Cluster:
    """A Service `db` of the namespace `shop` with one pod of its own, and strangers around it."""
    cluster = Cluster()
    cluster.pods(
        pod("db-0", "10.0.0.1", node_ip="192.0.2.1"),
        pod("secret", "10.0.9.9", namespace="prod", node_ip="192.0.2.2"),
        pod("agent", "192.0.2.2", namespace="shop", host_network=True, node_ip="192.0.2.2"),
    )
    cluster.services(service("db", "10.96.0.1"), service("other", "10.96.0.2"))
    return cluster


def test_ports_are_mapped_by_name_and_each_slice_has_its_own_target() -> None:
    cluster = shop()
    cluster.pods(pod("db-1", "10.0.0.2"))
    cluster.slices(
        slice_of("db", endpoint("10.0.0.1"), name="one"),
        slice_of("db", endpoint("10.0.0.2"), name="two", ports=({"name": "db", "port": 25432},)),
    )
    ports = {view.ip: dict(view.ports) for view in cluster.service("db.shop").endpoints}
    assert ports == {"10.0.0.1": {5432: 15432}, "10.0.0.2": {5432: 25432}}


def test_an_address_in_two_slices_is_one_endpoint_with_the_ports_of_both() -> None:
    cluster = shop()
    both = ({"name": "db", "port": 1}, {"name": "metrics", "port": 2})
    cluster.services(service("db", "10.96.0.1", ports=both))
    cluster.slices(
        slice_of("db", endpoint("10.0.0.1"), name="one", ports=({"name": "db", "port": 11},)),
        slice_of("db", endpoint("10.0.0.1"), name="two", ports=({"name": "metrics", "port": 12},)),
    )
    (view,) = cluster.service("db.shop").endpoints
    assert dict(view.ports) == {1: 11, 2: 12}


@pytest.mark.parametrize("named_first", [True, False])
def test_an_address_listed_twice_is_the_pods_that_one_of_both_names(named_first: bool) -> None:
    cluster = shop()
    agent = pod("relay", "10.0.0.7", host_network=True)
    cluster.pods(agent)
    twice = [endpoint("10.0.0.7", agent), endpoint("10.0.0.7")]
    cluster.slices(slice_of("db", *(twice if named_first else reversed(twice))))
    (view,) = cluster.service("db.shop").endpoints
    assert view.pod is not None and view.pod.name == "relay"


def test_a_pod_of_the_services_namespace_is_a_workload() -> None:
    cluster = shop()
    cluster.slices(slice_of("db", endpoint("10.0.0.1", pod("db-0"))))
    (view,) = cluster.service("db.shop").endpoints
    assert view.pod is not None
    assert view.pod.meshed


def test_an_address_outside_the_cluster_is_an_endpoint_without_a_workload() -> None:
    cluster = shop()
    cluster.slices(slice_of("db", endpoint("203.0.113.5")))
    (view,) = cluster.service("db.shop").endpoints
    assert view.pod is None


@pytest.mark.attack_row(38)
@pytest.mark.parametrize(
    ("ip", "reason"),
    [
        ("10.0.9.9", "foreign_pod"),
        ("::ffff:10.0.9.9", "foreign_pod"),
        ("127.0.0.1", "loopback"),
        ("127.8.8.8", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("169.254.169.254", "link_local"),
        ("fe80::1", "link_local"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "multicast"),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("::", "unspecified"),
        ("192.0.2.1", "node_ip"),
        ("192.0.2.2", "node_ip"),
        ("10.96.0.2", "cluster_ip"),
        ("10.96.0.1", "cluster_ip"),
        ("fe80::1%eth0", "address_malformed"),
        ("localhost", "address_malformed"),
        ("", "address_malformed"),
    ],
)
def test_a_slice_that_points_where_it_must_not_is_refused_there(ip: str, reason: str) -> None:
    cluster = shop()
    cluster.slices(slice_of("db", endpoint(ip), endpoint("10.0.0.1")))
    assert [view.ip for view in cluster.service("db.shop").endpoints] == ["10.0.0.1"]
    assert list(cluster.reasons("db.shop").values()) == [reason]


def test_topology_hints_are_passed_on() -> None:
    cluster = shop()
    hints = {"forZones": [{"name": "z1"}, {"name": "z2"}]}
    cluster.slices(slice_of("db", endpoint("10.0.0.1", hints=hints)))
    (view,) = cluster.service("db.shop").endpoints
    assert view.for_zones == ("z1", "z2")


@pytest.mark.attack_row(38)
def test_naming_a_foreign_pod_by_its_uid_does_not_help() -> None:
    cluster = shop()
    foreign = pod("secret", namespace="prod")
    cluster.slices(slice_of("db", endpoint("10.0.9.9", foreign)))
    assert cluster.service("db.shop").endpoints == ()


@pytest.mark.attack_row(38)
def test_ten_thousand_addresses_become_no_more_than_the_bound_and_ready_ones_stay() -> None:
    cluster = shop()
    for number in range(10):
        made = [endpoint(f"203.{number}.{one // 250}.{one % 250}") for one in range(1000)]
        for one in made[1:]:
            one["conditions"] = {"ready": False}
        cluster.slices(slice_of("db", *made, name=f"s{number}"))
    views = cluster.service("db.shop").endpoints
    assert len(views) == MAX_ENDPOINTS
    assert sum(view.ready for view in views) == 10
    assert set(cluster.reasons("db.shop").values()) == {"too_many_endpoints"}


@pytest.mark.attack_row(50)
def test_of_ever_more_slices_only_so_many_addresses_are_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endpoints, "MAX_LOOKED_AT", 3)
    cluster = shop()
    for number in range(4):
        made = [endpoint(f"203.0.{number}.{one}") for one in range(2)]
        cluster.slices(slice_of("db", *made, name=f"s{number}"))
    assert len(cluster.service("db.shop").endpoints) == 4
    assert cluster.reasons("db.shop") == {"2 more": "too_many_endpoints"}


@pytest.mark.attack_row(38)
def test_a_pod_that_takes_a_written_address_later_is_not_reached_through_it() -> None:
    cluster = shop()
    cluster.slices(slice_of("db", endpoint("10.0.7.7")))
    assert len(cluster.service("db.shop").endpoints) == 1
    assert "db.shop" in cluster.pods(pod("late", "10.0.7.7", namespace="prod"))
    assert cluster.service("db.shop").endpoints == ()


def test_an_endpoint_whose_pod_is_not_known_yet_is_held_back_and_never_external() -> None:
    cluster = shop()
    late = pod("db-1", "10.0.0.2")
    cluster.slices(slice_of("db", endpoint("10.0.0.2", late)))
    assert cluster.service("db.shop").endpoints == ()
    cluster.pods(late)
    (view,) = cluster.service("db.shop").endpoints
    assert view.pod is not None


@pytest.mark.attack_row(19)
def test_an_endpoint_does_not_pass_to_the_next_pod_on_its_address() -> None:
    cluster = shop()
    cluster.slices(slice_of("db", endpoint("10.0.0.1", pod("db-0"))))
    cluster.pods(pod("thief", "10.0.0.1", created="2026-11-21T09:00:00Z"))
    assert cluster.service("db.shop").endpoints == ()


def test_a_pod_on_the_hosts_network_is_an_endpoint_of_its_own_service_only() -> None:
    cluster = shop()
    agent = pod("agent", namespace="shop")
    cluster.slices(slice_of("db", endpoint("192.0.2.2", agent)))
    (view,) = cluster.service("db.shop").endpoints
    assert view.pod is not None
    assert (view.pod.host_network, view.pod.meshed) == (True, False)
    cluster.services(service("evil", namespace="prod"))
    cluster.slices(slice_of("evil", endpoint("192.0.2.2", agent), namespace="prod"))
    assert cluster.reasons("evil.prod") == {"192.0.2.2": "foreign_pod"}


def test_the_api_servers_own_service_may_name_a_node() -> None:
    cluster = shop()
    cluster.services(service("kubernetes", "10.96.0.9", namespace="default"))
    cluster.slices(slice_of("kubernetes", endpoint("192.0.2.1"), namespace="default"))
    assert [view.ip for view in cluster.service("kubernetes.default").endpoints] == ["192.0.2.1"]


def test_a_terminating_pod_makes_its_endpoint_terminating() -> None:
    cluster = shop()
    cluster.pods(pod("db-0", "10.0.0.1", terminating=True))
    cluster.slices(slice_of("db", endpoint("10.0.0.1")))
    assert cluster.service("db.shop").endpoints[0].terminating
