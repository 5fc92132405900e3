"""Who is at an address: reuse, the host's network, finished pods, and what a change touches."""

from hypothesis import given
from hypothesis import strategies as st

from registry.answers import Answers
from registry.keys import Key
from registry.model import NodeView, ServiceView, settings_topic
from tests.registry.cluster import Cluster, Raw
from tests.registry.objects import endpoint, namespace_object, pod, service, slice_of


def test_an_address_is_its_pod_in_both_families() -> None:
    cluster = Cluster()
    cluster.pods(pod("a", "10.0.0.1", "fd00::1"))
    assert cluster.at("10.0.0.1") is cluster.at("fd00::1")
    assert cluster.at("10.0.0.1").service_account == "web"


def test_an_unknown_address_is_nobodys() -> None:
    assert Cluster().model.at_ip("203.0.113.1") is None


def test_a_used_address_belongs_to_the_newest_pod() -> None:
    old = pod("a", "10.0.0.1", created="2026-11-21T08:00:00Z")
    new = pod("b", "10.0.0.1", created="2026-11-21T08:00:05Z")
    for order in ((old, new), (new, old)):
        cluster = Cluster()
        cluster.pods(*order)
        assert cluster.at("10.0.0.1").name == "b"


def test_a_terminating_pod_yields_its_address_even_to_an_older_one() -> None:
    cluster = Cluster()
    cluster.pods(
        pod("a", "10.0.0.1", created="2026-11-21T08:00:00Z"),
        pod("b", "10.0.0.1", created="2026-11-21T08:00:05Z", terminating=True),
    )
    assert cluster.at("10.0.0.1").name == "a"


def test_a_terminating_pod_keeps_its_address_until_somebody_else_has_it() -> None:
    cluster = Cluster()
    cluster.pods(pod("a", "10.0.0.1", terminating=True))
    assert cluster.at("10.0.0.1").terminating


def test_a_finished_pod_releases_its_address() -> None:
    for phase in ("Succeeded", "Failed"):
        cluster = Cluster()
        cluster.pods(pod("a", "10.0.0.1"))
        changed = cluster.pods(pod("a", "10.0.0.1", phase=phase))
        assert "10.0.0.1" in changed
        assert cluster.model.at_ip("10.0.0.1") is None


def test_when_the_newest_pod_goes_the_address_returns_to_the_other() -> None:
    cluster = Cluster()
    first = pod("a", "10.0.0.1", created="2026-11-21T08:00:00Z")
    second = pod("b", "10.0.0.1", created="2026-11-21T08:00:05Z")
    cluster.pods(first, second)
    assert "10.0.0.1" in cluster.remove("pod", second)
    assert cluster.at("10.0.0.1").name == "a"


def test_a_pod_of_the_same_name_with_another_uid_replaces_the_first() -> None:
    cluster = Cluster()
    cluster.pods(pod("db-0", "10.0.0.1", uid="one"))
    changed = cluster.pods(pod("db-0", "10.0.0.2", uid="two"))
    assert {"10.0.0.1", "10.0.0.2", settings_topic("one"), settings_topic("two")} <= changed
    assert cluster.model.pod("one") is None
    assert cluster.model.at_ip("10.0.0.1") is None


def test_an_address_of_a_node_has_no_identity() -> None:
    cluster = Cluster()
    agent = pod("agent", "192.0.2.1", host_network=True)
    cluster.pods(agent)
    assert cluster.model.at_ip("192.0.2.1") == NodeView("192.0.2.1")
    assert "192.0.2.1" in cluster.remove("pod", agent)
    assert cluster.model.at_ip("192.0.2.1") is None


def test_a_cluster_ip_is_its_service_and_returns_to_nobody() -> None:
    cluster = Cluster()
    db = service("db", "10.96.0.1")
    assert "10.96.0.1" in cluster.services(db)
    assert isinstance(cluster.model.at_ip("10.96.0.1"), ServiceView)
    assert {"10.96.0.1", "db.shop"} <= cluster.remove("service", db)
    assert cluster.model.at_ip("10.96.0.1") is None


def test_a_cluster_ip_used_again_is_the_newer_service() -> None:
    cluster = Cluster()
    cluster.services(
        service("old", "10.96.0.1", created="2026-11-21T07:00:00Z"),
        service("new", "10.96.0.1", created="2026-11-21T07:00:09Z"),
    )
    found = cluster.model.at_ip("10.96.0.1")
    assert isinstance(found, ServiceView)
    assert found.service.name == "new"


