"""From an empty cluster to an empty cluster: check --pre, install, check, inject, upgrade, uninstall."""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from cli.__main__ import podlink
from local.cluster import Cluster
from tests.e2e.mesh import until
from tests.e2e.objects import Object, account, container, namespace, pod

SYSTEM = ("podlink-ca", "podlink-registry", "podlink-injector", "podlink-traces")

RBAC, ADMISSION = "/apis/rbac.authorization.k8s.io/v1", "/apis/admissionregistration.k8s.io/v1"
KINDS = (
    *(f"/api/v1/{name}" for name in (
        "namespaces", "configmaps", "secrets", "serviceaccounts", "services", "pods"
    )),
    *(f"{RBAC}/{name}" for name in (
        "clusterroles", "clusterrolebindings", "roles", "rolebindings"
    )),
    *(f"{ADMISSION}/{name}" for name in (
        "mutatingwebhookconfigurations", "validatingadmissionpolicies",
        "validatingadmissionpolicybindings",
    )),
    "/apis/apps/v1/deployments", "/apis/scheduling.k8s.io/v1/priorityclasses",
    "/apis/networking.k8s.io/v1/networkpolicies", "/apis/policy/v1/poddisruptionbudgets",
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
)  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster.up(name=f"install-{os.getpid()}") as made:
        if made.single_uid:
            pytest.skip("one UID only: podlink install is for clusters that have more")
        yield made


def run(cluster: Cluster, *argv: str, feed: str = "") -> Result:
    plain = ("install",)
    more = () if argv[0] in plain else ("--kubeconfig", str(cluster.kubeconfig))
    return CliRunner().invoke(podlink, [*argv, *more], input=feed)


def checks(cluster: Cluster, *argv: str) -> dict[str, str]:
    done = run(cluster, "check", *argv, "-o", "json")
    return {one["id"]: one["state"] for one in json.loads(done.stdout)["checks"]}


def everything(cluster: Cluster) -> set[str]:
    """Every object of the kinds that podlink is made of."""
    found = set()
    for path in KINDS:
        for one in cluster.client.call("GET", path)["items"]:
            metadata = one["metadata"]
            found.add(f"{path.split('/')[-1]} {metadata.get('namespace', '')}/{metadata['name']}")
    return found


def system_ready(cluster: Cluster) -> bool:
    deployments = cluster.client.call("GET", "/apis/apps/v1/namespaces/podlink-system/deployments")[
        "items"
    ]
    ready = {
        d["metadata"]["name"]: (d.get("status") or {}).get("readyReplicas") for d in deployments
    }
    return all(ready.get(name) == (1 if name == "podlink-traces" else 2) for name in SYSTEM)


def shop(replicas: int = 1) -> Object:
    template = {
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [container(["sleep", "9999"])]},
    }
    spec = {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": template}
    metadata = {"name": "web", "namespace": "mesh"}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


def test_the_whole_life_of_an_installation(cluster: Cluster) -> None:
    before = everything(cluster)
    assert checks(cluster, "--pre") == {
        "kubernetes-version": "ok", "native-sidecars": "ok", "admission-policies": "ok",
        "may-install": "ok", "not-installed": "ok", "other-meshes": "ok",
    }  # fmt: skip
    assert checks(cluster)["installed"] == "fail"

    # Installed, with two replicas of what can have two.
    cluster.apply(run(cluster, "install").stdout)
    until(lambda: system_ready(cluster), "the control plane is ready", 90.0)
    cluster.apply(yaml.safe_dump_all([namespace("mesh", injected=True), account("client")]))
    cluster.apply(yaml.safe_dump(shop()))
    until(lambda: web_ready(cluster), "the shop's pod is ready", 60.0)
    found = checks(cluster, "--proxy")
    assert {one for one, state in found.items() if state != "ok"} == {"record-lasts"}
    assert found["record-lasts"] == "warn"  # an emptyDir, as by default
    assert {"proxy-ready", "webhook-injects", "guard-in-force", "root-lasts"} <= set(found)
    assert checks(cluster, "--pre")["not-installed"] == "warn"

    # What is wrong is found, and what to do is said.
    cluster.apply(
        yaml.safe_dump(
            {
                **pod("lost", where="mesh"),
                "metadata": {
                    "name": "lost",
                    "namespace": "mesh",
                    "labels": {"podlink.dev/inject": "disabled"},
                },
            }
        )
    )
    assert checks(cluster)["pods-injected"] == "ok"  # it says itself that it stays outside
    table = run(cluster, "check")
    assert table.exit_code == 0 and "√ webhook-injects" in table.stdout

    # inject -f gives what the webhook gives, and the webhook leaves it as it is.
    manifest = yaml.safe_dump(shop())
    static = run(cluster, "inject", "-f", "-", feed=manifest)
    assert static.exit_code == 0
    cluster.apply(static.stdout)
    until(lambda: web_ready(cluster), "the statically injected pod is ready", 60.0)

    # An upgrade in place changes nothing that was chosen.
    upgraded = run(cluster, "upgrade")
    assert upgraded.exit_code == 0
    cluster.apply(upgraded.stdout)
    until(lambda: system_ready(cluster), "the control plane is ready after the upgrade", 90.0)
    # (The stand-in's apply takes the caBundle off; the injector puts it back.)
    until(lambda: checks(cluster)["webhook-injects"] == "ok", "the webhook is known again", 60.0)

    # Uninstalled: not while pods would be left with a dying certificate; then without a trace.
    refused = run(cluster, "uninstall")
    assert refused.exit_code != 0
    cluster.delete(yaml.safe_dump(shop()))
    until(lambda: not meshed(cluster), "no meshed pod is left", 60.0)
    cluster.delete(run(cluster, "uninstall", "--crds").stdout)
    mine = {"namespaces /mesh", "serviceaccounts mesh/client", "serviceaccounts mesh/default",
            "configmaps mesh/kube-root-ca.crt", "pods mesh/lost"}  # fmt: skip
    until(lambda: everything(cluster) - before <= mine, "nothing of podlink is left", 60.0)


def meshed(cluster: Cluster) -> list[Any]:
    pods = cluster.select("Pod", "mesh")
    return [p for p in pods if (p["metadata"].get("labels") or {}).get("podlink.dev/injected")]


def web_ready(cluster: Cluster) -> bool:
    pods = meshed(cluster)
    return len(pods) == 1 and any(
        c["type"] == "Ready" and c["status"] == "True"
        for c in pods[0]["status"].get("conditions") or ()
    )
