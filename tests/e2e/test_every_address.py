"""Every address by which a meshed pod can be reached in a cluster: whichever the app dials, no byte of
what it says is on the wire in the clear."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from local.node.network import BRIDGE, NODE_IP, NODE_IP6, POD_CIDR, POD_CIDR6
from tests.e2e.mesh import Mesh, identity, now, until
from tests.e2e.objects import MESH, PLAIN, Object, account, container, pod, service, serving

pytestmark = pytest.mark.attack_row(60)

OWNED = {4: "198.51.100.60", 6: "2001:db8:60::1"}
"""External IPs of the Service: nobody's on this machine."""
NODE = {4: NODE_IP, 6: NODE_IP6}
DUAL = {"ipFamilyPolicy": "RequireDualStack"}
ECHO = {"name": "echo", "port": 7003, "targetPort": 7001}
HOST_PORT, PLAIN_HOST_PORT = 9301, 9302
POSTCARD = "marker-in-plaintext-61be"
EAVESDROP = "tcpdump -i {} -n -Z root -B 65536 -U -w {} tcp & cat > /dev/null; kill -INT $!; wait"


def _published(name: str, host_port: int, where: str = MESH) -> Object:
    app = serving("echo", 7001)
    app["ports"] = [{"containerPort": 7001, "hostPort": host_port}]
    made = pod(name, app, where=where)
    if where == MESH:
        made["spec"]["serviceAccountName"] = "ways"
    made["metadata"]["labels"]["app"] = "ways"
    return made


@pytest.fixture(scope="module", autouse=True)
def pods(mesh: Mesh) -> Iterator[None]:
    shape: dict[str, Any] = {**DUAL, "type": "LoadBalancer", "app": "ways"}
    made = [
        account("ways"),
        service("ways", ECHO, **shape, externalIPs=list(OWNED.values())),
        service("ways-local", {**ECHO, "port": 7004}, **shape, externalTrafficPolicy="Local"),
        service("postcards", {**ECHO, "port": 7005}, where=PLAIN, **shape),
        _published("ways", HOST_PORT),
        _published("ways", PLAIN_HOST_PORT, where=PLAIN),
    ]
    mesh.apply(*made)
    yield
    mesh.delete(*made)


@contextmanager
def sniffer(mesh: Mesh, caught: Path, *marks: str) -> Iterator[None]:
    """What passes the bridge meanwhile: nothing of `marks`, and the control to be read."""
    with mesh.on_node("bash", "-c", EAVESDROP.format(BRIDGE, caught)) as eavesdropper:
        while "listening on" not in (line := eavesdropper.line()):
            assert line, "tcpdump ended before it listened"
        yield
        mesh.talk("mesh/client", mesh.ip("plain/ways"), 7001, POSTCARD)
        until(lambda: POSTCARD.encode() in caught.read_bytes(), "the control is caught")
        eavesdropper.end_input()
        told = ""
        while line := eavesdropper.line():
            told += line + "\n"
    assert re.search(r"(?<!\d)0 packets dropped by kernel", told), told
    content = caught.read_bytes()
    assert [mark for mark in marks if mark.encode() in content] == []


def _node_port(mesh: Mesh, name: str, where: str = MESH) -> int:
    (port,) = mesh.cluster.get("Service", f"{where}/{name}")["spec"]["ports"]
    return int(port["nodePort"])


def _balancer(mesh: Mesh, name: str, version: int) -> str:
    ingress = mesh.cluster.get("Service", f"{MESH}/{name}")["status"]["loadBalancer"]["ingress"]
    return str(next(one["ip"] for one in ingress if (":" in one["ip"]) == (version == 6)))


def _ways(mesh: Mesh, version: int) -> dict[str, tuple[str, int]]:
    return {
        "external-ip": (OWNED[version], 7003),
        "load-balancer": (_balancer(mesh, "ways", version), 7003),
        "local-load-balancer": (_balancer(mesh, "ways-local", version), 7004),
        "node-port": (NODE[version], _node_port(mesh, "ways")),
        "local-node-port": (NODE[version], _node_port(mesh, "ways-local")),
        "host-port": (NODE[version], HOST_PORT),
        "pod": (mesh.ip("mesh/ways", version), 7001),
    }


