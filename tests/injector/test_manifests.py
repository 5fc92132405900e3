"""The control plane's objects agree with the programs they start, and with Kubernetes' rules."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from certs.names import CONTROL_PLANE_ACCOUNTS
from certs.server.config import CaConfig
from injector.bundle import NAME
from injector.config import InjectorConfig
from kit import contract
from kit.settings import Settings
from registry.config import RegistryConfig

FILE = Path(__file__).parents[2] / "local" / "control_plane.yaml"
OBJECTS: list[dict[str, Any]] = list(yaml.safe_load_all(FILE.read_text()))
PROGRAMS = ("podlink-ca", "podlink-registry", "podlink-injector", "podlink-traces")


def find(kind: str, name: str) -> dict[str, Any]:
    (found,) = (o for o in OBJECTS if (o["kind"], o["metadata"]["name"]) == (kind, name))
    return found


def only_container(name: str) -> dict[str, Any]:
    (found,) = find("Deployment", name)["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def environment(name: str) -> Settings:
    return Settings({one["name"]: one.get("value", "x") for one in only_container(name)["env"]})


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """A label selector's matchExpressions, as the API server evaluates In and NotIn."""
    return all(
        (labels.get(rule["key"]) in rule["values"]) is (rule["operator"] == "In")
        for rule in selector["matchExpressions"]
    )


@pytest.mark.parametrize(
    ("near", "own", "called"),
    [
        ("enabled", None, ["namespaces"]),
        ("enabled", "enabled", ["namespaces"]),
        ("enabled", "disabled", []),
        (None, None, []),
        (None, "enabled", ["pods"]),
        (None, "disabled", []),
        ("disabled", None, []),
        ("disabled", "enabled", ["pods"]),
    ],
)
def test_a_pod_meets_one_webhook_at_most_and_its_own_label_decides(
    near: str | None, own: str | None, called: list[str]
) -> None:
    hooks = find("MutatingWebhookConfiguration", NAME)["webhooks"]
    for name, wanted in (("shop", called), ("podlink-system", []), ("kube-system", [])):
        namespace = {"kubernetes.io/metadata.name": name}
        namespace |= {contract.INJECT_LABEL: near} if near else {}
        pod = {contract.INJECT_LABEL: own} if own else {}
        met = [
            hook["name"].split(".")[0]
            for hook in hooks
            if matches(hook["namespaceSelector"], namespace)
            and matches(hook["objectSelector"], pod)
        ]
        assert met == wanted


@pytest.mark.fault_row("webhook-down")
def test_a_webhook_that_is_away_leaves_pods_to_the_guard_and_is_not_waited_for_long() -> None:
    guard = find("ValidatingAdmissionPolicy", "podlink-guard")
    assert guard["spec"]["failurePolicy"] == "Fail"
    for hook in find("MutatingWebhookConfiguration", NAME)["webhooks"]:
        assert (hook["failurePolicy"], hook["timeoutSeconds"]) == ("Ignore", 3)
        assert hook["sideEffects"] == "None"
        assert "caBundle" not in hook["clientConfig"]


def test_the_programs_read_the_settings_that_the_objects_give_them() -> None:
    ca = CaConfig.from_settings(environment("podlink-ca"))
    registry = RegistryConfig.from_env(environment("podlink-registry"))
    injector = InjectorConfig.from_env(environment("podlink-injector"))
    assert ca.listen.endswith(f":{contract.CA_PORT}")
    assert registry.listen.endswith(f":{contract.REGISTRY_PORT}")
    assert injector.listen.endswith(f":{contract.INJECTOR_PORT}")
    for config in (registry, injector):
        assert str(config.token_path) == contract.TOKEN_PATH
        assert str(config.bundle_path) == contract.BUNDLE_PATH


def test_every_setting_is_one_that_its_program_reads() -> None:
    read: set[str] = set()

    class Recorded(dict[str, str]):
        def get(self, name: str, default: Any = None) -> Any:
            read.add(name)
            return super().get(name, default)

    for name, config in (
        ("podlink-registry", RegistryConfig),
        ("podlink-injector", InjectorConfig),
    ):
        given = {one["name"]: one.get("value", "x") for one in only_container(name)["env"]}
        read.clear()
        config.from_env(Settings(Recorded(given)))
        assert set(given) <= read


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_program_is_restricted_and_has_its_own_account(name: str) -> None:
    spec = find("Deployment", name)["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == name
    assert find("ServiceAccount", name)
    assert spec["securityContext"]["runAsNonRoot"] is True
    security = only_container(name)["securityContext"]
    assert security == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_service_leads_to_a_port_of_its_program(name: str) -> None:
    service = find("Service", name)["spec"]
    labels = find("Deployment", name)["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    open_ports = {port["containerPort"] for port in only_container(name)["ports"]}
    assert {port["targetPort"] for port in service["ports"]} <= open_ports


def test_the_accounts_are_those_that_the_ca_gives_names_to() -> None:
    assert {f"podlink-{n}" for n in ("registry", "injector", "traces")} == CONTROL_PLANE_ACCOUNTS


def test_nobody_but_the_ca_reads_secrets_and_no_rule_has_a_star() -> None:
    for one in OBJECTS:
        if one["kind"] not in ("Role", "ClusterRole"):
            continue
        for rule in one["rules"]:
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
            if "secrets" in rule["resources"]:
                assert (one["kind"], one["metadata"]["name"]) == ("Role", "podlink-ca")
                assert rule["verbs"] == ["create"] or rule["resourceNames"] == ["podlink-ca"]