def test_a_pods_change_touches_the_services_that_name_it_and_their_addresses() -> None:
    cluster = Cluster()
    db = pod("db-0", "10.0.0.1")
    cluster.services(service("db", "10.96.0.1"))
    cluster.slices(slice_of("db", endpoint("10.0.0.1", db)))
    assert cluster.pods(db) >= {"10.0.0.1", "db.shop", "10.96.0.1"}
    assert cluster.pods(pod("other", "10.0.0.2")).isdisjoint({"db.shop", "10.96.0.1"})


def test_a_namespaces_change_touches_the_settings_of_its_pods_only() -> None:
    cluster = Cluster()
    cluster.pods(pod("a", uid="1"), pod("b", uid="2", namespace="prod"))
    assert cluster.namespaces(namespace_object("shop", plaintext="allow")) == {settings_topic("1")}


def test_the_zone_of_a_node_is_what_most_slices_say() -> None:
    cluster = Cluster()
    cluster.pods(pod("a", uid="1", node="n1"), pod("b", uid="2", node="n2"))
    assert cluster.model.zone_of_node("n1") == ""
    here = endpoint("10.0.0.1", nodeName="n1", zone="z1")
    one, two = slice_of("db", here, name="one"), slice_of("db", here, name="two")
    assert settings_topic("1") in cluster.slices(one)
    assert settings_topic("1") not in cluster.slices(two)
    lie = slice_of("db", *[endpoint("10.0.0.2", nodeName="n1", zone="z9")] * 50, name="lie")
    assert settings_topic("1") not in cluster.slices(lie), "one slice has one voice"
    assert cluster.model.zone_of_node("n1") == "z1"
    changed = cluster.remove("slice", one) | cluster.remove("slice", two)
    assert settings_topic("1") in changed and settings_topic("2") not in changed
    assert cluster.model.zone_of_node("n1") == "z9"


def test_a_headless_service_names_its_pods_by_hostname_and_by_pod() -> None:
    cluster = Cluster()
    one = pod("db-0", "10.0.0.1")
    cluster.pods(one)
    cluster.services(service("db"))
    cluster.slices(slice_of("db", endpoint("10.0.0.1", one, hostname="primary")))
    for name in ("db-0", "primary"):
        found = cluster.model.service_pod(name, "db.shop")
        assert found is not None
        assert found.name == "db-0"
    assert cluster.model.service_pod("db-1", "db.shop") is None
    assert cluster.model.service_pod("db-0", "nothing.shop") is None


_ips = st.sampled_from(["10.0.0.1", "10.0.0.2"])
_changes = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.none() | st.tuples(_ips, st.booleans(), st.booleans(), st.sampled_from("123")),
    ),
    max_size=12,
)


def _made(name: str, what: tuple[str, bool, bool, str]) -> Raw:
    ip, terminating, finished, second = what
    phase = "Failed" if finished else "Running"
    created = f"2026-11-21T08:00:0{second}Z"
    return pod(name, ip, terminating=terminating, phase=phase, created=created)


@given(_changes)
def test_any_history_ends_like_a_fresh_start_with_what_is_left(
    changes: list[tuple[str, tuple[str, bool, bool, str] | None]],
) -> None:
    lived, left = Cluster(), {}
    lived.services(service("db", "10.96.0.1"))
    lived.slices(slice_of("db", endpoint("10.0.0.1"), endpoint("10.0.0.2")))
    for name, what in changes:
        if what is not None:
            left[name] = _made(name, what)
            lived.pods(left[name])
        elif name in left:
            lived.remove("pod", left.pop(name))
        lived.service("db.shop")
    fresh = Cluster()
    fresh.pods(*left.values())
    fresh.services(service("db", "10.96.0.1"))
    fresh.slices(slice_of("db", endpoint("10.0.0.1"), endpoint("10.0.0.2")))
    for ip in ("10.0.0.1", "10.0.0.2", "10.96.0.1", "192.0.2.1"):
        assert lived.model.at_ip(ip) == fresh.model.at_ip(ip)
    assert lived.reasons("db.shop").keys() >= fresh.reasons("db.shop").keys()


def test_ever_new_spellings_of_one_address_cost_no_memory() -> None:
    """A caller chooses how it spells an address, and there are thousands of ways."""
    cluster = Cluster()
    cluster.pods(pod("a", "10.0.0.1", "fd00::1"))
    answers = Answers(cluster.model, "allow-meshed")
    for text in ("fd00::1", "FD00::1", "fd00:0::1", "::ffff:10.0.0.1", "::FFFF:a00:1"):
        found = answers.entry(Key.parse(text))
        assert b"fd00::1" in found.framed
        answers.entry(Key.parse(text))
    assert [list(each) for each in answers._entries.values()] == [["fd00::1"]]
    assert answers.entry(Key.parse("fd00::1")) is answers.entry(Key.parse("fd00::1"))