@pytest.mark.parametrize("version", [4, 6])
def test_by_whatever_address_a_meshed_pod_is_dialled_it_is_reached_by_tunnel(
    mesh: Mesh, version: int, tmp_path: Path
) -> None:
    ways = _ways(mesh, version)
    marks = {way: f"marker-{way}-{version}-d41c" for way in ways}
    since = now()
    with sniffer(mesh, tmp_path / "wire.pcap", *marks.values()):
        for way, (ip, port) in ways.items():
            mesh.talk("mesh/client", ip, port, marks[way])
    links = mesh.eventually_links(since, len(ways), sides=2, destination="mesh/ways")
    assert len(links) == len(ways)
    assert {(i["security"], i["verdict"]) for i in links} == {("mtls", "allowed")}
    assert {i["destination"]["identity"] for i in links} == {identity("ways")}
    assert {i["destination"]["port"] for i in links} == {7001}
    asked = {(i["asked"]["address"], i["asked"]["port"]): i for i in links}
    assert asked.keys() == set(ways.values()), "the record says what the app dialled"
    for way, where in ways.items():
        of_service = way not in ("host-port", "pod")
        name = "ways-local.mesh" if way.startswith("local") else "ways.mesh"
        assert (asked[where]["asked"].get("service") or "") == (name if of_service else ""), way


def test_a_service_that_leaves_the_cluster_leads_to_its_pods_also_where_they_have_no_sidecar(
    mesh: Mesh,
) -> None:
    since = now()
    for ip, port in ((NODE_IP, _node_port(mesh, "postcards", PLAIN)), (NODE_IP, PLAIN_HOST_PORT)):
        mesh.talk("mesh/client", ip, port, "hello")
    links = mesh.eventually_links(since, 2, source="mesh/client", destination="plain/ways")
    assert {(i["security"], i["reason"]) for i in links} == {("plaintext", "unmeshed_peer")}


def test_what_is_at_no_such_port_of_the_node_is_the_nodes_own(mesh: Mesh) -> None:
    since = now()
    done = mesh.attempt("mesh/client", NODE_IP, 9399, "hello")
    assert done["got"] == ""
    link = mesh.link(since, source="mesh/client", asked_port=9399)
    assert (link["verdict"], link["reason"]) == ("failed", "endpoint_unreachable")


def test_a_new_claim_counts_for_the_next_link_to_an_address_that_was_external(
    mesh: Mesh, tmp_path: Path
) -> None:
    """What the sidecar keeps of an address is the registry's to take back."""
    claimed, mark = "198.51.100.61", "marker-claimed-later-77aa"
    late = service("late", {**ECHO, "port": 7001}, app="ways", externalIPs=[claimed])
    assert mesh.attempt("mesh/client", claimed, 7001, "hello")["got"] == ""
    since = now()
    mesh.apply(late)
    try:

        def leads() -> bool:
            known = mesh.admin("mesh/client", "/endpoints")
            return claimed in known["by_port"]

        until(leads, "the claim is known")
        with sniffer(mesh, tmp_path / "wire.pcap", mark):
            mesh.talk("mesh/client", claimed, 7001, mark)
        link = mesh.link(since, sides=2, service="late.mesh")
        assert (link["security"], link["destination"]["pod"]) == ("mtls", "mesh/ways")
    finally:
        mesh.delete(late)


@pytest.mark.fault_row("control-plane-down")
def test_while_the_registry_is_away_an_address_that_nobody_asked_for_is_refused_and_not_external(
    mesh: Mesh, tmp_path: Path
) -> None:
    """Every kind of address, asked for the first time by a pod that knows none of them."""
    fresh = pod("fresh", config={})
    mesh.apply(fresh)
    ways = {**_ways(mesh, 4), "outside": ("198.51.100.99", 7001)}
    marks = {way: f"marker-unasked-{way}-90c2" for way in ways}
    registry = mesh.system_pid("registry")
    try:
        with sniffer(mesh, tmp_path / "wire.pcap", *marks.values()):
            mesh.node("kill", "-STOP", registry)
            try:
                since = now()
                for way, (ip, port) in ways.items():
                    done = mesh.attempt("mesh/fresh", ip, port, marks[way])
                    assert (done["got"], done["error"]) == ("", "ConnectionResetError"), way
                links = mesh.eventually_links(since, len(ways), source="mesh/fresh")
                assert {i["reason"] for i in links} == {"registry_unavailable"}
            finally:
                mesh.node("kill", "-CONT", registry)
    finally:
        mesh.delete(fresh)


