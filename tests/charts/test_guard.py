"""The guard's CEL, evaluated by Google's CEL, on pods as the injector makes them and as it would not."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from injector.container import MeshSettings
from local.apiserver import policies
from tests.charts.conftest import Render
from tests.charts.test_chart import find
from tests.injector.pods import annotated, container, injected, namespace, pod

pytest.importorskip("cel_expr_python", reason="Google's CEL has wheels for x86-64 Linux only")
Object = dict[str, Any]
MESH = MeshSettings(
    image="podlink/podlink:0.1.0", trust_domain="cluster.local",
    ca_address="podlink-ca.podlink-system.svc:24110",
    registry_address="podlink-registry.podlink-system.svc:24111",
    otlp_endpoint="podlink-traces.podlink-system.svc:4317",
    cluster_cidrs="10.0.0.0/8,100.64.0.0/10,172.16.0.0/12,192.168.0.0/16,fc00::/7", exempt_by="uid",
)  # fmt: skip
APP = {"name": "web", "image": "web:1"}
Judge = Callable[..., str]


@pytest.fixture
def judge(rendered: Render) -> Judge:
    """Why the guard of a chart with these values refuses a pod; "" if it does not."""

    def judged(
        raw: Object, near: Object | None = None, operation: str = "CREATE", **values: Any
    ) -> str:
        made = rendered(values).objects
        facts = {
            "object": raw,
            "request": {"operation": operation},
            "namespaceObject": namespace() if near is None else near,
        }
        return policies.judge(
            find(made, "ValidatingAdmissionPolicy", "podlink-guard"),
            find(made, "ValidatingAdmissionPolicyBinding", "podlink-guard"),
            facts,
        )

    return judged


def meshed(raw: Object | None = None, **settings: Any) -> Object:
    mesh = MeshSettings(**{**{f: getattr(MESH, f) for f in MESH.__dataclass_fields__}, **settings})
    return injected(pod() if raw is None else raw, mesh=mesh)


def labelled(wish: str, **spec: Any) -> Object:
    made = pod(**spec)
    made["metadata"]["labels"]["podlink.dev/inject"] = wish
    return made


@pytest.mark.parametrize(
    "raw",
    [
        meshed(),
        meshed(annotated(mode="localhost", upstreams="5432=db.prod:5432")),
        meshed(pod(initContainers=[{"name": "migrate", "image": "m"}])),
        meshed(pod(containers=[{**APP, "livenessProbe": {"httpGet": {"port": 80}}}])),
        meshed(pod(securityContext={"runAsUser": 1000, "supplementalGroups": [5]})),
        pod(hostNetwork=True),
        pod(nodeSelector={"kubernetes.io/os": "windows"}),
        labelled("disabled"),
    ],
)
def test_what_the_injector_lets_in_the_guard_lets_in(judge: Judge, raw: Object) -> None:
    assert judge(raw) == ""


def test_outside_of_enrolled_namespaces_the_guard_has_no_say(judge: Judge) -> None:
    evil = pod(hostPID=True, securityContext={"runAsUser": 24100})
    assert judge(evil, namespace(None)) == ""
    assert judge(labelled("enabled"), namespace(None)) != ""


@pytest.mark.attack_row(37)
@pytest.mark.fault_row("webhook-down")
def test_a_pod_without_its_sidecar_is_refused(judge: Judge) -> None:
    assert "has no sidecar" in judge(pod())


@pytest.mark.attack_row(37)
def test_the_opt_out_label_is_heard_only_where_the_operator_lets_it(judge: Judge) -> None:
    assert judge(labelled("disabled")) == ""
    assert "has no sidecar" in judge(labelled("disabled"), guard={"optOut": "deny"})
    assert "has no sidecar" in judge(pod(hostNetwork=True), guard={"hostNetwork": "deny"})


@pytest.mark.attack_row(37)
def test_a_pod_that_stays_outside_is_told_to_the_audit_log(rendered: Render) -> None:
    policy = find(rendered().objects, "ValidatingAdmissionPolicy", "podlink-guard")
    for raw, said in (
        (labelled("disabled"), {"outside-the-mesh": "opted out by label"}),
        (pod(hostNetwork=True), {"outside-the-mesh": "no sidecar possible"}),
        (meshed(), {}),
    ):
        facts = {
            "object": raw,
            "request": {"operation": "CREATE"},
            "namespaceObject": namespace(),
        }
        assert policies.audit(policy, facts) == said


def without(raw: Object, name: str) -> Object:
    kept = [one for one in raw["spec"]["initContainers"] if one["name"] != name]
    raw["spec"]["initContainers"] = kept
    return raw


def altered(name: str, **fields: Any) -> Object:
    made = meshed()
    for one in made["spec"]["initContainers"]:
        if one["name"] == name:
            one.update(fields)
    return made


def app(**security: Any) -> Object:
    made = meshed()
    made["spec"]["containers"][0]["securityContext"] = security
    return made


def specced(**spec: Any) -> Object:
    made = meshed()
    made["spec"].update(spec)
    return made


def volume(name: str, **source: Any) -> Object:
    made = meshed()
    kept = [one for one in made["spec"]["volumes"] if one["name"] != name]
    made["spec"]["volumes"] = [*kept, {"name": name, **source}]
    return made


def told(name: str, value: str, where: str = "podlink-proxy") -> Object:
    made = meshed()
    for one in container(made, where)["env"]:
        if one["name"] == name:
            one["value"] = value
    return made


def noted(**annotations: str) -> Object:
    made = meshed()
    named = {f"config.podlink.dev/{k.replace('_', '-')}": v for k, v in annotations.items()}
    made["metadata"]["annotations"] |= named
    return made


def hooked(**fields: Any) -> Object:
    return altered("podlink-proxy", **fields)


def more(field: str, *items: Object, name: str = "podlink-proxy") -> Object:
    made = meshed()
    one = container(made, name)
    one[field] = [*(one.get(field) or ()), *items]
    return made


SHELL = {"exec": {"command": ["sh", "-c", "evil"]}}
CODE = {"name": "code", "mountPath": "/code"}
AS_ROOT = {"runAsUser": 0}
NOT_AS_MADE: list[tuple[str, Object]] = [
    ("not as podlink makes it", told("PODLINK_CA_ADDRESS", "ca.evil.svc:24110")),
    ("not as podlink makes it", told("PODLINK_REGISTRY_ADDRESS", "registry.evil.svc:24111")),
    ("not as podlink makes it", told("PODLINK_TRUST_DOMAIN", "evil.example")),
    ("not as podlink makes it", hooked(env=[])),
    ("not as podlink makes it", more("env", {"name": "PODLINK_CA_ADDRESS", "value": "evil:1"})),
    ("not as podlink makes it", more("env", {"name": "PYTHONPATH", "value": "/code"})),
    ("not as podlink makes it",
     more("env", {"name": "LD_PRELOAD", "value": "/x"}, name="podlink-capture")),
    ("not as podlink makes it", hooked(envFrom=[{"configMapRef": {"name": "evil"}}])),
    ("not as podlink makes it", hooked(workingDir="/run/podlink")),
    ("not as podlink makes it", hooked(lifecycle={"postStart": SHELL})),
    ("not as podlink makes it", hooked(lifecycle={"preStop": SHELL})),
    ("not as podlink makes it", hooked(startupProbe=SHELL)),
    ("not as podlink makes it", hooked(livenessProbe=SHELL)),
    ("not as podlink makes it", hooked(readinessProbe=SHELL)),
    ("not as podlink makes it", hooked(securityContext=AS_ROOT)),
    ("not as podlink makes it", altered("podlink-capture", securityContext={"privileged": True})),
    ("is another", volume("podlink-bundle", configMap={"name": "evil"})),
    ("is another", volume("podlink-bundle", emptyDir={})),
    ("is another", volume("podlink-token", projected={
        "sources": [{"serviceAccountToken": {"audience": "vault", "path": "token"}}]})),
    ("is another", volume("podlink-run", hostPath={"path": "/run"})),
]  # fmt: skip


def mounting(raw: Object, *mounts: Object, where: int = 0) -> Object:
    made = copy.deepcopy(raw)
    made["spec"]["containers"][where]["volumeMounts"] = list(mounts)
    return made


def with_code() -> Object:
    """Code of the pod's own, mounted into the proxy."""
    made = more("volumeMounts", CODE)
    made["spec"]["volumes"].append({"name": "code", "configMap": {"name": "evil"}})
    return made


