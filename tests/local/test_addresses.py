"""Every address by which a Service may be reached, of both IP versions, from inside and outside."""

import json
import time
from collections.abc import Callable

import pytest

from local.cluster import Cluster
from local.node.network import NODE_IP, NODE_IP6
from tests.local.pods import SAY_NAME, namespace, pod, service, sleeper, web
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.netns

BOTH_VERSIONS = SAY_NAME.replace(
    "http.server.ThreadingHTTPServer((",
    "class Server(http.server.ThreadingHTTPServer):\n    address_family = 10\nServer((",
)
EXTERNAL_IP = "203.0.113.77"


def web6(port: int) -> dict[str, object]:
    """A web server that listens on both IP versions."""
    return {**web(port), "command": ["python", "-c", BOTH_VERSIONS, str(port)]}


@pytest.fixture(scope="module")
def town(cluster: Cluster) -> Cluster:
    dual = {"ipFamilyPolicy": "RequireDualStack"}
    cluster.apply(
        namespace("town")
        + pod("one", web6(8080), namespace="town", labels={"app": "both", "which": "one"})
        + pod("two", web6(9090), namespace="town", labels={"app": "both"})
        + pod("host", web6(7070), namespace="town", labels={"app": "host"}, hostNetwork=True)
        + pod("client", sleeper(), namespace="town")
        + service("dual", "both", namespace="town", **dual)
        + service("six", "both", namespace="town", ipFamilies=["IPv6"])
        + service("peers", "both", namespace="town", clusterIP="None", **dual)
        + service("open", "both", namespace="town", type="NodePort", **dual)
        + service("keeps", "both", namespace="town", type="NodePort", externalTrafficPolicy="Local")
        + service("balanced", "both", namespace="town", type="LoadBalancer")
        + service("owned", "both", namespace="town", externalIPs=[EXTERNAL_IP])
        + service("host", "host", namespace="town")
        + "apiVersion: v1\nkind: Service\nmetadata: {name: alias, namespace: town}\n"
        + "spec: {type: ExternalName, externalName: dual.town.svc.cluster.local}\n"
    )
    cluster.wait_ready("town/one", "town/two", "town/host", "town/client")
    _until(lambda: {"one", "two"} <= _names(cluster, "http://dual.town"))
    return cluster


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _names(cluster: Cluster, url: str, version: int = 4, where: str = "town/client") -> set[str]:
    """Names of the pods that answer 12 requests."""
    script = f"for i in $(seq 12); do curl -{version} -s -m 5 {url}; echo; done"
    lines = cluster.exec(where, ["sh", "-c", script]).stdout.splitlines()
    return {line.split()[0] for line in lines if line}


@pytest.mark.parametrize("version", [4, 6])
def test_a_dual_stack_service_has_an_address_and_endpoints_of_each_version(
    town: Cluster, version: int
) -> None:
    spec = town.get("Service", "town/dual")["spec"]
    assert [":" in ip for ip in spec["clusterIPs"]] == [False, True]
    assert (spec["clusterIP"], spec["ipFamilies"]) == (spec["clusterIPs"][0], ["IPv4", "IPv6"])
    ip = spec["clusterIPs"][version == 6]
    url = f"http://[{ip}]" if version == 6 else f"http://{ip}"
    assert _names(town, url, version) == {"one", "two"}, "by address"
    assert _names(town, "http://dual.town", version) == {"one", "two"}, "by name"
    assert _names(town, "http://peers.town:8080", version) == {"one"}, "headless"


def test_a_service_of_ipv6_alone_has_no_other_address(town: Cluster) -> None:
    spec = town.get("Service", "town/six")["spec"]
    assert spec["ipFamilies"] == ["IPv6"] and spec["clusterIPs"] == [spec["clusterIP"]]
    assert _names(town, "http://six.town", 6) == {"one", "two"}
    assert _names(town, "http://six.town", 4) == set()


def test_pods_that_number_a_named_port_differently_are_in_slices_of_their_own(
    town: Cluster,
) -> None:
    slices = [
        s
        for s in town.select("EndpointSlice", "town", "discovery.k8s.io/v1")
        if s["metadata"]["labels"]["kubernetes.io/service-name"] == "dual"
    ]
    found = sorted((s["addressType"], s["ports"][0]["port"], len(s["endpoints"])) for s in slices)
    assert found == [("IPv4", 8080, 1), ("IPv4", 9090, 1), ("IPv6", 8080, 1), ("IPv6", 9090, 1)]
    uids = {s["metadata"]["uid"] for s in slices}
    assert len(uids) == 4
    town.exec("town/client", ["true"])
    town.apply(pod("three", web6(8080), namespace="town", labels={"app": "both"}))
    town.wait_ready("town/three")
    _until(lambda: "three" in _names(town, "http://dual.town"))
    after = town.select("EndpointSlice", "town", "discovery.k8s.io/v1")
    assert uids <= {s["metadata"]["uid"] for s in after}, "the others stay what they are"
    town.delete(pod("three", namespace="town"))
    town.wait_gone("Pod", "town/three")


