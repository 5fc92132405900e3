"""`mode: localhost`: no init container and no capability; the app dials its own loopback."""

from collections.abc import Iterator

import pytest

from tests.e2e.mesh import Mesh, identity, now
from tests.e2e.objects import account, pod, service, serving

UPSTREAMS = "9001=backend.mesh:80, 9002=local-backend.mesh:80, 9003=stateful-0.stateful.mesh:7001"


@pytest.fixture(scope="module", autouse=True)
def pods(mesh: Mesh) -> Iterator[None]:
    made = [
        account("backend"),
        service("backend", {"port": 80, "targetPort": 7001}),
        service("local-backend", {"port": 80, "targetPort": 7001}),
        service("stateful", 7001, app="stateful-0", clusterIP="None"),
        pod("backend", serving("echo", 7001), serviceAccountName="backend"),
        pod("stateful-0", serving("echo", 7001), hostname="stateful-0", subdomain="stateful"),
        pod(
            "local-backend",
            serving("echo", 7001, "127.0.0.1"),
            config={"mode": "localhost", "expose-loopback-ports": "7001"},
        ),
        pod("caller", config={"mode": "localhost", "upstreams": UPSTREAMS}),
    ]
    mesh.apply(*made)
    yield
    mesh.delete(*made[1:])


@pytest.mark.parametrize("name", ["caller", "local-backend"])
def test_such_a_pod_has_no_capture_and_no_capability(mesh: Mesh, name: str) -> None:
    spec = mesh.cluster.get("Pod", f"mesh/{name}")["spec"]
    assert [c["name"] for c in spec["initContainers"]] == ["podlink-proxy"]
    for container in (*spec["initContainers"], *spec["containers"]):
        capabilities = container.get("securityContext", {}).get("capabilities", {})
        assert "add" not in capabilities
    status = mesh.node("cat", f"/proc/{mesh.proxy_pid(f'mesh/{name}')}/status")
    held = {k: v.strip() for k, v in (line.split(":", 1) for line in status.splitlines())}
    assert {held[f"Cap{kind}"] for kind in ("Eff", "Prm", "Bnd", "Amb")} == {"0" * 16}


@pytest.mark.parametrize(
    ("port", "destination", "account"),
    [
        (9001, "mesh/backend", "backend"),
        (9002, "mesh/local-backend", "default"),
        (9003, "mesh/stateful-0", "default"),
    ],
)
def test_an_upstream_leads_through_a_protected_link(
    mesh: Mesh, port: int, destination: str, account: str
) -> None:
    since = now()
    mesh.talk("mesh/caller", "127.0.0.1", port, "hello")
    link = mesh.link(since, sides=2, source="mesh/caller", destination=destination)
    assert (link["security"], link["verdict"]) == ("mtls", "allowed")
    assert link["destination"]["identity"] == identity(account)
    assert link["disagreements"] == []


def test_a_captured_pod_reaches_one_that_is_not(mesh: Mesh) -> None:
    since = now()
    mesh.talk("mesh/client", "local-backend", 80, "hello")
    link = mesh.link(since, sides=2, source="mesh/client", destination="mesh/local-backend")
    assert (link["security"], link["verdict"]) == ("mtls", "allowed")


def test_its_app_cannot_be_dialled_around_the_proxy(mesh: Mesh) -> None:
    done = mesh.attempt("plain/stranger", mesh.ip("mesh/local-backend"), 7001, "hello")
    assert (done["got"], done["error"]) == ("", "ConnectionRefusedError")
