"""podlink on a real node: what kubelet, containerd and kube-proxy make of it, and its links."""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.node import apps
from tests.kubernetes.node.cluster import ROOT, RealNode
from tests.kubernetes.node.images import CURL

SPACE = "shop"


@pytest.fixture(scope="module")
def shop(mesh: RealNode) -> RealNode:
    """Two servers and a client in the mesh, and a stranger outside it."""
    apps.apply(
        mesh,
        apps.enrolled(SPACE),
        apps.namespace("elsewhere"),
        apps.account(SPACE, "api"),
        apps.deployment(SPACE, "api", apps.server(), 2, serviceAccountName="api"),
        apps.service(SPACE, "api"),
        apps.pod(SPACE, "client", apps.client()),
        apps.pod("elsewhere", "stranger", apps.client()),
    )
    mesh.kubectl("-n", SPACE, "rollout", "status", "deploy/api", "--timeout=150s", timeout=170)
    apps.wait_ready(mesh, SPACE, "-l", "app=client")
    apps.wait_ready(mesh, "elsewhere")
    return mesh


def test_check_finds_nothing_wrong(shop: RealNode) -> None:
    said = json.loads(shop.podlink("check", "--proxy", "-o", "json"))["checks"]
    short = {one["id"]: one["state"] for one in said if one["state"] != "ok"}
    assert short == {"record-lasts": "warn"}, said  # the store's default: an emptyDir
    assert sum(one["id"] == "proxy-ready" for one in said) == 3


def test_the_example_of_the_readme_links_and_refuses_the_stranger(mesh: RealNode) -> None:
    mesh.kubectl("apply", "-f", str(ROOT / "docs/examples/hello.yaml"))
    try:
        apps.wait_ready(mesh, "hello")
        assert "Apache-2.0" in apps.get(mesh, "hello", "client", "http://web")
        apps.wait_ready(mesh, "outside", "pod/stranger")
        assert "reset by peer" in apps.get(mesh, "outside", "stranger", "http://web.hello")
    finally:
        mesh.kubectl("delete", "namespace", "hello", "outside", "--wait=false")


def test_a_service_is_reached_over_mutual_tls(shop: RealNode) -> None:
    assert apps.get(shop, SPACE, "client", "http://api").startswith("api-")
    records = apps.until(
        lambda: [one for one in links(shop) if one["destination"]["identity"].endswith("/shop/sa/api")],
        "the link in podlink links",
    )  # fmt: skip
    one = records[0]
    assert (one["security"], one["verdict"]) == ("mtls", "allowed")
    assert one["source"]["identity"] == "spiffe://cluster.local/ns/shop/sa/default"
    assert "mtls allowed" in shop.podlink("trace", one["trace_id"])


def links(node: RealNode) -> list[apps.Object]:
    found: list[apps.Object] = json.loads(node.podlink("links", "-o", "json"))["links"]
    return found


@pytest.mark.parametrize("at", ["service", "pod"])
def test_a_stranger_is_refused(shop: RealNode, at: str) -> None:
    where = "api.shop"
    if at == "pod":
        where = apps.pods(shop, SPACE, "app=api")[0]["status"]["podIP"] + ":8080"
    assert "reset by peer" in apps.get(shop, "elsewhere", "stranger", f"http://{where}")


def test_ipv6_is_captured_like_ipv4(shop: RealNode) -> None:
    ips = [one["ip"] for one in apps.pods(shop, SPACE, "app=api")[0]["status"]["podIPs"]]
    [six] = [ip for ip in ips if ":" in ip]
    assert apps.get(shop, SPACE, "client", f"http://[{six}]:8080").startswith("api-")
    assert "reset by peer" in apps.get(shop, "elsewhere", "stranger", f"http://[{six}]:8080")


def test_verify_link_proves_a_path_through_real_exec_and_port_forward(shop: RealNode) -> None:
    name = apps.pods(shop, SPACE, "app=api")[0]["metadata"]["name"]
    assert "all of it holds" in shop.podlink("verify-link", "shop/client", f"shop/{name}")


def test_tap_shows_a_link_as_it_ends(shop: RealNode) -> None:
    environment = (f"KUBECONFIG={shop.kubeconfig}", f"PYTHONPATH={ROOT}")
    words = (sys.executable, "-m", "cli", "tap", "shop/client", "--count", "1")
    argv = shop.command("env", *environment, *words)
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            apps.get(shop, SPACE, "client", "http://api")

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    finally:
        stop.set()
        asking.join()
    assert "spiffe://cluster.local/ns/shop/sa/api" in done.stdout, done.stderr


