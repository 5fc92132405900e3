"""The chart, rendered by Helm itself for a matrix of values, and judged object by object."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubernetes_validate import utils as schemas

from injector.annotations import _NO_DEFAULTS, KINDS, PodSettings
from injector.container import MeshSettings, sidecar_containers, sidecar_volumes
from scripts.helm import CHART, ROOT, HelmRefused
from scripts.render import FILES, plain, text
from tests.charts.conftest import Ask, Render
from tests.charts.pod_security import baseline, restricted

Object = dict[str, Any]
MINORS = (29, 31, 34, 37)
EVERYTHING: Object = {
    "monitoring": {
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True},
        "dashboard": {"enabled": True},
    },
    "traces": {"persistence": {"enabled": True, "storageClass": "fast"}},
    "ca": {"autoscaling": {"enabled": True}, "importSecret": "signer"},
    "registry": {"autoscaling": {"enabled": True}, "extraEnv": [{"name": "A", "value": "b"}]},
    "injector": {"autoscaling": {"enabled": True}},
    "imagePullSecrets": [{"name": "pull"}],
    "requireAntiAffinity": True,
    "namespace": {"create": True},
    "podAnnotations": {"a": "b"},
    "tolerations": [{"key": "x", "operator": "Exists"}],
    "proxyDefaults": {"proxy-log-level": "debug", "workers": "2"},
}
MATRIX: dict[str, Object] = {
    "default": {},
    "everything": EVERYTHING,
    "one_namespace": {"onlyNamespace": "shop"},
    "cni": {"cni": {"enabled": True}},
    "bare": {
        "traces": {"enabled": False}, "guard": {"enabled": False}, "tests": {"enabled": False},
        "networkPolicy": {"enabled": False}, "podDisruptionBudget": {"enabled": False},
        "crds": {"enabled": False}, "priorityClass": {"create": False, "name": ""},
        "ca": {"replicas": 1}, "registry": {"replicas": 1}, "injector": {"replicas": 1},
    },
    "strict": {"guard": {"optOut": "deny", "hostNetwork": "deny"}, "meshDefault": "deny"},
    "private_registry": {
        "image": {"registry": "r.example:5000", "digest": f"sha256:{'a' * 64}"}
    },
    "collector": {"otlp": {"endpoint": "otel.observability:4317"}, "traces": {"enabled": False}},
}  # fmt: skip


@pytest.fixture(params=MATRIX, ids=str)
def objects(request: pytest.FixtureRequest, rendered: Render) -> list[Object]:
    made = rendered(MATRIX[request.param])
    return [*made.objects, *made.hooks]


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    for one in objects:
        if one["kind"] == "Pod":
            yield one["metadata"]["name"], one["spec"]
        elif one["kind"] in ("Deployment", "DaemonSet"):
            yield one["metadata"]["name"], one["spec"]["template"]["spec"]


def find(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = (o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name)
    return found


def test_helm_finds_nothing_to_complain_about(helm: Ask) -> None:
    found = helm(what="lint")["said"]
    assert found["TotalChartsLinted"] == 1 and not found["Errors"]
    assert {message["Severity"] for message in found["Messages"]} <= {
        1
    }  # the icon, for information


@pytest.mark.parametrize("minor", MINORS)
def test_every_object_fits_the_schemas_of_every_version(
    rendered: Render, minor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schemas, "schema_contents", functools.cache(schemas.schema_contents))
    different: dict[str, Object] = {}
    for values in list(MATRIX.values())[: 2 if minor < 30 else None]:
        # Rendered anew only where the chart makes a difference: before admission policies.
        made = rendered(values, minor=minor) if minor < 30 else rendered(values)
        different |= {json.dumps(one): one for one in (*made.objects, *made.hooks)}
    assert len(different) > 40
    for one in different.values():
        if not one["apiVersion"].startswith("monitoring.coreos.com/"):  # the operator's own
            kubernetes_validate.validate(one, f"1.{minor}", strict=True)


def test_a_cluster_without_admission_policies_gets_none_and_fails_closed(rendered: Render) -> None:
    old, new = rendered(minor=29).objects, rendered(minor=30).objects
    assert "ValidatingAdmissionPolicy" not in {o["kind"] for o in old}
    find(new, "ValidatingAdmissionPolicy", "podlink-guard")
    for made, wanted in ((old, "Fail"), (new, "Ignore")):
        webhooks = find(made, "MutatingWebhookConfiguration", "podlink-injector")["webhooks"]
        assert {w["failurePolicy"] for w in webhooks} == {wanted}


def test_every_pod_keeps_to_restricted_but_for_the_cni_installer(objects: list[Object]) -> None:
    for name, spec in pods(objects):
        if name == "podlink-cni":
            assert restricted(spec)
            continue
        assert restricted(spec) == [], name


def test_what_is_injected_needs_privileges_only_for_capture() -> None:
    mesh = MeshSettings(
        image="i", trust_domain="t", ca_address="a", registry_address="r", otlp_endpoint="",
        cluster_cidrs="c", exempt_by="uid",
    )  # fmt: skip
    for by, level in (("init", baseline), ("cni", restricted)):
        settings = MeshSettings(**{**vars_of(mesh), "capture_by": by})
        made = sidecar_containers(settings, PodSettings())
        spec = {"initContainers": made.init_containers, "volumes": sidecar_volumes(settings)}
        wrong = level(spec)
        assert wrong == (["initContainers[0]: capability NET_ADMIN"] if by == "init" else [])


def vars_of(mesh: MeshSettings) -> Object:
    return {name: getattr(mesh, name) for name in mesh.__dataclass_fields__}


def test_labels_and_namespaces_are_complete(objects: list[Object]) -> None:
    wanted = {"app.kubernetes.io/part-of", "app.kubernetes.io/managed-by", "helm.sh/chart"}
    for one in objects:
        labels = one["metadata"].get("labels") or {}
        assert wanted <= set(labels), one["metadata"]["name"]
        assert labels["app.kubernetes.io/managed-by"] == "Helm"


def test_every_container_is_bounded_and_pinned(objects: list[Object]) -> None:
    for name, spec in pods(objects):
        for container in spec["containers"]:
            assert not container["image"].endswith(":latest"), name
            assert "memory" in container["resources"]["limits"], name
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name


def rules(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    for one in objects:
        if one["kind"] in ("Role", "ClusterRole"):
            for rule in one["rules"]:
                yield f"{one['kind']}/{one['metadata']['name']}", rule


@pytest.mark.attack_row(37)
def test_no_role_has_more_than_it_needs(objects: list[Object]) -> None:
    for name, rule in rules(objects):
        assert "*" not in (*rule["verbs"], *rule["resources"], *rule["apiGroups"]), name
        if "secrets" in rule["resources"]:
            assert name.startswith("Role/"), f"{name} reads Secrets in every namespace"
            assert rule.get("resourceNames") or rule["verbs"] == ["create"], name
        never = {"pods/exec", "nodes/proxy", "nodes/status", "serviceaccounts/token"}
        assert not set(rule["resources"]) & never, name
        if "nodes" in rule["resources"]:
            assert (rule["resources"], rule["verbs"]) == (["nodes"], ["list", "watch"]), name
            assert name.startswith("ClusterRole/podlink-registry"), name
        if "create" in rule["verbs"]:
            assert "pods" not in rule["resources"], name


def test_one_namespace_needs_of_the_cluster_only_what_is_listed(rendered: Render) -> None:
    """docs/install.md lists these; the rest is in Roles of two namespaces."""
    made = rendered(MATRIX["one_namespace"]).objects
    found = [(n, r["resources"], r["verbs"], r.get("resourceNames")) for n, r in rules(made)]
    whole = [one for one in found if one[0].startswith("ClusterRole/")]
    assert whole == [
        ("ClusterRole/podlink-ca-cluster", ["namespaces"], ["get", "list", "watch"], ["shop"]),
        ("ClusterRole/podlink-ca-cluster", ["tokenreviews"], ["create"], None),
        ("ClusterRole/podlink-injector", ["namespaces"], ["get", "list", "watch"], ["shop"]),
        ("ClusterRole/podlink-injector", ["mutatingwebhookconfigurations"], ["get", "patch"],
         ["podlink-injector"]),
        ("ClusterRole/podlink-registry-cluster", ["namespaces"], ["get", "list", "watch"], ["shop"]),
        ("ClusterRole/podlink-registry-cluster", ["nodes"], ["list", "watch"], None),
    ]  # fmt: skip
    assert {o["metadata"].get("namespace") for o in made if o["kind"] == "Role"} == {
        "shop", "podlink-system",
    }  # fmt: skip


@pytest.mark.parametrize("where", ["webhook", "guard"])
@pytest.mark.fault_row("webhook-down")
def test_the_own_namespace_and_kube_system_are_never_looked_at(
    rendered: Render, where: str
) -> None:
    made = rendered({}, namespace="mesh").objects
    if where == "webhook":
        webhooks = find(made, "MutatingWebhookConfiguration", "podlink-injector")["webhooks"]
        selectors = [w["namespaceSelector"] for w in webhooks]
    else:
        guard = find(made, "ValidatingAdmissionPolicy", "podlink-guard")
        selectors = [guard["spec"]["matchConstraints"]["namespaceSelector"]]
    for selector in selectors:
        (own,) = (
            e for e in selector["matchExpressions"] if e["key"] == "kubernetes.io/metadata.name"
        )
        assert own["operator"] == "NotIn"
        assert {"mesh", "kube-system", "kube-node-lease"} <= set(own["values"])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"trustdomain": "x"}, "trustdomain"),
        ({"ca": {"replica": 2}}, "replica"),
        ({"guard": {"optOut": "maybe"}}, "optOut"),
        ({"image": {"digest": "sha256:short"}}, "digest"),
        ({"proxyDefaults": {"proxy-image": "evil"}}, "proxy-image"),
        ({"meshDefault": "open"}, "meshDefault"),
        ({"injector": {"timeoutSeconds": 60}}, "timeoutSeconds"),
        ({"trustDomain": "Not A Domain"}, "trustDomain"),
    ],
)
def test_values_that_the_chart_does_not_know_are_refused(
    rendered: Render, values: Object, said: str
) -> None:
    with pytest.raises(HelmRefused) as caught:
        rendered(values)
    assert said in str(caught.value)


def test_every_value_has_a_place_in_the_schema_and_the_schema_none_beside() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(value: Any, part: Object, path: str) -> None:
        if isinstance(value, dict) and "properties" in part:
            extra = {"global"} if not path else set()
            if path == ".proxyDefaults":
                return
            assert set(value) | extra == set(part["properties"]), path
            for key, one in value.items():
                compare(one, part["properties"][key], f"{path}.{key}")

    compare(values, schema, "")
    defaults = schema["properties"]["proxyDefaults"]["properties"]
    assert set(defaults) == set(KINDS) - _NO_DEFAULTS


def test_the_crd_is_kept_upgraded_and_refuses_what_the_reader_refuses(rendered: Render) -> None:
    crd = find(rendered().objects, "CustomResourceDefinition", "linkpolicies.podlink.dev")
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    plain = find(
        rendered({"crds": {"keep": False}}).objects,
        "CustomResourceDefinition", "linkpolicies.podlink.dev",
    )  # fmt: skip
    assert "annotations" not in plain["metadata"]
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    good = {
        "apiVersion": "podlink.dev/v1alpha1",
        "kind": "LinkPolicy",
        "metadata": {"name": "db", "namespace": "prod"},
        "spec": {"allow": [{"from": [{"namespace": "shop", "serviceAccount": "api"}]}]},
    }
    jsonschema.validate(good, schema)
    bad = json.loads(json.dumps(good))
    bad["spec"]["mode"] = "Perhaps"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, schema)


def test_the_cas_metrics_can_be_read_where_a_monitor_is_wanted_and_nowhere_else(
    rendered: Render,
) -> None:
    def opened(values: Object) -> list[Object]:
        rules = find(rendered(values).objects, "NetworkPolicy", "podlink-ca")["spec"]["ingress"]
        return [rule for rule in rules if {"protocol": "TCP", "port": 8080} in rule["ports"]]

    monitored: Object = {"monitoring": {"serviceMonitor": {"enabled": True}}}
    made = rendered(monitored).objects
    monitor, service = (
        find(made, "ServiceMonitor", "podlink-ca"),
        find(made, "Service", "podlink-ca"),
    )
    assert (
        monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    )
    (endpoint,) = monitor["spec"]["endpoints"]
    (port,) = (p for p in service["spec"]["ports"] if p["name"] == endpoint["port"])
    pod = find(made, "Deployment", "podlink-ca")["spec"]["template"]["spec"]["containers"][0]
    assert {"name": port["targetPort"], "containerPort": 8080} in pod["ports"]
    assert opened({}) == []
    assert opened(monitored) == [{"ports": [{"protocol": "TCP", "port": 8080}]}]
    peers = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    (rule,) = opened({**monitored, "networkPolicy": {"metricsFrom": peers}})
    assert rule["from"] == peers


def test_the_dashboard_and_the_alerts_use_metrics_that_exist(rendered: Render) -> None:
    import re

    page = Path("docs/metrics.md").read_text()
    known = set(re.findall(r"^\| `(\w+)`", page, re.M))
    made = rendered(EVERYTHING).objects
    texts = [
        find(made, "ConfigMap", "podlink-dashboard")["data"]["podlink.json"],
        json.dumps(find(made, "PrometheusRule", "podlink")),
    ]
    used = {
        name.removesuffix("_bucket")
        for text in texts
        for name in re.findall(r"\b(?:podlink|process)_[a-z_]+", text)
    } - {"podlink_dev_inject"}
    assert used - known - {n for n in used if n.startswith("podlink_dev")} == set()
    json.loads(texts[0])


def test_the_notes_say_what_is_not_protected(rendered: Render) -> None:
    assert "refused by the policy podlink-guard" in rendered().notes
    assert (
        "created WITHOUT a sidecar"
        in rendered({"guard": {"enabled": False}, "injector": {"failurePolicy": "Ignore"}}).notes
    )
    assert "kubectl label namespace shop" in rendered(MATRIX["one_namespace"]).notes


def test_the_sidecar_image_is_the_one_that_the_guard_knows(rendered: Render) -> None:
    made = rendered(MATRIX["private_registry"]).objects
    image = f"r.example:5000/podlink/podlink@sha256:{'a' * 64}"
    container = find(made, "Deployment", "podlink-injector")["spec"]["template"]["spec"]
    env = {e["name"]: e.get("value") for e in container["containers"][0]["env"]}
    assert env["PODLINK_IMAGE"] == image
    guard = find(made, "ValidatingAdmissionPolicy", "podlink-guard")["spec"]["variables"]
    assert json.loads(next(v for v in guard if v["name"] == "images")["expression"]) == [image]


@pytest.mark.parametrize("name", FILES)
def test_the_plain_manifests_are_what_the_chart_makes(rendered: Render, name: str) -> None:
    """If this fails, the chart has changed: make render."""
    head, values = FILES[name]
    assert (ROOT / name).read_text() == text(plain(rendered(values)), head)
