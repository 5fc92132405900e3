"""What comes in from outside the cluster, and what the node itself is: node ports, load balancers,
external IPs, pods on the host's network. All of it plaintext, let in by port or not at all."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from local.node.network import NODE_IP, NODE_IP6
from tests.e2e import apps
from tests.e2e.mesh import Mesh, now, until
from tests.e2e.objects import MESH, Object, namespace, pod, service, serving

CLIENT = {4: "203.0.113.9", 6: "2001:db8:9::9"}
"""A machine beside the node, with addresses of its own (RFC 5737, RFC 3849)."""
GATEWAY = {4: "203.0.113.1", 6: "2001:db8:9::1"}
EXTERNAL_IP = "198.51.100.50"
OPEN, CLOSED = {"name": "open", "port": 7001}, {"name": "closed", "port": 7002}
DUAL = {"ipFamilyPolicy": "RequireDualStack"}
KEEP = {"externalTrafficPolicy": "Local"}
TOWN = "open-town"


def _two_ports(name: str) -> Object:
    words = "python -m tests.e2e.apps greet 7001 & exec python -m tests.e2e.apps echo 7002"
    app = serving("echo", 7002)
    app["command"] = ["bash", "-c", words]
    return pod(name, app, config={"plaintext-ports": "7001"})


class Outside:
    """A client on a network of its own, which reaches the cluster through the node."""

    def __init__(self, mesh: Mesh, pid: int) -> None:
        self._mesh, self._enter = mesh, ("nsenter", f"--net=/proc/{pid}/ns/net")

    def run(self, *argv: str) -> str:
        return self._mesh.node(*self._enter, *argv)

    def attempt(self, host: str, port: int, word: str = "") -> Any:
        words = (
            "python",
            "-m",
            "tests.e2e.apps",
            "try",
            host,
            str(port),
            *([word] if word else []),
        )
        return json.loads(self.run(*words))


@pytest.fixture(scope="module")
def outside(mesh: Mesh) -> Iterator[Outside]:
    hold = "unshare --net sleep 3600 & echo $!; cat > /dev/null; kill $!"
    with mesh.on_node("bash", "-c", hold) as holding:
        pid = int(holding.line())
        it = Outside(mesh, pid)
        until(lambda: "lo" in it.run("ip", "link"), "the client's network is there")
        until(
            lambda: (
                mesh.node("readlink", f"/proc/{pid}/ns/net")
                != mesh.node("readlink", "/proc/self/ns/net")
            ),
            "it is its own",
        )
        mesh.node(
            "ip", "link", "add", "out0", "type", "veth", "peer", "name", "eth0", "netns", str(pid)
        )
        mesh.node("ip", "link", "set", "out0", "up")
        it.run("ip", "link", "set", "eth0", "up")
        for version, prefix in ((4, 24), (6, 64)):
            mesh.node(
                "ip",
                "addr",
                "add",
                f"{GATEWAY[version]}/{prefix}",
                "dev",
                "out0",
                *(["nodad"] * (version == 6)),
            )
            it.run(
                "ip",
                "addr",
                "add",
                f"{CLIENT[version]}/{prefix}",
                "dev",
                "eth0",
                *(["nodad"] * (version == 6)),
            )
            it.run("ip", f"-{version}", "route", "add", "default", "via", GATEWAY[version])
        yield it
        mesh.node("ip", "link", "del", "out0")


@pytest.fixture(scope="module", autouse=True)
def pods(mesh: Mesh) -> Iterator[None]:
    made = [
        _two_ports("shop-front"),
        service("front", OPEN, CLOSED, app="shop-front", type="NodePort", **DUAL),
        service("front-local", OPEN, app="shop-front", type="NodePort", **DUAL, **KEEP),
        service("front-lb", OPEN, CLOSED, app="shop-front", type="LoadBalancer"),
        service("front-owned", CLOSED, app="shop-front", externalIPs=[EXTERNAL_IP]),
        pod("on-host", serving("echo", 7090), hostNetwork=True),
        service("on-host", {"port": 80, "targetPort": 7090}),
        _town(plaintext_ports="7001"),
        pod("townsman", serving("echo", 7001), where=TOWN),
        pod("recluse", serving("echo", 7001), where=TOWN, config={"plaintext": "deny"}),
    ]  # fmt: skip
    mesh.apply(*made)
    yield
    mesh.delete(*(one for one in made if one["kind"] != "Namespace"))


def _town(plaintext_ports: str) -> Object:
    made = namespace(TOWN, injected=True)
    made["metadata"]["annotations"] = {"config.podlink.dev/plaintext-ports": plaintext_ports}
    return made


def _node_port(mesh: Mesh, name: str, port: Object) -> int:
    ports = mesh.cluster.get("Service", f"{MESH}/{name}")["spec"]["ports"]
    return int(next(p["nodePort"] for p in ports if p["name"] == port["name"]))


# --- from outside ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("name", "keeps_its_address"), [("front", False), ("front-local", True)])
def test_a_node_port_leads_to_a_port_that_takes_plaintext_and_the_record_says_external(
    mesh: Mesh, outside: Outside, name: str, keeps_its_address: bool, version: int
) -> None:
    since, node = now(), (NODE_IP6 if version == 6 else NODE_IP)
    done = outside.attempt(node, _node_port(mesh, name, OPEN))
    assert (done["got"], done["error"]) == (apps.GREETING.decode(), ""), "the server speaks first"
    link = mesh.link(since, destination="mesh/shop-front", destination_port=7001)
    assert (link["security"], link["verdict"], link["reason"]) == (
        "plaintext",
        "allowed",
        "external",
    )
    assert link["source"]["address"] == (CLIENT[version] if keeps_its_address else node)
    assert not link["source"].get("identity")


@pytest.mark.attack_row(1)
@pytest.mark.attack_row(18)
@pytest.mark.parametrize("version", [4, 6])
def test_a_node_port_to_any_other_port_is_refused_and_the_app_hears_nothing(
    mesh: Mesh, outside: Outside, version: int
) -> None:
    since, node = now(), (NODE_IP6 if version == 6 else NODE_IP)
    before = mesh.seen("mesh/shop-front")
    done = outside.attempt(node, _node_port(mesh, "front", CLOSED), "let me in")
    assert (done["got"], done["error"]) == ("", "ConnectionResetError")
    link = mesh.link(since, destination="mesh/shop-front", destination_port=7002)
    assert (link["verdict"], link["reason"]) == ("denied", "plaintext_denied")
    assert "external" in link["error"]
    mesh.talk("mesh/client", mesh.ip("mesh/shop-front", version), 7002, "hello")
    until(lambda: mesh.seen("mesh/shop-front") == [*before, "accepted", "received 5"], "one only")


def test_a_load_balancer_is_no_other_way_in_than_a_node_port(mesh: Mesh, outside: Outside) -> None:
    (ingress,) = mesh.cluster.get("Service", "mesh/front-lb")["status"]["loadBalancer"]["ingress"]
    since = now()
    assert outside.attempt(ingress["ip"], 7001)["got"] == apps.GREETING.decode()
    assert mesh.link(since, destination="mesh/shop-front")["reason"] == "external"
    assert outside.attempt(ingress["ip"], 7002, "hello")["error"] == "ConnectionResetError"


@pytest.mark.attack_row(1)
def test_a_pod_that_is_dialled_from_outside_by_its_own_ip_judges_it_the_same(
    mesh: Mesh, outside: Outside
) -> None:
    since, ip = now(), mesh.ip("mesh/shop-front")
    assert outside.attempt(ip, 7001)["got"] == apps.GREETING.decode()
    assert outside.attempt(ip, 7002, "hello")["error"] == "ConnectionResetError"
    links = mesh.eventually_links(since, 2, source_address=CLIENT[4])
    assert sorted(i["reason"] for i in links) == ["external", "plaintext_denied"]


# --- outward --------------------------------------------------------------------------------------


@pytest.mark.attack_row(59)
def test_an_external_ip_leads_to_its_service_by_tunnel_and_a_claim_to_anothers_address_nowhere(
    mesh: Mesh,
) -> None:
    """Whoever may write a Service may claim any address (CVE-2020-8554)."""
    front = mesh.cluster.get("Service", "mesh/front")
    taken = [mesh.ip("mesh/shop-front"), front["spec"]["clusterIP"]]
    trap = service("trap", CLOSED, app="townsman", where=TOWN, externalIPs=[*taken, EXTERNAL_IP])
    mesh.apply(trap)
    try:
        for ip in (EXTERNAL_IP, *taken):
            since = now()
            mesh.talk("mesh/client", ip, 7002, "hello")
            link = mesh.link(since, sides=2, source="mesh/client", asked_address=ip)
            assert (link["security"], link["destination"]["pod"]) == ("mtls", "mesh/shop-front")
    finally:
        mesh.delete(trap)


def test_a_pod_on_the_hosts_network_is_unmeshed_and_the_record_says_why(mesh: Mesh) -> None:
    for host, port in (("on-host", 80), (NODE_IP, 7090), (NODE_IP6, 7090)):
        since = now()
        mesh.talk("mesh/client", host, port, "hello")
        link = mesh.link(since, source="mesh/client", destination_port=7090)
        assert (link["security"], link["verdict"]) == ("plaintext", "allowed")
        assert link["reason"] == "host_network"
        assert link["destination"]["pod"] == ("mesh/on-host" if host == "on-host" else None)


def test_a_pod_on_the_hosts_network_comes_in_where_plaintext_may_and_nowhere_else(
    mesh: Mesh,
) -> None:
    spec = mesh.cluster.get("Pod", "mesh/on-host")["spec"]
    assert not spec.get("initContainers"), "it cannot be captured, and is not half injected"
    since, ip = now(), mesh.ip("mesh/shop-front")
    assert mesh.attempt("mesh/on-host", ip, 7001)["got"] == apps.GREETING.decode()
    assert mesh.attempt("mesh/on-host", ip, 7002, "hello")["error"] == "ConnectionResetError"
    links = mesh.eventually_links(since, 2, source_address=NODE_IP)
    assert sorted(i["reason"] for i in links) == ["external", "plaintext_denied"]


# --- by namespace ---------------------------------------------------------------------------------


def test_a_namespace_opens_ports_of_its_pods_but_for_those_that_speak_for_themselves(
    mesh: Mesh,
) -> None:
    townsman, recluse = mesh.ip(f"{TOWN}/townsman"), mesh.ip(f"{TOWN}/recluse")
    mesh.talk("plain/stranger", townsman, 7001, "hello")
    assert mesh.attempt("plain/stranger", recluse, 7001, "hello")["got"] == ""
    mesh.apply(_town(plaintext_ports="7002"))

    def closed() -> bool:
        return bool(mesh.attempt("plain/stranger", townsman, 7001, "hello")["got"] == "")

    until(closed, "the port is closed again, in a pod that runs")
    mesh.apply(_town(plaintext_ports="7001"))
    until(lambda: not closed(), "and open")
