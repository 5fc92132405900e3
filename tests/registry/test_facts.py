"""How raw objects are read: what counts as meshed, and what each default is."""

from typing import Any

import pytest

from kit.addresses import canonical_ip
from kit.checked import Unreadable
from registry.facts import read_namespace, read_pod, read_service, read_slice
from registry.settings import pod_settings
from tests.registry.objects import IMAGE, endpoint, namespace_object, pod, service, slice_of


@pytest.mark.parametrize(
    ("text", "canonical"),
    [("10.0.0.7", "10.0.0.7"), ("FD00:0::7", "fd00::7"), ("::ffff:10.0.0.7", "10.0.0.7")],
)
def test_an_address_has_one_spelling(text: str, canonical: str) -> None:
    assert canonical_ip(text) == canonical


@pytest.mark.parametrize("text", ["", "10.0.0", "010.0.0.7", "fe80::1%eth0", "10.0.0.7/32", "a"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        canonical_ip(text)


@pytest.mark.attack_row(35)
@pytest.mark.parametrize("image", [IMAGE, "podlink/podlink:0.2.0", "evil/other:1"])
def test_a_pod_stays_meshed_whatever_image_somebody_gives_its_proxy_later(image: str) -> None:
    """An image may be changed in a running pod; peers must not fall back to plaintext for it."""
    assert read_pod(pod("a", image=image)).meshed


@pytest.mark.attack_row(35)
@pytest.mark.parametrize("command", [["sleep", "1"], [], ["python", "-m", "sidecar.capture"]])
def test_a_container_of_our_name_that_runs_something_else_is_not_meshed(command: list[str]) -> None:
    assert not read_pod(pod("a", command=command)).meshed


@pytest.mark.attack_row(35)
def test_a_label_does_not_make_a_pod_meshed() -> None:
    assert not read_pod(pod("a", meshed=False, labels={"podlink.dev/injected": "true"})).meshed


def test_a_pod_on_the_hosts_network_is_never_meshed() -> None:
    assert not read_pod(pod("a", "192.0.2.1", host_network=True)).meshed


def test_what_the_proxy_does_is_read_from_its_spec_and_not_from_annotations() -> None:
    env = {
        "PODLINK_MODE": "redirect",
        "PODLINK_SKIP_INBOUND_PORTS": "9100, 9200-9300",
        "PODLINK_SKIP_OUTBOUND_PORTS": "25",
    }
    read = read_pod(pod("a", env=env, annotations={"skip_inbound_ports": "5432"}))
    assert (read.mode, read.skip_inbound, read.skip_outbound) == (
        "redirect",
        ("9100", "9200-9300"),
        ("25",),
    )


def test_two_reads_of_a_pod_whose_status_only_ticks_are_equal() -> None:
    before, after = pod("a", "10.0.0.1"), pod("a", "10.0.0.1")
    after["status"]["conditions"] = [{"type": "Ready", "lastProbeTime": "later"}]
    assert read_pod(before) == read_pod(after)


def test_an_address_that_is_none_is_left_out_alone_and_noted() -> None:
    read = read_pod(pod("a", "not an ip", "10.0.0.1"))
    assert read.ips == ("10.0.0.1",)
    assert [(one.field, one.reason) for one in read.refused] == [
        ("status.podIP", "address_malformed")
    ]


@pytest.mark.parametrize(("key", "value"), [("uid", ""), ("name", "../x"), ("namespace", "A.b")])
def test_a_pod_without_a_name_is_an_error_and_not_a_nameless_pod(key: str, value: str) -> None:
    broken = pod("a", "10.0.0.1")
    broken["metadata"][key] = value
    with pytest.raises(Unreadable, match=f"metadata.{key}"):
        read_pod(broken)


def test_a_service_without_anything_has_plain_defaults() -> None:
    read = read_service(service("db", "10.96.0.1"))
    assert (read.affinity_timeout_s, read.balance, read.traffic_distribution) == (0, "", "")
    assert [(port.name, port.port) for port in read.ports] == [("db", 5432)]


def test_a_service_says_how_it_wants_to_be_balanced() -> None:
    raw = service(
        "db",
        "10.96.0.1",
        "fd00::1",
        annotations={"config.podlink.dev/balance": "source-hash"},
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}},
        trafficDistribution="PreferClose",
        publishNotReadyAddresses=True,
    )
    read = read_service(raw)
    assert (read.affinity_timeout_s, read.balance) == (60, "source-hash")
    assert (read.traffic_distribution, read.publish_not_ready) == ("PreferSameZone", True)
    assert read.cluster_ips == ("10.96.0.1", "fd00::1")