NOT_AS_MADE += [
    ("not as podlink makes it", with_code()),
    *(
        ("mounts the proxy's", mounting(meshed(), {"name": name, "mountPath": "/x"}))
        for name in ("podlink-token", "podlink-bundle", "podlink-run")
    ),
]
OTHERS = [
    *NOT_AS_MADE,
    ("has no sidecar", without(meshed(), "podlink-proxy")),
    ("has no sidecar", altered("podlink-proxy", restartPolicy=None)),
    ("would not be captured", without(meshed(), "podlink-capture")),
    ("image or command", altered("podlink-proxy", image="evil:1")),
    ("image or command", altered("podlink-capture", image="podlink/podlink:0.1.0@sha256:00")),
    ("image or command", altered("podlink-proxy", command=["sh", "-c", "sleep 1"])),
    ("image or command", altered("podlink-capture", command=["python", "-m", "sidecar"])),
    ("image or command", altered("podlink-proxy", args=["--evil"])),
    ("24100", app(runAsUser=24100)),
    ("24100", app(runAsGroup=24100)),
    ("24100", specced(securityContext={"runAsUser": 24100})),
    ("24100", specced(securityContext={"runAsGroup": 24100})),
    ("24100", specced(securityContext={"fsGroup": 24100})),
    ("24100", specced(securityContext={"supplementalGroups": [1, 24100]})),
    ("NET_ADMIN", app(capabilities={"add": ["NET_ADMIN"]})),
    ("NET_ADMIN", app(capabilities={"add": ["CAP_NET_ADMIN"]})),
    ("NET_ADMIN", app(capabilities={"add": ["SYS_ADMIN"]})),
    ("NET_ADMIN", app(capabilities={"add": ["ALL"]})),
    ("NET_ADMIN", app(privileged=True)),
    ("NET_ADMIN", app(capabilities={"add": ["net_admin"]})),
    ("NET_ADMIN", app(capabilities={"add": ["Cap_Net_Admin"]})),
    ("NET_ADMIN", app(capabilities={"add": ["NET_ADM\u0131N"]})),
    (
        "not as podlink makes it",
        specced(
            initContainers=[
                {
                    "name": "first",
                    "image": "x",
                    "securityContext": {"capabilities": {"add": ["NET_RAW"]}},
                },
                *meshed()["spec"]["initContainers"],
            ]
        ),
    ),
    ("not as podlink makes it", told("PODLINK_OTLP_ENDPOINT", "sink.evil.svc:4317")),
    ("not as podlink makes it", told("PODLINK_CLUSTER_CIDRS", "192.0.2.0/24")),
    ("not as podlink makes it", told("PODLINK_PLAINTEXT", "allow")),
    ("not as podlink makes it", told("PODLINK_SKIP_SUBNETS", "10.0.0.0/8", "podlink-capture")),
    ("not as podlink makes it", told("PODLINK_SKIP_OUTBOUND_PORTS", "80", "podlink-capture")),
    (
        "is another",
        volume(
            "mine",
            projected={
                "sources": [
                    {"configMap": {"name": "x"}},
                    {"serviceAccountToken": {"audience": "podlink-ca", "path": "token"}},
                ]
            },
        ),
    ),
    ("annotation", noted(skip_subnets="0.0.0.0/1")),
    ("annotation", noted(skip_subnets="10.0.0.0/9")),
    ("annotation", noted(skip_subnets="11.0.0.0/8,12.0.0.1")),
    ("annotation", noted(nonsense="1")),
    ("process namespace", specced(hostPID=True)),
    ("process namespace", specced(shareProcessNamespace=True)),
]


