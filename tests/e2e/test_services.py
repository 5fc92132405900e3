"""Every way in which Kubernetes lets an app name another pod, and what becomes of it."""

import json
from collections.abc import Iterator

import pytest

from tests.e2e.mesh import SOON_S, Mesh, identity, now, until
from tests.e2e.objects import MESH, Object, account, pod, service, serving


@pytest.fixture(scope="module", autouse=True)
def servers(mesh: Mesh) -> Iterator[None]:
    two = [serving("echo", port, name=f"app-{port}") for port in (7002, 7003)]
    made = [
        account("member"),
        service("other-port", {"port": 81, "targetPort": 7001}, app="target"),
        service("named-port", {"port": 82, "targetPort": "echo"}, app="target"),
        service("members", 7001, app="member", clusterIP="None"),
        service(
            "two-ports",
            {"name": "first", "port": 1, "targetPort": 7002},
            {"name": "second", "port": 2, "targetPort": 7003},
        ),
        service("nobody", 80),
        service("local-only", 7001),
        service("exposed", 7001),
        pod("target", serving("echo", 7001, port_name="echo")),
        pod("two-ports", containers=two),
        pod("local-only", serving("echo", 7001, "127.0.0.1")),
        pod(
            "exposed",
            serving("echo", 7001, "127.0.0.1"),
            config={"expose-loopback-ports": "7001"},
        ),
        pod("itself", serving("echo", 7001)),
        service("mirror", {"port": 83, "targetPort": 7001}, app="itself"),
    ]
    mesh.apply(_stateful_set(), *made)
    mesh.cluster.wait_ready("mesh/member-0", "mesh/member-1")
    yield
    mesh.delete(_stateful_set(), *made)


def _stateful_set() -> Object:
    template = pod("member", serving("echo", 7001), serviceAccountName="member")
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "member", "namespace": MESH},
        "spec": {
            "serviceName": "members",
            "replicas": 2,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": "member"}},
            "template": {"metadata": {"labels": {"app": "member"}}, "spec": template["spec"]},
        },
    }


@pytest.mark.parametrize("ordinal", [0, 1])
def test_each_pod_of_a_stateful_set_is_reached_by_its_own_name(mesh: Mesh, ordinal: int) -> None:
    since, name = now(), f"mesh/member-{ordinal}"
    host = f"member-{ordinal}.members.mesh.svc.cluster.local"
    before = mesh.seen(name)
    mesh.talk("mesh/client", host, 7001, "hello")
    until(lambda: mesh.seen(name) == [*before, "accepted", "received 5"], f"{name} saw it")
    link = mesh.link(since, sides=2, destination=name)
    assert (link["security"], link["verdict"]) == ("mtls", "allowed")
    assert link["destination"]["identity"] == identity("member")
    assert link["destination"]["address"] == mesh.ip(name)


def test_a_headless_service_leads_to_each_of_its_pods(mesh: Mesh) -> None:
    script = (
        "import json, socket; print(json.dumps(sorted({i[4][0] for i in"
        " socket.getaddrinfo('members', 7001, socket.AF_INET, socket.SOCK_STREAM)})))"
    )
    found = json.loads(mesh.run("mesh/client", "python", "-c", script))
    assert set(found) == {mesh.ip("mesh/member-0"), mesh.ip("mesh/member-1")}
    for ip in found:
        mesh.talk("mesh/client", ip, 7001, "hello")


@pytest.mark.parametrize(("name", "port"), [("other-port", 81), ("named-port", 82)])
def test_a_service_whose_target_port_differs(mesh: Mesh, name: str, port: int) -> None:
    since = now()
    mesh.talk("mesh/client", name, port, "hello")
    link = mesh.link(since, sides=2, destination="mesh/target", service=f"{name}.mesh")
    assert link["security"] == "mtls"
    assert (link["asked"]["port"], link["destination"]["port"]) == (port, 7001)


