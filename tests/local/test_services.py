"""Services, names and addresses as pods see them."""

import json
import time
from collections import Counter
from collections.abc import Callable

import pytest

from local.cluster import Cluster
from tests.local.pods import namespace, pod, service, sleeper, web
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def shop(cluster: Cluster) -> Cluster:
    """Two web pods behind `api.shop`, and a client in another namespace."""
    label = {"app": "api"}
    cluster.apply(
        namespace("shop")
        + pod("api-0", web(8080), namespace="shop", labels=label)
        + pod("api-1", web(8080), namespace="shop", labels=label)
        + pod("client", sleeper())
        + service("api", "api", namespace="shop")
        + service("peers", "api", namespace="shop", clusterIP="None")
        + service("empty", "nobody", namespace="shop")
    )
    cluster.wait_ready("shop/api-0", "shop/api-1", "default/client")
    _wait_for_endpoints(cluster, 2)
    return cluster


def test_a_cluster_ip_spreads_over_its_endpoints_and_keeps_the_source_address(
    shop: Cluster,
) -> None:
    script = "for i in $(seq 40); do curl -s -m 5 http://api.shop; echo; done"
    answers = [
        line.split()
        for line in shop.exec("default/client", ["sh", "-c", script]).stdout.splitlines()
    ]
    counts = Counter(name for name, _ in answers)
    assert set(counts) == {"api-0", "api-1"}
    assert min(counts.values()) >= 5  # 40 fair coins: fewer than 5 once in 10^7 runs
    own = shop.get("Pod", "default/client")["status"]["podIP"]
    assert {source for _, source in answers} == {own}


def test_a_pod_can_reach_itself_through_its_service(shop: Cluster) -> None:
    script = "for i in $(seq 20); do curl -s -m 5 http://api.shop.svc; echo; done"
    answers = shop.exec("shop/api-0", ["sh", "-c", script]).stdout.splitlines()
    assert len(answers) == 20
    assert {line.split()[0] for line in answers} == {"api-0", "api-1"}


def test_a_service_without_endpoints_refuses_at_once(shop: Cluster) -> None:
    done = shop.exec("default/client", ["curl", "-sS", "-m", "60", "http://empty.shop"])
    assert done.returncode == 7, "refused, and not given up after its limit (28)"


def test_names_resolve_as_in_a_cluster_and_no_others_do(shop: Cluster) -> None:
    ip = shop.get("Service", "shop/api")["spec"]["clusterIP"]
    pods = {shop.get("Pod", f"shop/api-{n}")["status"]["podIP"] for n in (0, 1)}

    def look_up(name: str) -> set[str]:
        found = shop.exec("default/client", ["getent", "ahostsv4", name])
        return {line.split()[0] for line in found.stdout.splitlines()}

    assert look_up("api.shop") == {ip}
    assert look_up("api.shop.svc.cluster.local") == {ip}
    assert look_up("peers.shop") == pods
    assert look_up("api.nowhere") == set()
    assert look_up("example.com") == set()


def test_a_stateful_set_names_its_pods_behind_a_headless_service(shop: Cluster) -> None:
    template = {
        "metadata": {"labels": {"app": "db"}},
        "spec": {"containers": [web(5432)]},
    }
    made = {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "db", "namespace": "shop"},
        "spec": {
            "serviceName": "db",
            "replicas": 2,
            "selector": {"matchLabels": {"app": "db"}},
            "template": template,
        },
    }
    shop.apply(service("db", "db", namespace="shop", clusterIP="None"))
    shop.apply(json.dumps(made, indent=1))
    shop.wait_ready("shop/db-0", "shop/db-1")
    ask = ["curl", "-s", "-m", "5", "http://db-1.db.shop:5432"]
    _until(lambda: shop.exec("default/client", ask).stdout.split()[:1] == ["db-1"])


def test_traffic_between_pods_passes_the_nodes_routing_also_over_ipv6(shop: Cluster) -> None:
    ips = shop.get("Pod", "shop/api-0")["status"]["podIPs"]
    assert [":" in entry["ip"] for entry in ips] == [False, True]
    hops = shop.exec("default/client", ["ip", "route", "get", ips[0]["ip"]]).stdout
    assert "via 10.244.0.1" in hops
    # The server listens on IPv4 only: a refusal, and not silence, proves the way there and back.
    url = f"http://[{ips[1]['ip']}]:8080"
    done = shop.exec("default/client", ["curl", "-sS", "-m", "3", url])
    assert "Connection refused" in done.stderr or done.returncode == 7
    route = shop.exec("default/client", ["ip", "-6", "route", "get", ips[1]["ip"]]).stdout
    assert "via fd44::1" in route


def test_an_unready_pod_gets_no_traffic(shop: Cluster) -> None:
    gate = {"exec": {"command": ["test", "!", "-e", "/tmp/closed"]}, "periodSeconds": 1}
    gate |= {"failureThreshold": 1}
    shop.apply(
        pod("gate", web(readinessProbe=gate), namespace="shop", labels={"app": "gate"})
        + service("gate", "gate", namespace="shop")
    )
    shop.wait_ready("shop/gate")
    ask = ["curl", "-s", "-m", "3", "http://gate.shop"]
    _until(lambda: shop.exec("default/client", ask).returncode == 0)
    shop.exec("shop/gate", ["touch", "/tmp/closed"])
    _until(lambda: shop.exec("default/client", ask).returncode != 0)


def test_the_service_proxy_reaches_a_pod_without_the_callers_token(shop: Cluster) -> None:
    path = "/api/v1/namespaces/shop/services/api:80/proxy/anything"
    assert shop.client.raw("GET", path).split()[0] in (b"api-0", b"api-1")


def _wait_for_endpoints(cluster: Cluster, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        slices = cluster.select("EndpointSlice", "shop", "discovery.k8s.io/v1")
        ready = [
            e
            for s in slices
            if s["metadata"]["labels"]["kubernetes.io/service-name"] == "api"
            for e in s["endpoints"]
            if e["conditions"]["ready"]
        ]
        if len(ready) == count:
            time.sleep(0.2)  # the node's table follows within milliseconds
            return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.1)
