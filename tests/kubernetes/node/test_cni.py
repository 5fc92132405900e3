"""Capture by the CNI plugin on a real node: installed by its DaemonSet, called by containerd."""

import json
import time

import pytest

from tests.kubernetes.node import apps
from tests.kubernetes.node.cluster import RealNode
from tests.kubernetes.node.conftest import wait_programs

SPACE = "strict"
CONF = "/etc/cni/net.d/10-pods.conflist"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
APP = {
    "securityContext": {
        "runAsNonRoot": True, "runAsUser": 1000, "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
    }
}  # fmt: skip


def chain(node: RealNode) -> list[str]:
    return [one["type"] for one in json.loads(node.run("cat", CONF))["plugins"]]


@pytest.fixture(scope="module")
def plugged(mesh: RealNode) -> RealNode:
    """The same installation, changed to the plugin."""
    mesh.kubectl("apply", "-f", "-", text=mesh.podlink("install", "--cni"))
    mesh.kubectl(
        "-n", "podlink-system", "rollout", "status", "daemonset/podlink-cni", "--timeout=150s"
    )
    wait_programs(mesh)
    apps.apply(
        mesh,
        apps.enrolled(SPACE, **RESTRICTED),
        apps.namespace("elsewhere"),
        apps.deployment(SPACE, "api", apps.server(**APP)),
        apps.service(SPACE, "api"),
        apps.pod(SPACE, "client", apps.client(**APP)),
        apps.pod("elsewhere", "stranger", apps.client()),
    )
    mesh.kubectl("-n", SPACE, "rollout", "status", "deploy/api", "--timeout=150s", timeout=170)
    apps.wait_ready(mesh, SPACE)
    apps.wait_ready(mesh, "elsewhere", "pod/stranger")
    return mesh


def test_the_plugin_is_chained_after_the_clusters_own(plugged: RealNode) -> None:
    assert chain(plugged) == ["bridge", "portmap", "podlink"]


def test_pods_link_in_a_namespace_under_pod_security_restricted(plugged: RealNode) -> None:
    assert apps.get(plugged, SPACE, "client", "http://api").startswith("api-")
    assert "reset by peer" in apps.get(plugged, "elsewhere", "stranger", "http://api.strict")
    [one] = apps.pods(plugged, SPACE, "app=client")
    names = [made["name"] for made in one["spec"]["initContainers"]]
    assert names == ["podlink-validate", "podlink-proxy"]
    added = [c["securityContext"]["capabilities"].get("add") for c in one["spec"]["initContainers"]]
    assert added == [None, None]


def test_skipped_ports_reach_the_plugin_by_the_annotation(plugged: RealNode) -> None:
    made = apps.pod(SPACE, "open", apps.server(**APP))
    made["metadata"]["annotations"] = {"config.podlink.dev/skip-inbound-ports": "8080"}
    apps.apply(plugged, made)
    apps.wait_ready(plugged, SPACE, "pod/open")
    [one] = apps.pods(plugged, SPACE, "app=open")
    answer = apps.get(plugged, "elsewhere", "stranger", f"http://{one['status']['podIP']}:8080")
    assert answer.strip() == "open"


def test_an_update_of_the_installer_never_leaves_the_chain(plugged: RealNode) -> None:
    daemons = ("-n", "podlink-system", "rollout")
    plugged.kubectl(*daemons, "restart", "daemonset/podlink-cni")
    seen = set[tuple[str, ...]]()

    def updated() -> bool:
        seen.add(tuple(chain(plugged)))
        said = plugged.kubectl(*daemons, "status", "daemonset/podlink-cni", "--watch=false")
        return "successfully rolled out" in said

    apps.until(updated, "the new installer has taken over")
    assert seen == {("bridge", "portmap", "podlink")}
    time.sleep(3)  # as long as the old one may take to end
    assert chain(plugged) == ["bridge", "portmap", "podlink"]


@pytest.mark.attack_row(36)
def test_a_pod_that_the_plugin_did_not_see_never_starts_its_app(plugged: RealNode) -> None:
    """The race of every chained plugin: the node's network was complete before ours was in it."""
    # The installer leaves this node, and with it the plugin.
    stop = {"spec": {"template": {"spec": {"nodeSelector": {"nowhere": "true"}}}}}
    daemons = ("-n", "podlink-system", "patch", "daemonset", "podlink-cni", "--type=merge", "-p")
    plugged.kubectl(*daemons, json.dumps(stop))
    try:
        apps.until(lambda: chain(plugged) == ["bridge", "portmap"], "the plugin leaves the chain")
        apps.until(
            lambda: plugged.run("ls", "-A", "/opt/cni/bin").count("podlink") == 1,
            "only the stub stays",
        )
        apps.apply(plugged, apps.pod(SPACE, "late", apps.client(**APP)))

        def failed() -> bool:
            [one] = apps.pods(plugged, SPACE, "app=late")
            states = {s["name"]: s for s in one["status"].get("initContainerStatuses", ())}
            return bool(states) and states["podlink-validate"]["restartCount"] > 0

        apps.until(failed, "podlink-validate fails the pod")
        [one] = apps.pods(plugged, SPACE, "app=late")
        assert [s["state"].get("running") for s in one["status"]["containerStatuses"]] == [None]
        ask = ("-n", SPACE, "logs", "late", "-c", "podlink-validate", "--previous")
        apps.until(
            lambda: "this pod is not captured" in plugged.kubectl(*ask, check=False), "it says why"
        )
    finally:
        plugged.kubectl(
            *daemons,
            json.dumps({"spec": {"template": {"spec": {"nodeSelector": {"nowhere": None}}}}}),
        )
    apps.until(lambda: chain(plugged) == ["bridge", "portmap", "podlink"], "the plugin is back")
    plugged.kubectl("-n", SPACE, "delete", "pod", "late", "--wait=false")