def test_a_service_with_two_ports_leads_to_the_one_that_was_asked_for(mesh: Mesh) -> None:
    for port, target in ((1, 7002), (2, 7003)):
        since = now()
        mesh.talk("mesh/client", "two-ports", port, "hello")
        link = mesh.link(since, sides=2, destination="mesh/two-ports", destination_port=target)
        assert (link["security"], link["asked"]["port"]) == ("mtls", port)


def test_a_service_without_endpoints_is_refused_at_once(mesh: Mesh) -> None:
    since = now()
    done = mesh.attempt("mesh/client", "nobody", 80, "hello")
    assert (done["got"], done["error"]) == ("", "ConnectionResetError")
    assert done["seconds"] < SOON_S
    link = mesh.link(since, source="mesh/client", service="nobody.mesh")
    assert (link["verdict"], link["reason"]) == ("failed", "no_endpoints")


def test_a_port_where_nobody_listens_is_refused_at_once(mesh: Mesh) -> None:
    since = now()
    done = mesh.attempt("mesh/client", mesh.ip("mesh/target"), 9, "hello")
    assert (done["got"], done["error"]) == ("", "ConnectionResetError")
    assert done["seconds"] < SOON_S
    link = mesh.link(since, sides=2, destination="mesh/target", destination_port=9)
    assert (link["verdict"], link["reason"]) == ("failed", "app_unreachable")


@pytest.mark.parametrize("version", [4, 6])
def test_a_pod_is_reached_by_its_ip_of_either_version(mesh: Mesh, version: int) -> None:
    since, ip = now(), mesh.ip("mesh/target", version)
    mesh.talk("mesh/client", ip, 7001, "hello")
    link = mesh.link(since, sides=2, destination="mesh/target", destination_address=ip)
    assert (link["security"], link["verdict"]) == ("mtls", "allowed")
    assert link["endpoint_choice"] == "pod-ip"


def test_what_an_app_binds_to_loopback_stays_closed_unless_the_pod_exposes_it(mesh: Mesh) -> None:
    since = now()
    done = mesh.attempt("mesh/client", "local-only", 7001, "hello")
    assert (done["got"], done["error"]) == ("", "ConnectionResetError")
    link = mesh.link(since, source="mesh/client", destination="mesh/local-only")
    assert (link["verdict"], link["reason"]) == ("failed", "app_unreachable")
    mesh.talk("mesh/client", "exposed", 7001, "hello")
    assert mesh.link(since, sides=2, destination="mesh/exposed")["security"] == "mtls"


@pytest.mark.parametrize("way", ["pod IP", "pod IPv6", "service"])
def test_a_pod_that_calls_itself_leaves_a_record_of_its_own_kind(mesh: Mesh, way: str) -> None:
    since = now()
    ways = {
        "pod IP": (mesh.ip("mesh/itself"), 7001),
        "pod IPv6": (mesh.ip("mesh/itself", 6), 7001),
        "service": ("mirror", 83),
    }
    host, port = ways[way]
    before = mesh.seen("mesh/itself")
    mesh.talk("mesh/itself", host, port, "hello")
    until(lambda: mesh.seen("mesh/itself") == [*before, "accepted", "received 5"], "it saw it once")
    link = mesh.link(since, source="mesh/itself", destination="mesh/itself")
    assert (link["security"], link["verdict"]) == ("self", "allowed")
    assert (link["bytes_sent"], link["bytes_received"]) == (5, 5)


def test_localhost_is_left_alone(mesh: Mesh) -> None:
    since = now()
    for host in ("127.0.0.1", "::1"):
        mesh.talk("mesh/itself", host, 7001, "hello")
    # A captured link made later is on record, and localhost is not.
    mesh.talk("mesh/itself", mesh.ip("mesh/target"), 7001, "later")
    mesh.link(since, source="mesh/itself", destination="mesh/target")
    assert mesh.eventually_links(since, 0, source="mesh/itself", destination="mesh/itself") == []
