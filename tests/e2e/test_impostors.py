"""Pods that are not who they were, and apps that step around their own sidecar."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.mesh import Mesh, identity, now, until
from tests.e2e.objects import account, pod, serving


@pytest.fixture(scope="module", autouse=True)
def pods(mesh: Mesh) -> Iterator[None]:
    made = [
        account("heir"),
        pod("heir", serving("echo", 7001), serviceAccountName="heir"),
        pod("rebel", serving("echo", 7001)),
        pod("loyal", serving("echo", 7001)),
    ]
    mesh.apply(*made)
    yield
    mesh.delete(*made[1:])


def _in_network_of(mesh: Mesh, name: str, *argv: str) -> str:
    return mesh.node("nsenter", f"--net=/proc/{mesh.pid(name)}/ns/net", *argv)


@pytest.mark.attack_row(19)
@pytest.mark.fault_row("cluster-ip-reuse")
def test_a_pod_on_the_address_of_one_that_went_gets_no_byte_of_what_was_meant_for_that(
    mesh: Mesh,
) -> None:
    """The worst moment: the registry is stalled, so that nobody has been told of the change."""
    since, gone = now(), pod("testator", serving("echo", 7001), serviceAccountName="client")
    mesh.apply(gone)
    ip, before = mesh.ip("mesh/testator"), mesh.seen("mesh/heir")
    mesh.talk("mesh/client", ip, 7001, "hello")
    registry = mesh.system_pid("registry")
    mesh.node("kill", "-STOP", registry)
    try:
        mesh.delete(gone)
        _in_network_of(mesh, "mesh/heir", "ip", "addr", "add", f"{ip}/32", "dev", "eth0")
        mesh.node("ip", "neigh", "flush", "to", ip)
        done = mesh.attempt("mesh/client", ip, 7001, "the testament")
        assert done["got"] == ""
        link = mesh.link(since, source="mesh/client", destination_address=ip, verdict="failed")
        assert link["reason"] == "identity_mismatch"
        assert identity("heir") in link["error"] and identity("client") in link["error"]
    finally:
        mesh.node("kill", "-CONT", registry)
    # Told that nobody has the address: still nothing goes there, and least of all in plaintext.
    until(
        lambda: mesh.attempt("mesh/client", ip, 7001, "the testament")["error"] != "",
        "it is refused",
    )
    until(
        lambda: (
            mesh.attempt("mesh/client", ip, 7001, "the testament")["got"] == ""
            and any(i["reason"] == "endpoint_unreachable" for i in _asked(mesh, since, ip))
        ),
        "the address is nobody's",
    )
    assert {i["security"] for i in _asked(mesh, since, ip)} <= {"mtls", "none"}
    # The control: by its own address the heir is reached, and that is all that it ever saw.
    mesh.talk("mesh/client", mesh.ip("mesh/heir"), 7001, "hello")
    until(lambda: mesh.seen("mesh/heir") == [*before, "accepted", "received 5"], "one link only")


def _asked(mesh: Mesh, since: int, ip: str) -> list[Any]:
    links = [i for i in mesh.links() if int(i["start_unix_ns"]) >= since]
    return [i for i in links if i["asked"]["address"] == ip]


@pytest.mark.attack_row(40)
def test_an_app_that_removes_its_own_rules_is_still_refused_by_its_receivers(mesh: Mesh) -> None:
    since, before = now(), mesh.seen("mesh/loyal")
    _in_network_of(mesh, "mesh/rebel", "nft", "flush", "ruleset")
    for version in (4, 6):
        done = mesh.attempt("mesh/rebel", mesh.ip("mesh/loyal", version), 7001, "no tunnel")
        assert (done["got"], done["error"]) == ("", "ConnectionResetError")
    links = mesh.eventually_links(since, 2, destination="mesh/loyal", verdict="denied")
    assert {(i["reason"], i["source"]["pod"]) for i in links} == {
        ("plaintext_denied", "mesh/rebel")
    }
    assert {i["source"]["identity"] for i in links} == {None}, "its address is no identity"
    mesh.talk("mesh/client", mesh.ip("mesh/loyal"), 7001, "hello")
    until(lambda: mesh.seen("mesh/loyal") == [*before, "accepted", "received 5"], "one link only")


@pytest.mark.attack_row(40)
def test_an_app_that_answers_in_its_sidecars_place_hears_nothing_that_it_can_read(
    mesh: Mesh,
) -> None:
    """With its rules gone its app itself takes the connections of peers: a ClientHello, no more."""
    _in_network_of(mesh, "mesh/rebel", "nft", "flush", "ruleset")
    since = now()
    done = mesh.attempt("mesh/client", mesh.ip("mesh/rebel"), 7001, "for the sidecar only")
    assert done["got"] == ""
    link = mesh.link(since, source="mesh/client", destination="mesh/rebel")
    assert (link["verdict"], link["security"]) == ("failed", "none")
    assert link["reason"] in ("handshake_failed", "handshake_timeout")
    assert (link["bytes_sent"], link["bytes_received"]) == (0, 0)