def test_nothing_runs_on_in_the_proxy_when_whoever_tapped_is_killed(shop: RealNode) -> None:
    words = (sys.executable, "-m", "cli", "tap", "shop/client")
    shop.run("timeout", "-s", "KILL", "6", *words, check=False)

    def taps() -> bool:
        return "sidecar.admin /tap" in shop.run("ps", "-eo", "args")

    apps.until(lambda: not taps(), "the command in the proxy ends", 20)


def test_a_report_is_signed_by_the_store_and_verified_offline(
    shop: RealNode, tmp_path: Path
) -> None:
    shop.podlink("report", "--since", "1h", "--out", str(tmp_path / "week"))
    said = shop.podlink("report", "verify", str(tmp_path / "week.json"))
    assert "signed by spiffe://cluster.local/ns/podlink-system/sa/podlink-traces" in said


def test_the_kubelet_runs_the_apps_probes_through_the_proxy(shop: RealNode) -> None:
    name = apps.pods(shop, SPACE, "app=api")[0]["metadata"]["name"]
    probe = apps.pods(shop, SPACE, "app=api")[0]["spec"]["containers"][0]["readinessProbe"]
    assert probe["httpGet"]["port"] == 24103 and probe["httpGet"]["path"] == "/probe/app/readiness"
    shop.kubectl("-n", SPACE, "exec", name, "-c", "app", "--", "rm", "/tmp/well")
    apps.until(lambda: not ready(shop, name), "a pod whose app fails its probe is not ready")
    for _ in range(5):
        assert apps.get(shop, SPACE, "client", "http://api").strip() not in ("", name)
    shop.kubectl("-n", SPACE, "exec", name, "-c", "app", "--", "touch", "/tmp/well")
    apps.until(lambda: ready(shop, name), "it is ready again")


def ready(node: RealNode, name: str) -> bool:
    found = json.loads(node.kubectl("-n", SPACE, "get", "pod", name, "-o", "json"))
    conditions = {one["type"]: one["status"] for one in found["status"]["conditions"]}
    return bool(conditions["Ready"] == "True")


def test_a_failing_liveness_probe_restarts_the_app_and_not_the_proxy(shop: RealNode) -> None:
    live = {"exec": {"command": ["true"]}, "periodSeconds": 1}
    tcp = {"tcpSocket": {"port": 9}, "periodSeconds": 1, "failureThreshold": 2}  # nobody listens
    apps.apply(shop, apps.pod(SPACE, "dead", apps.client(livenessProbe=tcp, startupProbe=live)))
    try:

        def restarts() -> int:
            found = json.loads(shop.kubectl("-n", SPACE, "get", "pod", "dead", "-o", "json"))[
                "status"
            ]
            return sum(one["restartCount"] for one in found.get("containerStatuses", ()))

        apps.until(restarts, "the app is restarted: capture answers no probe for it")
        found = json.loads(shop.kubectl("-n", SPACE, "get", "pod", "dead", "-o", "json"))["status"]
        proxies = [one for one in found["initContainerStatuses"] if one["name"] == "podlink-proxy"]
        assert [one["restartCount"] for one in proxies] == [0]
    finally:
        shop.kubectl("-n", SPACE, "delete", "pod", "dead", "--wait=false")


def test_a_job_ends_beside_its_native_sidecar(shop: RealNode) -> None:
    ask = {"name": "app", "image": CURL, "command": ["curl", "-sS", "-m", "20", "http://api"]}
    apps.apply(shop, apps.job(SPACE, "once", ask))
    shop.kubectl("-n", SPACE, "wait", "--for=condition=Complete", "job/once", "--timeout=120s")
    [made] = apps.pods(shop, SPACE, "job-name=once")
    assert made["status"]["phase"] == "Succeeded"
    assert shop.kubectl("-n", SPACE, "logs", "job/once", "-c", "app").startswith("api-")


def test_an_init_container_of_the_app_has_links_already(shop: RealNode) -> None:
    ask = {"name": "first", "image": CURL, "command": ["curl", "-sSf", "-m", "20", "http://api"]}
    apps.apply(shop, apps.pod(SPACE, "two-steps", apps.client(), initContainers=[ask]))
    apps.wait_ready(shop, SPACE, "pod/two-steps")
    assert shop.kubectl("-n", SPACE, "logs", "two-steps", "-c", "first").startswith("api-")
    shop.kubectl("-n", SPACE, "delete", "pod", "two-steps", "--wait=false")


