"""What a real proxy says on its health port: metrics while links run, and readiness without rules."""

import json
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kit.contract import HEALTH_PORT
from sidecar.metrics.catalogue import BY_NAME
from tests.e2e.mesh import Mesh, until
from tests.e2e.objects import MESH, PLAIN, account, pod, serving

CLIENT = f"spiffe://cluster.local/ns/{MESH}/sa/client"


@pytest.fixture(scope="module", autouse=True)
def servers(mesh: Mesh) -> Iterator[None]:
    made = [
        account("counted"),  # an identity of its own: counts are by identity, and others talk too
        pod("counted", serving("echo", 7001), serviceAccountName="counted"),
        pod("bared", serving("echo", 7001)),
    ]
    mesh.apply(*made)
    yield
    mesh.delete(*made)


def page(mesh: Mesh, name: str, path: str) -> tuple[int, str]:
    """Asked by somebody outside the mesh: status and body."""
    url = f"http://{mesh.ip(name)}:{HEALTH_PORT}{path}"
    said = mesh.run(f"{PLAIN}/stranger", "curl", "-s", "-m", "5", "-w", "\n%{http_code}", url)
    body, _, status = said.rpartition("\n")
    return int(status), body


def metrics(mesh: Mesh, name: str) -> dict[str, dict[tuple[str, ...], float]]:
    status, body = page(mesh, name, "/metrics")
    assert status == 200
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(body):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_both_ends_count_the_same_link(mesh: Mesh) -> None:
    mesh.attempt(f"{MESH}/client", mesh.ip(f"{MESH}/counted"), 7001, "hello")
    with pytest.raises(AssertionError):  # plaintext: refused, and counted
        mesh.run(
            f"{PLAIN}/stranger",
            "curl",
            "-s",
            "-m",
            "5",
            f"http://{mesh.ip(f'{MESH}/counted')}:7001",
        )
    far = metrics(mesh, f"{MESH}/counted")
    ours = {k: v for k, v in far["podlink_tcp_sent_bytes_total"].items() if CLIENT in k}
    ((labels, sent),) = ours.items()
    assert labels[0] == "destination" and labels[-1] == "mtls"
    assert sent == 5
    assert far["podlink_tcp_received_bytes_total"][labels] == 5
    assert sum(far["podlink_link_denied_total"].values()) == 1
    assert ("destination", "plaintext_denied", "") in far["podlink_link_denied_total"]
    assert far["podlink_tls_handshakes_total"]["destination", "ok"] >= 1
    near = metrics(mesh, f"{MESH}/client")
    assert near["podlink_tcp_sent_bytes_total"][("source", *labels[1:])] == 5
    assert far["podlink_capture_in_place"] == {(): 1.0}
    assert 0 < far["podlink_identity_cert_seconds_left"][()] <= 3600
    names = {
        name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in far
    }
    assert names <= set(BY_NAME)


@pytest.mark.fault_row("rules-vanish")
def test_without_its_rules_a_pod_is_not_ready_and_with_them_it_is_again(mesh: Mesh) -> None:
    name = f"{MESH}/bared"
    assert page(mesh, name, "/readyz") == (200, "ok\n")
    inside = ("nsenter", "-t", str(mesh.proxy_pid(name)), "-n")
    rules = mesh.node(*inside, "nft", "list", "table", "inet", "podlink")
    mesh.node(*inside, "nft", "flush", "ruleset")
    until(lambda: page(mesh, name, "/readyz")[0] == 503, "the pod is not ready")
    status, why = page(mesh, name, "/readyz")
    assert (status, why) == (503, "the capture rules are gone: restart the pod\n")
    assert metrics(mesh, name)["podlink_capture_in_place"] == {(): 0.0}
    script = f"nft -f - <<'END'\n{rules}\nEND"
    mesh.node(*inside, "sh", "-c", script)
    until(lambda: page(mesh, name, "/readyz")[0] == 200, "the pod is ready again")
    asked = mesh.run(name, "python", "-c", "import json; print(json.dumps('alive'))")
    assert json.loads(asked) == "alive"
