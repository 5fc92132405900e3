"""Where the mesh ends: peers without a sidecar, the world outside, and ports that are skipped."""

from collections.abc import Iterator

import pytest

from local.node.network import NODE_IP
from tests.e2e.mesh import Mesh, now, until
from tests.e2e.objects import PLAIN, pod, service, serving

OUTSIDE = "198.51.100.7"
"""An address of the node that belongs to no cluster range (RFC 5737)."""
UNTIL_INPUT_ENDS = "python -m tests.e2e.apps echo 7009 & cat > /dev/null; kill $!"
REFUSED = {"ConnectionResetError", "ConnectionRefusedError"}


@pytest.fixture(scope="module", autouse=True)
def servers(mesh: Mesh) -> Iterator[None]:
    made = [
        service("bare", {"port": 80, "targetPort": 7001}, where=PLAIN),
        pod("bare", serving("echo", 7001), where=PLAIN),
        pod("guarded", serving("echo", 7001)),
        pod("half-guarded", serving("echo", 7001), config={"skip-inbound-ports": "7001"}),
        pod("skipper", config={"skip-outbound-ports": "7001,7100-7110"}),
        pod("homebody", config={"external": "deny"}),
    ]
    mesh.apply(*made)
    mesh.node("ip", "addr", "add", f"{OUTSIDE}/32", "dev", "lo")
    with mesh.on_node("bash", "-c", UNTIL_INPUT_ENDS):
        probe = f"until nc -z {OUTSIDE} 7009; do sleep 0.05; done"
        mesh.node("timeout", "20", "bash", "-c", probe)
        yield
    mesh.node("ip", "addr", "del", f"{OUTSIDE}/32", "dev", "lo")
    mesh.delete(*made)


@pytest.mark.attack_row(1)
@pytest.mark.parametrize("version", [4, 6])
def test_plaintext_from_outside_the_mesh_is_reset_and_the_app_hears_nothing(
    mesh: Mesh, version: int
) -> None:
    since, ip = now(), mesh.ip("mesh/guarded", version)
    before = mesh.seen("mesh/guarded")
    done = mesh.attempt("plain/stranger", ip, 7001, "let me in")
    assert done["got"] == "" and done["error"] in REFUSED
    link = mesh.link(since, destination="mesh/guarded", destination_address=ip, verdict="denied")
    assert link["reason"] == "plaintext_denied"
    assert link["source"]["address"] == mesh.ip("plain/stranger", version)
    assert (link["bytes_sent"], link["bytes_received"]) == (0, 0)
    # The control: a peer with an identity gets through, and is the only one whom the app has met.
    mesh.talk("mesh/client", ip, 7001, "hello")
    until(lambda: mesh.seen("mesh/guarded") == [*before, "accepted", "received 5"], "one link only")


def test_a_server_outside_the_mesh_is_reached_in_plaintext_and_the_record_says_why(
    mesh: Mesh,
) -> None:
    for host, port in (("bare.plain", 80), (mesh.ip("plain/bare"), 7001)):
        since = now()
        mesh.talk("mesh/client", host, port, "hello")
        link = mesh.link(since, source="mesh/client", destination="plain/bare")
        assert (link["security"], link["verdict"]) == ("plaintext", "allowed")
        assert link["reason"] == "unmeshed_peer"


@pytest.mark.parametrize(
    ("host", "reason"), [(OUTSIDE, "external"), (NODE_IP, "host_network")], ids=["world", "node"]
)
def test_what_is_neither_pod_nor_service_is_reached_in_plaintext(
    mesh: Mesh, host: str, reason: str
) -> None:
    since = now()
    mesh.talk("mesh/client", host, 7009, "hello")
    link = mesh.link(since, source="mesh/client", destination_address=host)
    assert (link["security"], link["reason"]) == ("plaintext", reason)
    assert link["verdict"] == "allowed"


def test_a_pod_that_may_not_leave_the_mesh_is_refused_outside_it(mesh: Mesh) -> None:
    since = now()
    done = mesh.attempt("mesh/homebody", OUTSIDE, 7009, "hello")
    assert done["got"] == "" and done["error"] in REFUSED
    link = mesh.link(since, source="mesh/homebody", verdict="denied")
    assert link["reason"] == "external_denied"
    assert link["destination"]["address"] == OUTSIDE
    mesh.talk("mesh/homebody", mesh.ip("mesh/guarded"), 7001, "hi")


def test_a_skipped_inbound_port_takes_plaintext_from_anyone(mesh: Mesh) -> None:
    ip = mesh.ip("mesh/half-guarded")
    mesh.talk("plain/stranger", ip, 7001, "hello")


def test_a_meshed_client_reaches_a_skipped_inbound_port_in_plaintext_on_record(mesh: Mesh) -> None:
    since, ip = now(), mesh.ip("mesh/half-guarded")
    mesh.talk("mesh/client", ip, 7001, "hello")
    link = mesh.link(since, source="mesh/client", destination="mesh/half-guarded")
    assert (link["security"], link["reason"]) == ("plaintext", "skip_port")


def test_a_skipped_outbound_port_is_not_captured(mesh: Mesh) -> None:
    since = now()
    mesh.talk("mesh/skipper", mesh.ip("plain/bare"), 7001, "hello")
    done = mesh.attempt("mesh/skipper", mesh.ip("mesh/guarded"), 7001, "hello")
    assert done["got"] == "" and done["error"] in REFUSED
    denied = mesh.link(since, destination="mesh/guarded", verdict="denied")
    assert denied["reason"] == "plaintext_denied"
    assert denied["sides"] == ["inbound"]
    # Another port of the same pod is captured as ever.
    mesh.talk("mesh/skipper", OUTSIDE, 7009, "hello")
    assert mesh.link(since, source="mesh/skipper", reason="external")["sides"] == ["outbound"]
