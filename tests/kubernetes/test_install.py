"""The chart on a real API server through Helm itself, and the same without Helm: every object taken
without a warning, upgraded, checked, and taken down to the last."""

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from cli.__main__ import podlink
from tests.certs.forge import Forge
from tests.charts.conftest import Ask
from tests.kubernetes.objects import Objects, until
from tests.kubernetes.real_api import Object, RealApi

SYSTEM = "podlink-system"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/linkpolicies.podlink.dev"
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
WEBHOOK = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/podlink-injector"
GUARDS = ("podlink-guard", "podlink-guard-images")
PEM = base64.b64encode(Forge().root_pem).decode()


@pytest.fixture
def kubeconfig(real: RealApi, tmp_path: Path) -> Path:
    path = tmp_path / "kubeconfig"
    path.touch(mode=0o600)
    path.write_text(real.kubeconfig())
    return path


@pytest.fixture
def before(objects: Objects) -> Iterator[set[str]]:
    """Everything that is there without podlink; and podlink is away again at the end."""
    objects.drop_crd()
    yield objects.everything()
    for name in ("mutatingwebhookconfigurations/podlink-injector",
                 *(f"validatingadmissionpolicies/{one}" for one in GUARDS)):  # fmt: skip
        objects.api.call("DELETE", f"/apis/admissionregistration.k8s.io/v1/{name}")
    objects.drop_namespace(SYSTEM)


def run(kubeconfig: Path, *argv: str) -> Result:
    return CliRunner().invoke(podlink, [*argv, "--kubeconfig", str(kubeconfig)])


def checks(kubeconfig: Path, *argv: str) -> dict[str, str]:
    done = run(kubeconfig, "check", *argv, "-o", "json")
    return {one["id"]: one["state"] for one in json.loads(done.stdout)["checks"]}


def delete_printed(objects: Objects, kubeconfig: Path, *argv: str) -> list[Object]:
    done = run(kubeconfig, "uninstall", *argv)
    assert done.exit_code == 0, done.output
    printed = [one for one in yaml.safe_load_all(done.stdout) if one]
    for one in printed:
        if one["kind"] == "Namespace":
            objects.drop_namespace(one["metadata"]["name"])
        else:
            assert objects.delete(one).status < 300, one
    return printed


def give_bundle(real: RealApi) -> None:
    """What the injector writes later an upgrade must leave: without it the webhook is not believed."""
    patch = [
        {"op": "add", "path": f"/webhooks/{n}/clientConfig/caBundle", "value": PEM} for n in (0, 1)
    ]
    real.need("PATCH", WEBHOOK, patch, kind="application/json-patch+json")


def bundles(real: RealApi) -> set[str]:
    return {w["clientConfig"].get("caBundle", "") for w in real.need("GET", WEBHOOK)["webhooks"]}