@pytest.mark.attack_row(35)
@pytest.mark.attack_row(36)
@pytest.mark.attack_row(53)
@pytest.mark.attack_row(62)
@pytest.mark.parametrize(("said", "raw"), OTHERS)
def test_what_would_get_round_the_mesh_is_refused(judge: Judge, said: str, raw: Object) -> None:
    assert said in judge(copy.deepcopy(raw))


@pytest.mark.attack_row(36)
def test_a_debug_container_may_not_pass_for_the_proxy(judge: Judge) -> None:
    made = meshed()
    made["spec"]["ephemeralContainers"] = [{"name": "d", "image": "busybox"}]
    assert judge(made, operation="UPDATE") == ""
    made["spec"]["ephemeralContainers"][0]["securityContext"] = {"runAsUser": 24100}
    assert "24100" in judge(made, operation="UPDATE")
    made["spec"]["ephemeralContainers"][0]["securityContext"] = {
        "capabilities": {"add": ["NET_ADMIN"]}
    }
    assert "NET_ADMIN" in judge(made, operation="UPDATE")


@pytest.mark.attack_row(36)
@pytest.mark.attack_row(41)
@pytest.mark.parametrize("name", ["podlink-proxy", "podlink-capture", "podlink-validate"])
def test_a_debug_container_may_not_share_the_proxys_processes(judge: Judge, name: str) -> None:
    made = meshed()
    debug = {"name": "d", "image": "busybox", "targetContainerName": "web"}
    made["spec"]["ephemeralContainers"] = [debug]
    assert judge(made, operation="UPDATE") == ""
    debug["targetContainerName"] = name
    assert "process namespace" in judge(made, operation="UPDATE")


def test_an_old_pod_of_a_namespace_enrolled_later_may_still_be_debugged(judge: Judge) -> None:
    old = pod(ephemeralContainers=[{"name": "d", "image": "busybox"}])
    assert judge(old, operation="UPDATE") == ""


