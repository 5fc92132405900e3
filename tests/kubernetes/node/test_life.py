"""The life of an installation on a real node: Helm's own test, upgrade under load, and no trace left."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.kubernetes.node import apps
from tests.kubernetes.node.cluster import ROOT, RealNode
from tests.kubernetes.node.conftest import wait_programs
from tests.kubernetes.node.images import NEXT

SPACE = "life"
OURS = (
    "mutatingwebhookconfigurations,validatingadmissionpolicies,validatingadmissionpolicybindings,"
    "clusterroles,clusterrolebindings,priorityclasses,namespaces,crd"
)


@pytest.fixture(scope="module")
def living(mesh: RealNode) -> Iterator[RealNode]:
    apps.apply(
        mesh,
        apps.enrolled(SPACE),
        apps.deployment(SPACE, "api", apps.server()),
        apps.service(SPACE, "api"),
        apps.pod(SPACE, "client", apps.client()),
    )
    mesh.kubectl("-n", SPACE, "rollout", "status", "deploy/api", "--timeout=150s", timeout=170)
    apps.wait_ready(mesh, SPACE)
    yield mesh


def sidecars(node: RealNode, label: str) -> set[str]:
    return {
        made["image"]
        for one in apps.pods(node, SPACE, label)
        for made in one["spec"]["initContainers"]
        if made["name"] == "podlink-proxy"
    }


def test_an_upgrade_keeps_links_of_old_sidecars_and_gives_new_pods_the_new_one(
    living: RealNode,
) -> None:
    before = sidecars(living, "app=client")
    living.kubectl("apply", "-f", "-", text=living.podlink("upgrade", "--image", NEXT))
    asked = 0
    for name in ("ca", "registry", "injector"):
        rollout = subprocess.Popen(
            living.command(
                "env", f"KUBECONFIG={living.kubeconfig}", str(living.plan.assets / "kubectl"), "-n",
                "podlink-system", "rollout", "status", f"deploy/podlink-{name}", "--timeout=150s",
            ),
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        while rollout.poll() is None:
            assert apps.get(living, SPACE, "client", "http://api").startswith("api-")
            asked += 1
        assert rollout.returncode == 0
    assert asked
    wait_programs(living)
    assert sidecars(living, "app=client") == before
    living.kubectl("-n", SPACE, "rollout", "restart", "deploy/api")
    living.kubectl("-n", SPACE, "rollout", "status", "deploy/api", "--timeout=150s", timeout=170)
    apps.until(lambda: sidecars(living, "app=api") == {NEXT}, "new pods have the new sidecar")
    assert apps.get(living, SPACE, "client", "http://api").startswith("api-")  # old asks new


def test_uninstall_refuses_while_sidecars_live_and_then_leaves_nothing(living: RealNode) -> None:
    assert "still have a sidecar" in living.podlink("uninstall", check=False)
    spaces = json.loads(
        living.kubectl("get", "ns", "-l", "podlink.dev/inject=enabled", "-o", "json")
    )
    names = [one["metadata"]["name"] for one in spaces["items"]]
    living.kubectl("delete", "namespace", *names, "--timeout=110s")
    living.kubectl("delete", "-f", "-", text=living.podlink("uninstall", "--crds"), timeout=180)
    apps.until(lambda: not left(living), "every object is gone")


def left(node: RealNode) -> list[str]:
    found = node.kubectl("get", OURS, "-o", "name").split()
    return [one for one in found if "podlink" in one]


def test_helm_installs_proves_a_link_by_its_test_and_uninstalls(living: RealNode) -> None:
    """Runs last: it needs the cluster without podlink."""
    if left(living):
        pytest.skip("podlink is still here")
    library = ROOT / ".helm"
    if not library.exists():
        pytest.skip("Helm is not here: make .helm/.ready")
    helm(living, "install")
    wait_programs(living)
    apps.until(
        lambda: '"state": "fail"' not in living.podlink("check", "-o", "json", check=False),
        "it is well",
    )
    said = helm(living, "test")
    assert '"Succeeded"' in said
    helm(living, "uninstall")
    kept = {one for one in left(living) if "linkpolicies" not in one}  # LinkPolicies are the users'
    assert kept <= {"namespace/podlink-system", "namespace/podlink-test"}


def helm(node: RealNode, what: str) -> str:
    return node.run(sys.executable, "-m", "tests.kubernetes.node.helm", what, timeout=400)
