"""podlink's own ports, dialled by those who should not."""

import json
from collections.abc import Iterator

import pytest

from kit.contract import INBOUND_PORT, OUTBOUND_PORT
from tests.e2e.mesh import Mesh, now, until
from tests.e2e.objects import pod, serving

REPEATS = 1000
REFUSED = {"ConnectionResetError", "ConnectionRefusedError"}
DIAL = """
import json, socket, sys
outcomes = {}
for _ in range(int(sys.argv[3])):
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as s:
            s.sendall(b"loop")
            outcome = "got " + s.recv(10).decode()
    except OSError as e:
        outcome = type(e).__name__
    outcomes[outcome] = outcomes.get(outcome, 0) + 1
print(json.dumps(outcomes))
"""


@pytest.fixture(scope="module", autouse=True)
def servers(mesh: Mesh) -> Iterator[None]:
    made = [pod("besieged", serving("echo", 7001))]
    mesh.apply(*made)
    yield
    mesh.delete(*made)


def _dial(mesh: Mesh, source: str, host: str, port: int) -> dict[str, int]:
    told = mesh.run(source, "python", "-c", DIAL, host, str(port), str(REPEATS))
    outcomes: dict[str, int] = json.loads(told)
    return outcomes


def _descriptors(mesh: Mesh, name: str) -> int:
    return len(mesh.node("ls", f"/proc/{mesh.proxy_pid(name)}/fd").split())


def _log_lines(mesh: Mesh, name: str) -> int:
    """Lines for an operator; the access log has one of each link, as it should."""
    lines = mesh.cluster.logs(name, "podlink-proxy").splitlines()
    return sum(json.loads(line).get("scope") != "access" for line in lines)


def _settled(mesh: Mesh, name: str, at_most: int) -> None:
    until(lambda: _descriptors(mesh, name) <= at_most, f"at most {at_most} descriptors of {name}")


@pytest.mark.attack_row(6)
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("port", [OUTBOUND_PORT, INBOUND_PORT])
def test_another_pod_that_dials_them_is_refused(mesh: Mesh, port: int, version: int) -> None:
    since, ip = now(), mesh.ip("mesh/besieged", version)
    before, seen = _descriptors(mesh, "mesh/besieged"), mesh.seen("mesh/besieged")
    outcomes = _dial(mesh, "plain/stranger", ip, port)
    assert set(outcomes) <= REFUSED and sum(outcomes.values()) == REPEATS
    link = mesh.link(since, destination="mesh/besieged", asked_port=port, asked_address=ip)
    assert (link["verdict"], link["reason"]) == ("denied", "own_port")
    mesh.talk("mesh/client", ip, 7001, "hello")
    until(lambda: mesh.seen("mesh/besieged") == [*seen, "accepted", "received 5"], "one link only")
    _settled(mesh, "mesh/besieged", before + 4)


@pytest.mark.attack_row(7)
@pytest.mark.parametrize("port", [OUTBOUND_PORT, INBOUND_PORT])
@pytest.mark.parametrize("way", ["loopback", "own IP", "own IPv6"])
def test_an_app_that_dials_them_makes_no_loop(mesh: Mesh, port: int, way: str) -> None:
    since, name = now(), "mesh/besieged"
    host = {"loopback": "127.0.0.1", "own IP": mesh.ip(name), "own IPv6": mesh.ip(name, 6)}[way]
    before, lines = _descriptors(mesh, name), _log_lines(mesh, name)
    outcomes = _dial(mesh, name, host, port)
    assert set(outcomes) <= REFUSED and sum(outcomes.values()) == REPEATS
    link = mesh.link(since, asked_port=port, reason="own_port")
    assert link["verdict"] == "denied"
    _settled(mesh, name, before + 4)
    mesh.talk("mesh/client", mesh.ip(name), 7001, "hello")
    assert _log_lines(mesh, name) - lines <= REPEATS / 10, "denials are said, and never flood"


@pytest.mark.attack_row(6)
def test_a_meshed_pod_that_dials_a_peers_own_port_is_refused_at_home(mesh: Mesh) -> None:
    since, ip = now(), mesh.ip("mesh/besieged")
    for port in (OUTBOUND_PORT, INBOUND_PORT):
        outcomes = _dial(mesh, "mesh/client", ip, port)
        assert set(outcomes) <= REFUSED
        link = mesh.link(since, source="mesh/client", asked_address=ip, asked_port=port)
        assert (link["verdict"], link["reason"]) == ("denied", "own_port")
        assert link["sides"] == ["outbound"]
