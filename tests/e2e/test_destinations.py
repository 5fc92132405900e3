"""Services of every shape: both IP versions, ports by name, pods that come, leave or are not ready."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.mesh import SOON_S, Mesh, identity, now, until
from tests.e2e.objects import MESH, PLAIN, Object, account, container, pod, service, serving

"""Far below every time-out on the way, far above what a busy machine needs."""
DUAL = {"ipFamilyPolicy": "RequireDualStack"}
BY_NAME = {"port": 80, "targetPort": "echo"}


def _labelled(made: Object, app: str) -> Object:
    made["metadata"]["labels"]["app"] = app
    return made


def _echo(name: str, port: int = 7001, app: str = "both", **more: Any) -> Object:
    made = pod(name, serving("echo", port, port_name="echo"), serviceAccountName="backend", **more)
    return _labelled(made, app)


def _never_ready(name: str) -> Object:
    app = serving("echo", 7001, readinessProbe={"exec": {"command": ["false"]}, "periodSeconds": 1})
    return pod(name, app)


@pytest.fixture(scope="module", autouse=True)
def pods(mesh: Mesh) -> Iterator[None]:
    unready = [_never_ready("unready"), _never_ready("published")]
    made = [
        account("backend"),
        service("both", BY_NAME, **DUAL),
        service("both-peers", 7001, app="both", clusterIP="None", **DUAL),
        service("six", BY_NAME, app="both", ipFamilies=["IPv6"]),
        service("unready", 7001),
        service("published", 7001, publishNotReadyAddresses=True),
        _alias("alias", "both.mesh.svc.cluster.local"),
        _echo("both-0"),
        _echo("both-1", 7005),
        pod("dual-caller", config={"mode": "localhost", "upstreams": "9001=six.mesh:80"}),
    ]
    mesh.apply(*made)
    mesh.cluster.apply("\n---\n".join(json.dumps(one) for one in unready))
    for one in ("unready", "published"):
        until(lambda one=one: "app" in _running(mesh, f"mesh/{one}"), f"{one} runs")
    yield
    mesh.delete(*unready, *made[1:])


def _alias(name: str, stands_for: str) -> Object:
    made = service(name, 80)
    made["spec"] = {"type": "ExternalName", "externalName": stands_for}
    return made


def _running(mesh: Mesh, name: str) -> list[str]:
    statuses = mesh.cluster.get("Pod", name)["status"].get("containerStatuses") or []
    return [s["name"] for s in statuses if s.get("started")]


def _cluster_ip(mesh: Mesh, name: str, version: int) -> str:
    ips = mesh.cluster.get("Service", f"mesh/{name}")["spec"]["clusterIPs"]
    return str(next(ip for ip in ips if (":" in ip) == (version == 6)))


# --- both IP versions -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_a_dual_stack_service_is_reached_at_its_address_of_either_version(
    mesh: Mesh, version: int
) -> None:
    since, ip = now(), _cluster_ip(mesh, "both", version)
    for _ in range(8):
        mesh.talk("mesh/client", ip, 80, "hello")
    links = mesh.eventually_links(since, 8, sides=2, service="both.mesh")
    assert len(links) == 8
    assert {(i["security"], i["verdict"]) for i in links} == {("mtls", "allowed")}
    assert {i["asked"]["address"] for i in links} == {ip}
    assert {i["destination"]["identity"] for i in links} == {identity("backend")}
    # To addresses of that version only, and to each pod at its own number of the named port.
    ports = {i["destination"]["address"]: i["destination"]["port"] for i in links}
    own = {mesh.ip("mesh/both-0", version): 7001, mesh.ip("mesh/both-1", version): 7005}
    assert ports.items() <= own.items()


def test_a_service_of_ipv6_alone_is_reached_by_name_and_through_an_upstream(mesh: Mesh) -> None:
    for source, host, port in (
        ("mesh/client", "six", 80),
        ("mesh/dual-caller", "127.0.0.1", 9001),
        ("mesh/dual-caller", "::1", 9001),
    ):
        since = now()
        mesh.talk(source, host, port, "hello")
        link = mesh.link(since, sides=2, source=source, service="six.mesh")
        assert (link["security"], link["verdict"]) == ("mtls", "allowed")
        assert ":" in link["destination"]["address"]


@pytest.mark.parametrize("version", [4, 6])
def test_a_headless_service_has_addresses_of_both_versions(mesh: Mesh, version: int) -> None:
    script = (
        "import json, socket, sys; print(json.dumps(sorted({i[4][0] for i in socket.getaddrinfo("
        f"'both-peers', 7001, socket.AF_INET{'6' if version == 6 else ''})" + "})))"
    )
    found = json.loads(mesh.run("mesh/client", "python", "-c", script))
    assert set(found) == {mesh.ip(f"mesh/both-{n}", version) for n in (0, 1)}
    since, ip = now(), mesh.ip("mesh/both-0", version)
    mesh.talk("mesh/client", ip, 7001, "hello")
    link = mesh.link(since, sides=2, destination_address=ip)
    assert (link["security"], link["endpoint_choice"]) == ("mtls", "pod-ip")


def test_an_unmeshed_client_of_a_dual_stack_service_is_refused_in_either_version(
    mesh: Mesh,
) -> None:
    for version in (4, 6):
        since = now()
        done = mesh.attempt("plain/stranger", _cluster_ip(mesh, "both", version), 80, "hello")
        assert (done["got"], done["error"]) == ("", "ConnectionResetError")
        assert mesh.link(since, verdict="denied")["reason"] == "plaintext_denied"


# --- what a name leads to ------------------------------------------------------------------------------


def test_an_external_name_that_stands_for_a_service_leads_into_the_mesh(mesh: Mesh) -> None:
    since = now()
    mesh.talk("mesh/client", "alias", 80, "hello")
    link = mesh.link(since, sides=2, service="both.mesh")
    assert (link["security"], link["verdict"]) == ("mtls", "allowed")


@pytest.mark.parametrize("version", [4, 6])
def test_a_port_that_the_service_does_not_have_is_refused_at_once(mesh: Mesh, version: int) -> None:
    since = now()
    done = mesh.attempt("mesh/client", _cluster_ip(mesh, "both", version), 81, "hello")
    assert (done["got"], done["error"]) == ("", "ConnectionResetError")
    assert done["seconds"] < SOON_S
    link = mesh.link(since, source="mesh/client", service="both.mesh", asked_port=81)
    assert (link["verdict"], link["reason"]) == ("failed", "no_endpoints")
    assert "has no port 81" in link["error"]


# --- not ready, or leaving -----------------------------------------------------------------------------


def test_a_pod_that_is_not_ready_gets_no_link_by_its_service_but_by_its_ip(mesh: Mesh) -> None:
    since = now()
    done = mesh.attempt("mesh/client", "unready", 7001, "hello")
    assert (done["got"], done["error"]) == ("", "ConnectionResetError")
    assert done["seconds"] < SOON_S
    link = mesh.link(since, source="mesh/client", service="unready.mesh")
    assert (link["verdict"], link["reason"]) == ("failed", "no_endpoints")
    mesh.talk("mesh/client", mesh.ip("mesh/unready"), 7001, "hello")


def test_a_service_that_publishes_it_all_the_same_leads_there(mesh: Mesh) -> None:
    since = now()
    mesh.talk("mesh/client", "published", 7001, "hello")
    link = mesh.link(since, sides=2, destination="mesh/published", service="published.mesh")
    assert (link["security"], link["verdict"]) == ("mtls", "allowed")


def _lingering(name: str) -> Object:
    """An echo server that goes on for as long as its pod may after SIGTERM."""
    words = (
        "trap '' TERM; python -m tests.e2e.apps echo 7001 & for i in $(seq 600); do sleep .1; done"
    )
    app = container(["bash", "-c", words], listens=7001)
    return _labelled(pod(name, app, terminationGracePeriodSeconds=60), "leaving")


def test_a_pod_that_is_leaving_gets_new_links_only_while_nobody_else_is_there(mesh: Mesh) -> None:
    leaving, staying = _lingering("leaving"), _labelled(_echo("staying"), "leaving")
    lead = service("leaving", 7001)
    mesh.apply(lead, leaving, staying)
    try:
        _until_served_by(mesh, {"mesh/leaving", "mesh/staying"})
        with mesh.in_pod(
            "mesh/client", "python", "-m", "tests.e2e.apps", "hold", mesh.ip("mesh/leaving"), 7001
        ) as holding:
            assert json.loads(holding.line()) == {"open": True}
            mesh.cluster.client.raw("DELETE", "/api/v1/namespaces/mesh/pods/leaving")
            _until_served_by(mesh, {"mesh/staying"})
            mesh.delete(staying)
            # Nobody else: better one that still serves than nobody (KEP-1669).
            _until_served_by(mesh, {"mesh/leaving"})
            assert mesh.cluster.get("Pod", "mesh/leaving")["metadata"]["deletionTimestamp"]
            # What was open before it was told to leave has lived on; it ends with its app.
            mesh.node("kill", "-9", str(mesh.pid("mesh/leaving")))
            assert json.loads(holding.line())["ended"] in ("end", "ConnectionResetError")
        mesh.cluster.wait_gone("Pod", "mesh/leaving")
    finally:
        mesh.delete(lead)


def _until_served_by(mesh: Mesh, pods: set[str]) -> None:
    """Until 8 links in a row went to exactly these pods."""

    def served() -> bool:
        since = now()
        got = [mesh.attempt("mesh/client", "leaving", 7001, "hello")["got"] for _ in range(8)]
        if got != ["hello"] * 8:
            return False
        links = mesh.eventually_links(since, 8, service="leaving.mesh", verdict="allowed")
        return {i["destination"]["pod"] for i in links} == pods

    until(served, f"links to {pods}")


# --- Services without a selector ------------------------------------------------------------------


def _slice(name: str, *ips: str, where: str = MESH) -> Object:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": where,
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv6" if ":" in ips[0] else "IPv4",
        "ports": [{"name": "", "port": 7001, "protocol": "TCP"}],
        "endpoints": [{"addresses": [ip], "conditions": {"ready": True}} for ip in ips],
    }


def _unselected(name: str, where: str = MESH) -> Object:
    made = service(name, {"port": 80, "targetPort": 7001}, where=where)
    del made["spec"]["selector"]
    return made


@pytest.mark.attack_row(39)
def test_a_service_without_a_selector_leads_to_its_own_pods_by_tunnel(mesh: Mesh) -> None:
    by_hand = [_unselected("by-hand"), _slice("by-hand", mesh.ip("mesh/both-0"))]
    mesh.apply(*by_hand)
    try:
        since = now()
        until(
            lambda: mesh.attempt("mesh/client", "by-hand", 80, "hello")["got"] == "hello", "a link"
        )
        link = mesh.link(since, sides=2, destination="mesh/both-0", service="by-hand.mesh")
        assert (link["security"], link["verdict"]) == ("mtls", "allowed")
    finally:
        mesh.delete(*by_hand)


@pytest.mark.attack_row(38)
@pytest.mark.attack_row(39)
def test_a_slice_that_points_at_another_namespaces_pod_leads_nowhere(mesh: Mesh) -> None:
    """The tenant of `plain` would have clients of its Service talk to `mesh/both-0` in plaintext, or
    have them talk to it at all under a name that is not its own."""
    trap = [_unselected("trap", PLAIN), _slice("trap", mesh.ip("mesh/both-0"), where=PLAIN)]
    mesh.apply(*trap)
    try:
        since, before = now(), mesh.seen("mesh/both-0")
        done = mesh.attempt("mesh/client", "trap.plain", 80, "hello")
        assert (done["got"], done["error"]) == ("", "ConnectionResetError")
        link = mesh.link(since, source="mesh/client", service="trap.plain")
        assert (link["verdict"], link["reason"]) == ("failed", "no_endpoints")
        assert mesh.seen("mesh/both-0") == before
    finally:
        mesh.delete(*trap)


OUTSIDE = "198.51.100.8"
"""An address of the node that belongs to no cluster range (RFC 5737)."""


@pytest.fixture
def outside(mesh: Mesh) -> Iterator[None]:
    mesh.node("ip", "addr", "add", f"{OUTSIDE}/32", "dev", "lo")
    serve = f"python -m tests.e2e.apps echo 7001 {OUTSIDE} & cat > /dev/null; kill $!"
    with mesh.on_node("bash", "-c", serve):
        mesh.node("timeout", "20", "bash", "-c", f"until nc -z {OUTSIDE} 7001; do sleep 0.05; done")
        yield
    mesh.node("ip", "addr", "del", f"{OUTSIDE}/32", "dev", "lo")


@pytest.mark.attack_row(39)
def test_a_service_that_leads_out_of_the_cluster_is_external_whatever_its_shape(
    mesh: Mesh, outside: None
) -> None:
    """By a slice written by hand, or by an ExternalName: who may not leave the mesh does not."""
    leads = [
        _unselected("way-out"),
        _slice("way-out", OUTSIDE),
        _alias("named-out", OUTSIDE),
        pod("homely", config={"external": "deny"}),
    ]
    mesh.apply(*leads)
    try:
        until(
            lambda: mesh.attempt("mesh/client", "way-out", 80, "hello")["got"] == "hello", "a link"
        )
        for host, port in (("way-out", 80), ("named-out", 7001)):
            since = now()
            mesh.talk("mesh/client", host, port, "hello")
            link = mesh.link(since, source="mesh/client", destination_address=OUTSIDE)
            assert (link["security"], link["reason"]) == ("plaintext", "external")
            done = mesh.attempt("mesh/homely", host, port, "hello")
            assert (done["got"], done["error"]) == ("", "ConnectionResetError")
            link = mesh.link(since, source="mesh/homely")
            assert (link["verdict"], link["reason"]) == ("denied", "external_denied")
    finally:
        mesh.delete(*leads)


@pytest.mark.attack_row(39)
@pytest.mark.fault_row("cluster-ip-reuse")
def test_a_cluster_ip_that_another_service_has_by_now_leads_to_that(mesh: Mesh) -> None:
    one, two = service("first-owner", BY_NAME, app="both"), service("next-owner", 7001, app="heirs")
    heir = _labelled(pod("heirs", serving("echo", 7001)), "heirs")
    mesh.apply(one, heir)
    ip = _cluster_ip(mesh, "first-owner", 4)
    mesh.talk("mesh/client", ip, 80, "hello")
    mesh.delete(one)
    two["spec"]["clusterIP"] = ip
    mesh.apply(two)
    try:
        since = now()
        until(lambda: mesh.attempt("mesh/client", ip, 7001, "hello")["got"] == "hello", "a link")
        link = mesh.link(since, sides=2, service="next-owner.mesh", destination="mesh/heirs")
        assert (link["security"], link["destination"]["identity"]) == ("mtls", identity("default"))
        # The port of the Service before it is nobody's now, and leads to nobody.
        assert mesh.attempt("mesh/client", ip, 80, "hello")["got"] == ""
    finally:
        mesh.delete(two, heir)


@pytest.mark.fault_row("control-plane-down")
def test_a_registry_that_stalls_for_a_moment_costs_time_and_no_link(mesh: Mesh) -> None:
    late = _echo("late", app="late")
    mesh.apply(late, service("late", 7001))
    registry = mesh.system_pid("registry")
    ip = mesh.ip("mesh/late")
    mesh.node("kill", "-STOP", registry)
    try:
        words = ("python", "-m", "tests.e2e.apps", "try", ip, 7001, "hello")
        with mesh.in_pod("mesh/client", *words) as trying:
            # Longer than one asking, shorter than all of them.
            mesh.node("sleep", "1.2")
            mesh.node("kill", "-CONT", registry)
            assert json.loads(trying.line())["got"] == "hello"
    finally:
        mesh.node("kill", "-CONT", registry)
        mesh.delete(late, service("late", 7001))