def _asked_from_the_node(cluster: Cluster, url: str) -> tuple[str, str]:
    done = cluster.node_exec(["curl", "-s", "-m", "5", url])
    name, _, source = done.stdout.partition(" ")
    return name, source.removeprefix("::ffff:")


@pytest.mark.parametrize("name", ["open", "keeps"])
def test_a_node_port_leads_to_the_pods(town: Cluster, name: str) -> None:
    (port,) = town.get("Service", f"town/{name}")["spec"]["ports"]
    found = _asked_from_the_node(town, f"http://{NODE_IP}:{port['nodePort']}")
    assert (found[0] in ("one", "two"), found[1]) == (True, NODE_IP)
    assert _names(town, f"http://{NODE_IP}:{port['nodePort']}") == {"one", "two"}, "from a pod"
    if name == "open":
        found = _asked_from_the_node(town, f"http://[{NODE_IP6}]:{port['nodePort']}")
        assert (found[0] in ("one", "two"), found[1]) == (True, NODE_IP6)


def test_what_comes_through_a_node_port_has_the_nodes_address_unless_it_is_to_keep_its_own(
    town: Cluster,
) -> None:
    own = town.get("Pod", "town/client")["status"]["podIP"]
    for name, source in (("open", NODE_IP), ("keeps", own)):
        (port,) = town.get("Service", f"town/{name}")["spec"]["ports"]
        done = town.exec("town/client", ["curl", "-s", f"http://{NODE_IP}:{port['nodePort']}"])
        assert done.stdout.split()[1].removeprefix("::ffff:") == source


def test_a_load_balancer_and_an_external_ip_lead_to_the_pods(town: Cluster) -> None:
    (ingress,) = town.get("Service", "town/balanced")["status"]["loadBalancer"]["ingress"]
    assert ingress["ip"] == NODE_IP
    for ip in (NODE_IP, EXTERNAL_IP):
        assert _names(town, f"http://{ip}") == {"one", "two"}


@pytest.mark.parametrize("version", [4, 6])
def test_a_host_port_leads_to_its_pod_for_as_long_as_it_is_there(
    town: Cluster, version: int
) -> None:
    ports = [{"name": "http", "containerPort": 8080, "hostPort": 9300 + version}]
    named = f"published-{version}"
    made = pod(named, {**web6(8080), "ports": ports}, namespace="town")
    node = NODE_IP if version == 4 else f"[{NODE_IP6}]"
    url = f"http://{node}:{9300 + version}"
    town.apply(made)
    town.wait_ready(f"town/{named}")
    _until(lambda: _names(town, url, version) == {named})
    assert _asked_from_the_node(town, url)[0] == named
    town.delete(made)
    town.wait_gone("Pod", f"town/{named}")
    _until(lambda: _names(town, url, version) == set())


def test_a_node_says_its_addresses_and_the_ranges_of_its_pods(town: Cluster) -> None:
    node = town.get("Node", "podlink-node")
    assert [one["address"] for one in node["status"]["addresses"]] == [NODE_IP, NODE_IP6]
    assert node["spec"]["podCIDRs"] == ["10.244.0.0/24", "fd44::/64"]


def test_a_pod_on_the_hosts_network_has_the_nodes_addresses(town: Cluster) -> None:
    status = town.get("Pod", "town/host")["status"]
    assert [one["ip"] for one in status["podIPs"]] == [NODE_IP, NODE_IP6]
    assert [one["ip"] for one in status["hostIPs"]] == [NODE_IP, NODE_IP6]
    assert _names(town, "http://host.town") == {"host"}
    assert _names(town, f"http://{NODE_IP}:7070") == {"host"}


def test_an_external_name_resolves_to_what_it_stands_for(town: Cluster) -> None:
    assert _names(town, "http://alias.town") == {"one", "two"}


def test_an_address_or_family_that_cannot_be_is_refused_by_its_field(town: Cluster) -> None:
    for field, spec in (
        ("spec.clusterIP", {"clusterIP": "10.1.2.3"}),
        ("spec.clusterIP", {"clusterIP": "fd00::1"}),
        ("spec.ipFamilies", {"ipFamilies": ["IPv5"]}),
        ("spec.ipFamilyPolicy", {"ipFamilyPolicy": "Both"}),
        ("spec.externalIPs", {"externalIPs": ["here"]}),
        ("spec.externalName", {"type": "ExternalName"}),
    ):
        with pytest.raises(Exception, match=field.replace(".", r"\.")):
            town.apply(service("bad", "both", namespace="town", **spec))


def test_an_update_keeps_addresses_and_node_ports(town: Cluster) -> None:
    before = town.get("Service", "town/open")["spec"]
    changed = {"metadata": {"labels": {"more": "yes"}}}
    done = town.client.raw(
        "PATCH",
        "/api/v1/namespaces/town/services/open",
        changed,
        "application/merge-patch+json",
    )
    assert json.loads(done)["spec"] == before