@contextlib.contextmanager
def policy(node: RealNode, spec: dict[str, object]) -> Iterator[None]:
    made = {"apiVersion": "podlink.dev/v1alpha1", "kind": "LinkPolicy",
            "metadata": {"name": "api", "namespace": SPACE}, "spec": spec}  # fmt: skip
    apps.apply(node, made)
    node.kubectl("-n", SPACE, "wait", "--for=condition=InForce", "linkpolicy/api", "--timeout=60s")
    yield
    node.kubectl("-n", SPACE, "delete", "linkpolicy", "api")


def test_a_policy_denies_by_the_identity_of_a_real_service_account(shop: RealNode) -> None:
    selector = {"matchLabels": {"app": "api"}}
    refused = [{"from": [{"namespace": SPACE, "serviceAccount": "default"}]}]
    with policy(shop, {"selector": selector, "deny": refused}):
        apps.until(
            lambda: "reset" in apps.get(shop, SPACE, "client", "http://api"), "the denial", 30
        )
        apps.until(lambda: [o for o in links(shop) if o["reason"] == "policy_denied"], "its record")
    apps.until(lambda: apps.get(shop, SPACE, "client", "http://api").startswith("api-"), "a link")


def test_metrics_are_scraped_from_outside_the_pod(shop: RealNode) -> None:
    ip = apps.pods(shop, SPACE, "app=client")[0]["status"]["podIP"]
    said = shop.run("curl", "-sS", f"http://{ip}:24103/metrics")
    assert "podlink_ready 1" in said and "podlink_capture_in_place 1" in said


def test_a_rolling_update_fails_no_request(shop: RealNode) -> None:
    script = (
        "i=0; bad=0; while [ $i -lt 400 ]; do"
        " curl -sS -m 10 -o /dev/null http://api || bad=$((bad+1)); i=$((i+1)); sleep 0.05; done;"
        " echo bad=$bad"
    )
    argv = [str(shop.plan.assets / "kubectl"), "-n", SPACE, "exec", "client", "-c", "app", "--", "sh",
            "-c", script]  # fmt: skip
    asking = subprocess.Popen(
        shop.command("env", f"KUBECONFIG={shop.kubeconfig}", *argv),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        shop.kubectl("-n", SPACE, "rollout", "restart", "deploy/api")
        shop.kubectl("-n", SPACE, "rollout", "status", "deploy/api", "--timeout=150s", timeout=170)
    finally:
        said = asking.communicate(timeout=150)[0]
    assert said.strip() == "bad=0"


def test_a_download_that_runs_ends_whole_while_its_client_is_deleted(shop: RealNode) -> None:
    """The proxy goes on until the app has ended: a native sidecar ends last, and drains."""
    script = "trap : TERM; curl -sS -m 30 http://api/slow > /tmp/got & wait; wait; wc -l < /tmp/got"
    container = apps.client(command=["sh", "-c", script])
    apps.apply(shop, apps.pod(SPACE, "leaver", container, terminationGracePeriodSeconds=30))
    apps.wait_ready(shop, SPACE, "pod/leaver")
    following = subprocess.Popen(
        shop.command("env", f"KUBECONFIG={shop.kubeconfig}", str(shop.plan.assets / "kubectl"),
                     "-n", SPACE, "logs", "-f", "leaver", "-c", "app"),
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    shop.kubectl("-n", SPACE, "delete", "pod", "leaver", "--wait=false")
    assert following.communicate(timeout=90)[0].strip() == "20"


def test_the_kubelets_token_is_for_the_ca_alone(shop: RealNode) -> None:
    """The app's own token is another one, and no container but the proxy has ours mounted."""
    [one] = apps.pods(shop, SPACE, "app=client")
    mounts = {m["mountPath"] for m in one["spec"]["containers"][0]["volumeMounts"]}
    assert not any("podlink" in path for path in mounts)


def test_the_proxy_starts_from_bytecode(shop: RealNode) -> None:
    say = "import asyncio, sidecar, os"
    say += "; print(*(os.path.exists(one.__cached__) for one in (asyncio, sidecar)))"
    said = shop.kubectl(
        "-n", SPACE, "exec", "client", "-c", "podlink-proxy", "--", "python", "-c", say
    )
    assert said.split() == ["True", "True"]
