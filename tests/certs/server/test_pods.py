"""Which addresses go into a leaf, and whose pod it is."""

from typing import Any

import pytest

from certs.server.pods import Addresses, PodSeen, choose_addresses, read_peer, read_pod
from certs.server.refusals import CallerForbidden
from certs.server.review import Caller
from certs.trust.identity import WorkloadIdentity

CALLER = Caller(WorkloadIdentity("cluster.local", "shop", "api"), "api-1", "uid-1", "")
NODE_IP = "192.168.9.1"


def pod(spec: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "api-1", "namespace": "shop", "uid": "uid-1"},
        "spec": {"serviceAccountName": "api", "nodeName": "node-1", **(spec or {})},
        "status": {"phase": "Running", "hostIP": NODE_IP, **status},
    }


def addresses(seen: dict[str, Any]) -> Addresses:
    return choose_addresses(read_pod(seen, CALLER))


def test_known_addresses_count() -> None:
    seen = pod(podIP="10.0.0.7", podIPs=[{"ip": "10.0.0.7"}, {"ip": "FD00:0::7"}])
    assert addresses(seen) == Addresses(frozenset({"10.0.0.7", "fd00::7"}), False)


def test_an_old_server_with_one_address_is_understood() -> None:
    assert addresses(pod(podIP="10.0.0.7")) == Addresses(frozenset({"10.0.0.7"}), False)


def test_before_the_kubelet_reports_the_leaf_is_short_and_names_no_address() -> None:
    assert addresses(pod()) == Addresses(frozenset(), True)


def test_a_pod_on_its_nodes_network_has_no_address_of_its_own() -> None:
    seen = pod({"hostNetwork": True}, podIPs=[{"ip": NODE_IP}])
    assert addresses(seen) == Addresses(frozenset(), False)


@pytest.mark.parametrize("ip", ["0.0.0.0", "::", "224.0.0.1", "fe80::1%eth0", "10.0.0.0/8", "x", 7])
def test_what_names_no_single_pod_is_refused(ip: Any) -> None:
    with pytest.raises(CallerForbidden, match="pod_malformed"):
        read_pod(pod(podIPs=[{"ip": ip}]), CALLER)


@pytest.mark.parametrize("seen", [None, [], {}, {"metadata": {}}, {"metadata": 1, "spec": 2}])
def test_an_answer_that_is_no_pod_is_refused(seen: Any) -> None:
    with pytest.raises(CallerForbidden, match="pod_malformed"):
        read_pod(seen, CALLER)


def test_the_facts_of_the_pod_are_kept() -> None:
    assert read_pod(pod(), CALLER) == PodSeen("node-1", False, frozenset(), frozenset({NODE_IP}))


@pytest.mark.parametrize(
    ("peer", "ip"),
    [
        ("ipv4:10.0.0.7:52044", "10.0.0.7"),
        ("ipv6:[fd00::7]:52044", "fd00::7"),
        ("ipv6:%5Bfd00::7%5D:52044", "fd00::7"),
        ("ipv6:[::ffff:10.0.0.7]:1", "10.0.0.7"),
        ("unix:/run/x.sock", ""),
        ("", ""),
        ("ipv4:", ""),
        ("ipv4:x:1", ""),
    ],
)
def test_the_callers_address_is_read_from_grpcs_name_of_it(peer: str, ip: str) -> None:
    assert read_peer(peer) == ip