@pytest.mark.parametrize(
    ("own", "near", "plaintext", "ports"),
    [
        ({}, {}, "deny", []),
        ({"plaintext_ports": "9187, 9000-9010"}, {}, "deny", ["9000-9010", "9187"]),
        ({}, {"plaintext": "allow", "plaintext-ports": "80"}, "allow", ["80"]),
        ({"plaintext": "deny"}, {"plaintext": "allow", "plaintext-ports": "80"}, "deny", []),
        ({"plaintext_ports": "81"}, {"plaintext": "allow"}, "deny", ["81"]),
        ({"plaintext_ports": "80,*"}, {}, "deny", []),
    ],
)
def test_plaintext_and_its_ports_come_both_from_the_pod_or_both_from_its_namespace(
    own: dict[str, str], near: dict[str, str], plaintext: str, ports: list[str]
) -> None:
    facts = read_pod(pod("web", annotations=own))
    settings = pod_settings(facts, read_namespace(namespace_object("shop", **near)), "deny")
    assert (settings.plaintext, list(settings.plaintext_ports)) == (plaintext, ports)


def test_a_service_for_the_own_node_only() -> None:
    assert not read_service(service("db", internalTrafficPolicy="Cluster")).local_only
    assert read_service(service("db", internalTrafficPolicy="Local")).local_only


def test_affinity_without_a_timeout_lasts_three_hours() -> None:
    assert read_service(service("db", sessionAffinity="ClientIP")).affinity_timeout_s == 10800


def test_a_balance_nobody_knows_is_no_balance() -> None:
    raw = service("db", annotations={"config.podlink.dev/balance": "psychic"})
    assert read_service(raw).balance == ""


def test_only_tcp_ports_of_a_service_count() -> None:
    ports = ({"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53})
    assert [port.name for port in read_service(service("dns", ports=ports)).ports] == ["dns-tcp"]


@pytest.mark.attack_row(39)
@pytest.mark.parametrize("spec", [{"type": "ExternalName", "externalName": "evil.example"}, {}])
def test_external_names_and_headless_services_have_no_address(spec: Any) -> None:
    assert read_service(service("db", **spec)).cluster_ips == ()


@pytest.mark.parametrize(
    ("conditions", "wanted"),
    [
        ({}, (True, True, False)),
        ({"ready": False}, (False, False, False)),
        ({"ready": False, "serving": True, "terminating": True}, (False, True, True)),
        ({"ready": None, "serving": None}, (True, True, False)),
    ],
)
def test_unset_conditions_mean_what_the_api_says(
    conditions: dict[str, bool], wanted: tuple[bool, bool, bool]
) -> None:
    one = endpoint("10.0.0.1")
    one["conditions"] = conditions
    (read,) = read_slice(slice_of("db", one)).endpoints
    assert (read.ready, read.serving, read.terminating) == wanted


def test_a_slice_of_names_or_without_a_service_has_no_endpoints() -> None:
    assert read_slice(slice_of("db", endpoint("a.example"), family="FQDN")).endpoints == ()
    stray = slice_of("db", endpoint("10.0.0.1"))
    stray["metadata"]["labels"] = {}
    assert read_slice(stray).endpoints == ()
