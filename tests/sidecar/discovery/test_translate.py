"""The registry's messages as the data plane's values; what is half understood is refused whole."""

from typing import Any

import pytest

from certs.trust.identity import WorkloadIdentity
from kit.checked import Fields
from policy.rules import Source
from proto import registry_pb2 as pb
from sidecar.directory import EXTERNAL, Service, Workload
from sidecar.discovery.translate import (
    POLICY_FORMAT,
    NotUnderstood,
    checked_settings,
    found,
    policy_set,
    workload,
)

TD = "cluster.local"
POD = pb.Workload(
    uid="u", namespace="shop", name="api-0", service_account="api", ips=["10.0.0.7"], meshed=True
)


def changed(**fields: Any) -> pb.Workload:
    it = pb.Workload()
    it.CopyFrom(POD)
    it.MergeFrom(pb.Workload(**fields))
    return it


def pod(said: pb.Workload) -> Workload:
    it = found(pb.Entry(key="10.0.0.7", workload=said), TD)
    assert isinstance(it, Workload)
    return it


def test_a_meshed_pods_identity_is_its_namespace_and_account() -> None:
    assert pod(POD).identity == WorkloadIdentity(TD, "shop", "api")


def test_a_pod_that_is_unmeshed_or_shares_its_nodes_address_has_no_identity() -> None:
    unmeshed = changed()
    unmeshed.meshed = False
    assert pod(unmeshed).identity is None
    assert pod(changed(host_network=True)).identity is None


def test_skipped_ports_and_the_mode_decide_what_takes_a_tunnel() -> None:
    it = pod(changed(skip_inbound_ports=["80", "9000-9010"], mode="localhost"))
    assert it.tunnel_only
    assert it.takes_tunnel(81)
    assert not it.takes_tunnel(9005)


def test_a_service_comes_with_its_endpoints_and_their_state() -> None:
    said = pb.Service(namespace="shop", name="api", cluster_ips=["10.96.0.1"])
    said.ports.add(name="http", port=80)
    said.endpoints.add(ip="10.0.0.7", ports={80: 8080}, ready=True, serving=True, workload=POD)
    said.endpoints.add(ip="192.0.2.7", ports={80: 8080}, serving=True, terminating=True)
    it = found(pb.Entry(key="api.shop", service=said), TD)
    assert isinstance(it, Service)
    assert it.ports == {80}
    one, other = it.endpoints
    assert one.workload == pod(POD) and one.ports[80] == 8080 and one.ready
    assert other.workload is None and other.terminating and not other.ready


def test_external_is_said_and_never_assumed() -> None:
    assert found(pb.Entry(key="192.0.2.1", external=True), TD) is EXTERNAL
    with pytest.raises(NotUnderstood, match=r"192\.0\.2\.1"):
        found(pb.Entry(key="192.0.2.1"), TD)


@pytest.mark.parametrize("ports", [["http"], ["80", "0"], ["70000"], [str(n) for n in range(999)]])
def test_ports_that_are_none_are_left_out_and_so_need_a_tunnel(ports: list[str]) -> None:
    fields = Fields()
    said = changed(skip_inbound_ports=ports, skip_outbound_ports=ports)
    it = workload(said, TD, fields)
    assert it.takes_tunnel(80)
    assert not it.skip_outbound
    assert {one.reason for one in fields.refused} == {"ports_malformed"}


def test_of_a_service_only_what_cannot_be_dialled_is_left_out() -> None:
    said = pb.Service(namespace="shop", name="api", cluster_ips=["10.96.0.1", "x"])
    said.ports.add(port=80)
    said.ports.add(port=70000)
    said.ports.add(port=0)
    said.endpoints.add(ip="10.0.0.7", ports={80: 70000, 70000: 80, 81: 8081}, workload=POD)
    said.endpoints.add(ip="10.0.0.8", ports={80: 8080}, workload=changed(service_account="../x"))
    said.endpoints.add(ip="not an ip", ports={80: 8080})
    said.endpoints.add(ip="", ports={80: 8080})
    fields = Fields()
    it = found(pb.Entry(key="api.shop", service=said), TD, fields)
    assert isinstance(it, Service)
    assert it.ports == {80}
    assert it.cluster_ips == ("10.96.0.1",)
    assert [(one.ip, one.ports) for one in it.endpoints] == [("10.0.0.7", {81: 8081})]
    assert {one.reason for one in fields.refused} == {
        "port_out_of_range",
        "address_malformed",
        "name_malformed",
    }


def test_ports_of_the_settings_that_are_none_are_left_out() -> None:
    said = pb.PodSettings(http_ports=[0, 8080], mesh_default="deny")
    it = checked_settings(said, Fields())
    assert list(it.http_ports) == [8080]
    assert it.mesh_default == "deny"


def settings(default: str = "deny", plaintext: str = "deny") -> pb.PodSettings:
    return pb.PodSettings(mesh_default=default, plaintext=plaintext, external="allow")


def test_policies_are_taken_over_word_for_word() -> None:
    said = settings(plaintext="allow")
    policy = said.policies.add(namespace="shop", name="api", audit=True)
    rule = policy.allow.add(name="allow[0]", from_cidrs=["10.0.0.0/8"], ports=[80])
    getattr(rule, "from").add(namespace="shop", service_account="web")
    it = policy_set(said)
    (taken,) = it.policies
    (allow,) = taken.allow
    assert (it.mesh_default, it.allow_plaintext) == ("deny", True)
    ports = pb.PodSettings(mesh_default="deny", plaintext="deny", plaintext_ports=["80", "90-91"])
    assert [p for p in (79, 80, 90, 91, 92) if policy_set(ports).takes_plaintext(p)] == [80, 90, 91]
    assert (taken.name, taken.audit, taken.deny) == ("shop/api", True, ())
    assert allow.sources == (Source("shop", "web"),)
    assert [str(n) for n in allow.networks] == ["10.0.0.0/8"]
    assert allow.ports == {80}


@pytest.mark.attack_row(26)
@pytest.mark.parametrize(
    "said",
    [
        settings(default=""),
        settings(default="allow"),
        settings(plaintext=""),
        pb.PodSettings(mesh_default="deny", plaintext="deny", plaintext_ports=["80-"]),
    ],
)
def test_settings_with_an_unknown_word_are_refused(said: pb.PodSettings) -> None:
    with pytest.raises(NotUnderstood):
        policy_set(said)


def test_a_policy_with_a_network_that_is_none_refuses_the_settings_whole() -> None:
    said = settings()
    said.policies.add(namespace="shop", name="api").deny.add(from_cidrs=["10.0.0.1/8"])
    with pytest.raises(NotUnderstood, match="settings"):
        policy_set(said)


@pytest.mark.attack_row(26)
@pytest.mark.fault_row("version-skew")
def test_policies_of_a_later_form_are_refused_whole() -> None:
    said = settings()
    said.policy_format = POLICY_FORMAT
    policy_set(said)
    said.policy_format = POLICY_FORMAT + 1
    with pytest.raises(NotUnderstood, match="policy format"):
        policy_set(said)