def test_with_the_cni_plugin_the_proof_is_what_must_be_there(judge: Judge) -> None:
    cni = {"enabled": True}
    assert judge(meshed(capture_by="cni"), cni=cni) == ""
    assert "would not be captured" in judge(meshed(), cni=cni)
    missing = without(meshed(capture_by="cni"), "podlink-validate")
    assert "would not be captured" in judge(missing, cni=cni)


def test_a_plain_container_counts_only_where_native_sidecars_may_not_exist(judge: Judge) -> None:
    assert judge(meshed(native_sidecars=False)) == ""
    assert "has no sidecar" in judge(meshed(native_sidecars=False), nativeSidecars="true")


def test_the_last_versions_image_may_be_let_in_during_an_upgrade(judge: Judge) -> None:
    old = meshed(image="podlink/podlink:0.0.9")
    assert "image or command" in judge(old)
    assert judge(old, guard={"alsoAllowImages": ["podlink/podlink:0.0.9"]}) == ""


def test_a_collectors_secret_is_let_in_where_the_operator_named_it(judge: Judge) -> None:
    made = meshed(otlp_secret="collector", otlp_secret_keys=("ca.crt", "headers"))
    assert any(v["name"] == "podlink-otlp" for v in made["spec"]["volumes"])
    named = {"otlp": {"secret": {"name": "collector", "keys": ["ca.crt", "headers"]}}}
    assert judge(made, **named) == ""
    assert "not as podlink makes it" in judge(made), "no operator named one"
    evil = meshed(otlp_secret="evil", otlp_secret_keys=("ca.crt",))
    assert "not as podlink makes it" in judge(evil, **named)
    for one in made["spec"]["volumes"]:
        if one["name"] == "podlink-otlp":
            one["secret"]["secretName"] = "evil"
    assert "is another" in judge(made, **named)


def test_an_expression_that_fails_refuses(judge: Judge) -> None:
    broken = meshed()
    del broken["spec"]["containers"]
    with pytest.raises(policies.PolicyBroken):
        judge(broken)


@pytest.mark.attack_row(35)
def test_the_image_of_podlinks_own_containers_cannot_be_changed_later(rendered: Render) -> None:
    made = rendered().objects
    name = "podlink-guard-images"

    def judged(old: Object, new: Object) -> str:
        facts = {"object": new, "oldObject": old, "request": {"operation": "UPDATE"}}
        return policies.judge(
            find(made, "ValidatingAdmissionPolicy", name),
            find(made, "ValidatingAdmissionPolicyBinding", name),
            facts,
        )

    earlier = altered("podlink-proxy", image="podlink/podlink:0.0.9")
    for own in ("podlink-capture", "podlink-proxy"):
        assert "not to be changed" in judged(meshed(), altered(own, image="evil:1"))
        assert "not to be changed" in judged(earlier, altered(own, image="evil:1"))
    app = meshed()
    app["spec"]["containers"][0]["image"] = "web:2"
    renamed = pod(containers=[{**APP, "name": "podlink-proxy"}])
    assert judged(meshed(), app) == "", "an app's own image is not podlink's business"
    assert judged(earlier, copy.deepcopy(earlier)) == "", (
        "a pod of an earlier version can be updated"
    )
    assert judged(earlier, meshed()) == "", "and take the mesh's image"
    assert judged(pod(), pod()) == ""
    assert "not to be changed" in judged(pod(), renamed)


@pytest.mark.attack_row(34)
def test_what_the_cni_plugin_leaves_alone_cannot_be_changed_after_admission(
    rendered: Render,
) -> None:
    made = rendered().objects

    def judged(before: dict[str, str], after: dict[str, str]) -> str:
        old, new = meshed(), meshed()
        old["metadata"]["annotations"], new["metadata"]["annotations"] = before, after
        facts = {"object": new, "oldObject": old, "request": {"operation": "UPDATE"}}
        return policies.judge(
            find(made, "ValidatingAdmissionPolicy", "podlink-guard-images"),
            find(made, "ValidatingAdmissionPolicyBinding", "podlink-guard-images"),
            facts,
        )

    name, all_ports = "podlink.dev/capture", '{"skip-outbound-ports": "1-8,10-65535"}'
    assert "podlink's own" in judged({name: "{}"}, {name: all_ports})
    assert "podlink's own" in judged({}, {name: all_ports})
    assert "podlink's own" in judged({name: "{}"}, {})
    assert judged({name: "{}", "team": "a"}, {name: "{}", "team": "b"}) == ""
    assert judged({}, {}) == ""
