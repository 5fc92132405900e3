"""A kubelet's probes of injected pods: the node asks the proxy, the proxy asks the app."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.mesh import Mesh, until
from tests.e2e.objects import Object, pod

APP = "python -m tests.e2e.apps"
WEB = "mkdir -p /tmp/site && cd /tmp/site && touch ready bye && exec python -m http.server 8080"
QUICK = {"periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 5}


def app(name: str, command: str, port: int, **probes: Object) -> Object:
    return {
        "name": name,
        "image": "none",
        "command": ["sh", "-c", command],
        "ports": [{"name": f"{name}-port", "containerPort": port}],
        **probes,
    }


def http(path: str) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": "web-port"}, **QUICK}


@pytest.fixture(scope="module", autouse=True)
def probed(mesh: Mesh) -> Iterator[None]:
    web = app(
        "web", WEB, 8080, startupProbe={**http("/"), "failureThreshold": 60},
        livenessProbe={**http("/"), "failureThreshold": 30}, readinessProbe=http("/ready"),
    )  # fmt: skip
    shop = {"grpc": {"port": 50051, "service": "shop"}, **QUICK}
    rpc = app("rpc", f"exec {APP} grpc-health 50051", 50051, readinessProbe=shop)
    tcp = app(
        "tcp", f"exec {APP} echo 7005", 7005,
        readinessProbe={"tcpSocket": {"port": "tcp-port"}, **QUICK},
    )  # fmt: skip
    made = pod("probed")
    made["spec"]["containers"] = [web, rpc, tcp]
    mesh.apply(made)  # ready only when all three are
    yield
    mesh.delete(made)


def ready(mesh: Mesh, name: str) -> dict[str, bool]:
    statuses = mesh.cluster.get("Pod", name)["status"]["containerStatuses"]
    return {one["name"]: one["ready"] for one in statuses}


def test_http_tcp_and_grpc_probes_of_an_injected_pod_succeed(mesh: Mesh) -> None:
    assert ready(mesh, "mesh/probed") == {"web": True, "rpc": True, "tcp": True}


@pytest.mark.attack_row(1)
def test_the_node_itself_is_still_a_stranger_at_the_apps_ports(mesh: Mesh) -> None:
    ip = mesh.ip("mesh/probed")
    done = mesh.cluster.node_exec(["curl", "-sS", "-m", "5", f"http://{ip}:8080/ready"])
    assert done.returncode != 0
    asked = mesh.node("curl", "-sS", "-m", "5", f"http://{ip}:24103/probe/web/readiness")
    assert asked == "ok\n"


def test_an_http_probe_follows_what_the_app_says(mesh: Mesh) -> None:
    inside = ("python", "-c", "import os; os.rename('/tmp/site/{}', '/tmp/site/{}')")
    move = inside[2]
    run = [*inside[:2], move.format("ready", "gone")]
    assert mesh.cluster.exec("mesh/probed", run, container="web").returncode == 0
    until(lambda: not ready(mesh, "mesh/probed")["web"], "web is unready")
    assert ready(mesh, "mesh/probed")["tcp"]
    run = [*inside[:2], move.format("gone", "ready")]
    assert mesh.cluster.exec("mesh/probed", run, container="web").returncode == 0
    until(lambda: ready(mesh, "mesh/probed")["web"], "web is ready again")


def test_a_tcp_probe_where_nobody_listens_fails_though_every_port_is_captured(mesh: Mesh) -> None:
    """Behind a redirect the proxy accepts everything: a kubelet's own probe would always succeed."""
    made = pod("deaf")
    deaf = {"tcpSocket": {"port": 7777}, **QUICK}
    shut = {"grpc": {"port": 50052, "service": "other"}, **QUICK}
    made["spec"]["containers"] = [
        {"name": "deaf", "image": "none", "command": ["sleep", "9999"], "readinessProbe": deaf},
        app("shut", f"exec {APP} grpc-health 50052", 50052, readinessProbe=shut),
    ]
    ip_known = "status.podIP of mesh/deaf"
    try:
        mesh.cluster.apply(_yaml(made))
        until(lambda: mesh.cluster.get("Pod", "mesh/deaf")["status"].get("podIP"), ip_known)
        until(lambda: _proxy_ready(mesh), "the proxy of mesh/deaf is ready")
        ip = mesh.ip("mesh/deaf")
        url = f"http://{ip}:24103/probe"
        assert "refused" in mesh.node("curl", "-s", f"{url}/deaf/readiness").lower()
        shut_says = ("curl", "-s", f"{url}/shut/readiness")
        until(lambda: "NOT_SERVING" in mesh.node(*shut_says), "the gRPC app says NOT_SERVING")
        assert ready(mesh, "mesh/deaf") == {"deaf": False, "shut": False}
    finally:
        mesh.delete(made)


def _proxy_ready(mesh: Mesh) -> bool:
    statuses = mesh.cluster.get("Pod", "mesh/deaf")["status"].get("initContainerStatuses") or ()
    return any(one["name"] == "podlink-proxy" and one.get("started") for one in statuses)


def _yaml(one: Object) -> str:
    import yaml

    return yaml.safe_dump(one)