@pytest.mark.parametrize("version", [4, 6])
def test_an_address_of_the_pods_range_that_no_pod_has_is_nobodys_and_never_external(
    mesh: Mesh, version: int, tmp_path: Path
) -> None:
    """Somebody answers there: a pod that the API server does not tell of yet would."""
    ip = str((POD_CIDR if version == 4 else POD_CIDR6)[250])
    mark = f"marker-to-nobody-{version}-3b1f"
    mesh.node("ip", "addr", "add", ip, "dev", "lo", *(["nodad"] * (version == 6)))
    serve = f"python -m tests.e2e.apps echo 7001 {ip} & cat > /dev/null; kill $!"
    try:
        with mesh.on_node("bash", "-c", serve):
            answers = f"until : < /dev/tcp/{ip}/7001; do sleep 0.05; done"
            mesh.node("timeout", "20", "bash", "-c", answers)
            since = now()
            with sniffer(mesh, tmp_path / "wire.pcap", mark):
                done = mesh.attempt("mesh/client", ip, 7001, mark)
            assert (done["got"], done["error"]) == ("", "ConnectionResetError")
            link = mesh.link(since, source="mesh/client", asked_address=ip)
            assert (link["verdict"], link["reason"]) == ("failed", "endpoint_unreachable")
    finally:
        mesh.node("ip", "addr", "del", ip, "dev", "lo")


# --- an app that listens on one IP version ------------------------------------------------------------


def _one_version(name: str, host: str, where: str = MESH) -> Object:
    words = ["python", "-m", "tests.e2e.apps", "echo", "7001", host]
    return pod(name, container(words, listens=7001), where=where)


@pytest.mark.parametrize("where", [MESH, PLAIN])
def test_an_app_that_listens_on_one_ip_version_is_reached_at_the_others_addresses_too(
    mesh: Mesh, where: str
) -> None:
    """The client's connect has succeeded, so it cannot fall back as it would without podlink."""
    made = [
        _one_version("only-four", "0.0.0.0", where),
        service("only-four", 7001, where=where, **DUAL),
    ]
    mesh.apply(*made)
    try:
        ips = mesh.cluster.get("Service", f"{where}/only-four")["spec"]["clusterIPs"]
        since = now()
        for ip in (*ips, *(mesh.ip(f"{where}/only-four", version) for version in (4, 6))):
            mesh.talk("mesh/client", ip, 7001, "hello")
        links = mesh.eventually_links(
            since, 4, source="mesh/client", destination=f"{where}/only-four"
        )
        security = "mtls" if where == MESH else "plaintext"
        assert {(i["security"], i["verdict"]) for i in links} == {(security, "allowed")}
    finally:
        mesh.delete(*made)


def test_a_plaintext_caller_reaches_such_an_app_at_either_address(mesh: Mesh) -> None:
    opened = _one_version("open-four", "0.0.0.0")
    opened["metadata"].setdefault("annotations", {})["config.podlink.dev/plaintext-ports"] = "7001"
    mesh.apply(opened)
    try:
        for version in (4, 6):
            mesh.talk("plain/stranger", mesh.ip("mesh/open-four", version), 7001, "hello")
    finally:
        mesh.delete(opened)


def test_a_pod_reaches_itself_by_its_own_service_at_either_address(mesh: Mesh) -> None:
    made = [_one_version("self-four", "0.0.0.0"), service("self-four", 7001, **DUAL)]
    mesh.apply(*made)
    try:
        for ip in mesh.cluster.get("Service", "mesh/self-four")["spec"]["clusterIPs"]:
            mesh.talk("mesh/self-four", ip, 7001, "hello")
    finally:
        mesh.delete(*made)