def test_helm_installs_upgrades_and_uninstalls(
    helm: Ask, real: RealApi, objects: Objects, kubeconfig: Path, before: set[str]
) -> None:
    assert set(checks(kubeconfig, "--pre").values()) == {"ok"}
    where = {"namespace": SYSTEM, "kubeconfig": real.kubeconfig()}
    # As Helm 4 does by itself: applied by the server, which refuses unknown fields.
    apply = {"server_side_apply": "true", "disable_openapi_validation": False}
    helm(what="install", values={}, create_namespace=True, **where, **apply)
    token = real.need("GET", f"/api/v1/namespaces/{SYSTEM}/secrets/podlink-traces-token")["data"]
    found = checks(kubeconfig)
    assert found["webhook-present"] == found["guard-in-force"] == found["linkpolicy-crd"] == "ok"
    assert found["podlink-ca-ready"] == "fail", "no node, no pods"
    assert found["policies-accepted"] == "ok"

    give_bundle(real)
    values = {"leafTtl": "30m", "guard": {"optOut": "deny"}, "ca": {"replicas": 3}}
    helm(what="upgrade", values=values, **where)
    assert bundles(real) == {PEM}, "what the injector wrote later stays"
    # A CRD of an earlier version is brought up to date, which Helm does not do to those in crds/.
    served = real.need("GET", CRD)["spec"]["versions"][0]["schema"]
    del served["openAPIV3Schema"]["properties"]["spec"]["properties"]["deny"]
    patch = [{"op": "replace", "path": "/spec/versions/0/schema", "value": served}]
    real.need("PATCH", CRD, patch, kind="application/json-patch+json")
    helm(what="upgrade", values=values, force_conflicts=True, **where)  # the patch made it ours
    deployment = real.need("GET", f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/podlink-ca")
    assert deployment["spec"]["replicas"] == 3
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {"name": "PODLINK_LEAF_TTL", "value": "30m"} in container["env"]
    schema = real.need("GET", CRD)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert "deny" in schema["properties"]["spec"]["properties"]
    secret = f"/api/v1/namespaces/{SYSTEM}/secrets/podlink-traces-token"
    assert real.need("GET", secret)["data"] == token, "an upgrade must not change the token"

    helm(what="uninstall", **where)
    left = objects.everything() - before
    kept = {
        f"namespaces /{SYSTEM}", f"secrets {SYSTEM}/podlink-traces-token",
        "customresourcedefinitions /linkpolicies.podlink.dev",
        "apiservices /v1alpha1.podlink.dev",
    }  # fmt: skip
    assert left <= kept, "Helm takes all that it made, but what it was told to keep"
    delete_printed(objects, kubeconfig, "--crds", "-n", SYSTEM)
    until(lambda: objects.everything() <= before, "nothing of podlink is left")


def test_an_upgrade_of_what_helm_3_installed_keeps_to_its_way(
    helm: Ask, real: RealApi, objects: Objects, kubeconfig: Path, before: set[str]
) -> None:
    where = {"namespace": SYSTEM, "kubeconfig": real.kubeconfig()}
    helm(what="install", values={"guard": {"enabled": False}}, create_namespace=True, **where)
    give_bundle(real)
    assert {w["failurePolicy"] for w in real.need("GET", WEBHOOK)["webhooks"]} == {"Fail"}
    helm(what="upgrade", values={"guard": {"enabled": True}}, **where)
    assert {w["failurePolicy"] for w in real.need("GET", WEBHOOK)["webhooks"]} == {"Ignore"}
    assert bundles(real) == {PEM}
    for name in GUARDS:
        real.need("GET", f"{POLICIES}/{name}")
    helm(what="uninstall", **where)
    delete_printed(objects, kubeconfig, "--crds", "-n", SYSTEM)
    until(lambda: objects.everything() <= before, "nothing of podlink is left")


@pytest.mark.parametrize("words", [(), ("--cni",), ("--only-namespace", "shop"), ("--no-guard",)])
def test_what_install_prints_is_taken_by_kubectl_and_uninstall_leaves_nothing(
    assets: Path, real: RealApi, objects: Objects, kubeconfig: Path, before: set[str],
    words: tuple[str, ...],
) -> None:  # fmt: skip
    kubectl = assets / "kubectl"
    if not kubectl.is_file():
        pytest.skip(f"there is no kubectl in {assets}")
    if "shop" in words:
        objects.namespace("shop")
        before |= {"namespaces /shop"}
    printed = CliRunner().invoke(podlink, ["install", *words]).stdout

    def apply(text: str) -> subprocess.CompletedProcess[str]:
        argv = [
            str(kubectl),
            "--kubeconfig",
            str(kubeconfig),
            "apply",
            "--validate=strict",
            "-f",
            "-",
        ]
        return subprocess.run(argv, input=text, capture_output=True, text=True, timeout=120)

    try:
        done = apply(printed)
        assert (done.returncode, done.stderr) == (0, ""), "no error and no warning"
        assert done.stdout.count(" created\n") == len(list(yaml.safe_load_all(printed)))
        if real.has_controllers:  # else nobody makes pods of Deployments
            pods = f"/api/v1/namespaces/{SYSTEM}/pods"
            # Their namespace enforces Pod Security "restricted", and they name a PriorityClass.
            until(lambda: len(real.need("GET", pods)["items"]) == 7, "each Deployment has its pods")
        again = apply(run(kubeconfig, "upgrade").stdout)
        assert (again.returncode, again.stderr) == (0, "")
        assert " created\n" not in again.stdout
        found = checks(kubeconfig)
        assert found["webhook-present"] == found["linkpolicy-crd"] == "ok"
        assert found["guard-in-force"] == ("warn" if "--no-guard" in words else "ok")
        assert checks(kubeconfig, "--pre")["not-installed"] == "warn"
    finally:
        delete_printed(objects, kubeconfig, "--crds")
        until(lambda: objects.everything() <= before, "nothing of podlink is left")
        objects.drop_namespace("shop")
