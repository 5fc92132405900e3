"""The injector as a real API server calls it: over HTTPS, by its Service, by the caBundle it wrote."""

import base64
import contextlib
import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from cli.__main__ import podlink
from injector.container import API_TOKEN_PATH
from tests.certs.forge import Forge
from tests.injector.pods import annotated, container, env, pod
from tests.kubernetes.objects import until
from tests.kubernetes.programs import SYSTEM, ControlPlane
from tests.kubernetes.real_api import Answer, Object

WEBHOOK = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/podlink-injector"
SLICES = f"/apis/discovery.k8s.io/v1/namespaces/{SYSTEM}/endpointslices"
STRATEGIC, JSON_PATCH = "application/strategic-merge-patch+json", "application/json-patch+json"
OURS = ["podlink-capture", "podlink-proxy"]
APP = {"name": "web", "image": "web:1"}


@pytest.fixture(scope="module")
def served(plane: ControlPlane) -> ControlPlane:
    """The injector's Service leads to the injector, as it does once a kubelet calls its pod ready."""
    if plane.address.startswith("127."):
        pytest.skip("no address but loopback's here: no EndpointSlice may hold one")
    point_service(plane)
    until(lambda: proxy(put(plane, pod())), "the webhook is asked")
    return plane


def point_service(plane: ControlPlane) -> None:
    body = {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": "podlink-injector-here", "namespace": SYSTEM,
            "labels": {"kubernetes.io/service-name": "podlink-injector"},
        },
        "ports": [{"name": "https", "port": plane.ports["injector"], "protocol": "TCP"}],
        "endpoints": [{"addresses": [plane.address], "conditions": {"ready": True}}],
    }  # fmt: skip
    plane.objects.api.need("POST", SLICES, body)


def put(plane: ControlPlane, raw: Object, where: str = "shop", **query: str) -> Answer:
    made = {**raw, "metadata": {**raw["metadata"], "namespace": where}}
    asked = {"dryRun": "All"} | query
    return plane.objects.create(made, **{k: v for k, v in asked.items() if v})


def proxy(answer: Answer) -> list[str]:
    """The containers of ours, as the API server keeps them."""
    spec = answer.body.get("spec") or {}
    both = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    return [one["name"] for one in both if one["name"].startswith("podlink-")]


def test_a_pod_gets_its_sidecar_and_a_dry_run_gets_it_too(served: ControlPlane) -> None:
    dry = put(served, pod())
    assert (dry.status, proxy(dry), dry.warnings) == (201, OURS, ())
    assert served.objects.api.call("GET", "/api/v1/namespaces/shop/pods/web").status == 404
    made = put(served, pod(), dryRun="")
    try:
        assert (made.status, proxy(made)) == (201, OURS)
        kept = served.objects.api.need("GET", "/api/v1/namespaces/shop/pods/web")
        assert container(kept, "podlink-proxy")["restartPolicy"] == "Always"
        assert kept["metadata"]["labels"]["podlink.dev/injected"] == "true"
        assert [v["name"] for v in kept["spec"]["volumes"]][-3:] == [
            "podlink-token", "podlink-bundle", "podlink-run",
        ]  # fmt: skip
    finally:
        served.objects.delete(made.body)


def test_what_was_injected_by_hand_or_comes_again_is_left_as_it_is(served: ControlPlane) -> None:
    """As with a second webhook behind ours, which has the API server ask again: then our containers
    come back with all that the API server filled in."""
    once = put(served, pod())
    again = {key: once.body[key] for key in ("apiVersion", "kind", "spec")}
    again["metadata"] = {
        key: once.body["metadata"][key] for key in ("name", "labels", "annotations")
    }
    twice = put(served, again)
    assert twice.status == 201, twice.said
    assert proxy(twice) == OURS
    for name in OURS:
        assert container(twice.body, name) == container(once.body, name)


def test_podlink_inject_and_the_webhook_agree(served: ControlPlane) -> None:
    printed = CliRunner().invoke(
        podlink, ["inject", "--offline", "-f", "-"], input=yaml.safe_dump(annotated(workers="2"))
    )
    assert printed.exit_code == 0, printed.output
    by_hand = yaml.safe_load(printed.stdout)
    assert env(by_hand, "podlink-proxy")["PODLINK_WORKERS"] == "2"
    answer = put(served, by_hand)
    assert (answer.status, proxy(answer)) == (201, OURS), answer.said
    webhooks = put(served, annotated(workers="2"))
    for name in OURS:
        assert container(answer.body, name) == container(webhooks.body, name)
    container(by_hand, "podlink-proxy")["image"] = "evil:1"
    assert "container_foreign" in put(served, by_hand).said


@pytest.mark.attack_row(41)
def test_the_apps_token_for_the_api_server_is_not_given_to_the_sidecar(
    served: ControlPlane,
) -> None:
    """The API server mounts it into every container that has nothing in its place, ours among them."""
    found = put(served, pod()).body
    for one in (*found["spec"]["initContainers"], *found["spec"]["containers"]):
        (there,) = (m["name"] for m in one["volumeMounts"] if m["mountPath"] == API_TOKEN_PATH)
        assert there.startswith("kube-api-access-") == (one["name"] == "web")
        if one["name"] != "web":
            assert not any(m["name"].startswith("kube-api-access") for m in one["volumeMounts"])


def test_labels_of_pod_and_namespace_decide_as_they_say(served: ControlPlane) -> None:
    def wish(said: str) -> Object:
        made = pod()
        return {**made, "metadata": {**made["metadata"], "labels": {"podlink.dev/inject": said}}}

    assert proxy(put(served, wish("disabled"))) == []
    assert proxy(put(served, pod(), "elsewhere")) == []
    assert proxy(put(served, wish("enabled"), "elsewhere")) == OURS
    assert "label_malformed" in put(served, wish("maybe")).said
    host = put(served, pod(hostNetwork=True))
    assert proxy(host) == [] and "host's network" in " ".join(host.warnings)


PODS: dict[str, Object] = {
    "probes": pod(containers=[{
        **APP, "ports": [{"name": "http", "containerPort": 80}],
        "livenessProbe": {"httpGet": {"port": "http", "path": "/a"}},
        "readinessProbe": {"tcpSocket": {"port": 80}},
        "startupProbe": {"grpc": {"port": 80, "service": "x"}},
    }]),
    "init containers": pod(initContainers=[{"name": "migrate", "image": "m:1"}]),
    "another sidecar": pod(initContainers=[
        {"name": "logs", "image": "l:1", "restartPolicy": "Always"}
    ]),
    "a Job's": pod(restartPolicy="Never"),
    "settings": annotated(proxy_cpu_limit="500m", workers="2", skip_inbound_ports="9000-9010"),
    "localhost": annotated(mode="localhost", upstreams="5432=db.shop:5432"),
    "no token": pod(automountServiceAccountToken=False),
}  # fmt: skip


@pytest.mark.parametrize("name", PODS)
def test_pods_of_every_kind_pass_validation_and_guard_and_stay_as_they_are(
    served: ControlPlane, name: str
) -> None:
    first = put(served, PODS[name])
    assert first.status == 201, first.said
    assert "podlink-proxy" in proxy(first)
    metadata = {key: first.body["metadata"][key] for key in ("name", "labels", "annotations")}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": first.body["spec"]}
    second = put(served, body)
    assert second.status == 201, second.said
    assert second.body["spec"]["containers"] == first.body["spec"]["containers"]
    assert second.body["spec"]["initContainers"] == first.body["spec"]["initContainers"]


@pytest.mark.attack_row(35)
@pytest.mark.attack_row(36)
@pytest.mark.parametrize(
    ("said", "raw"),
    [
        ("proxy_id", pod(securityContext={"runAsUser": 24100})),
        ("shared_processes", pod(shareProcessNamespace=True)),
        ("capability", pod(containers=[{
            **APP, "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}}])),
        ("container_foreign", pod(initContainers=[{
            "name": "podlink-proxy", "image": "evil:1", "restartPolicy": "Always"}])),
        ("volume_shared", pod(containers=[{**APP, "volumeMounts": [
            {"name": "podlink-token", "mountPath": "/t"}]}],
            volumes=[{"name": "podlink-token", "emptyDir": {}}])),
    ],
)  # fmt: skip
def test_what_would_get_round_the_mesh_is_refused_in_its_own_words(
    served: ControlPlane, said: str, raw: Object
) -> None:
    answer = put(served, raw)
    assert answer.status == 403 and "injector.podlink.dev" in answer.said
    assert said in answer.said


@pytest.mark.attack_row(41)
def test_a_debug_container_that_shares_the_proxys_processes_is_refused(
    served: ControlPlane,
) -> None:
    made = put(served, pod(), dryRun="")
    path = "/api/v1/namespaces/shop/pods/web/ephemeralcontainers"

    def debug(target: str) -> Answer:
        one = {"name": "d", "image": "busybox", "targetContainerName": target}
        body = {"spec": {"ephemeralContainers": [one]}}
        return served.objects.api.call("PATCH", path, body, kind=STRATEGIC, dryRun="All")

    try:
        assert debug("web").status == 200
        refused = debug("podlink-proxy")
        assert refused.status == 403 and "shared_processes" in refused.said
    finally:
        served.objects.delete(made.body)


def workload(kind: str) -> Object:
    template: Object = {"metadata": {"labels": {"app": "made"}}, "spec": {"containers": [APP]}}
    spec: Object = {"template": template}
    metadata = {"name": f"made-{kind.lower()}", "namespace": "shop"}
    if kind == "Job":
        template["spec"]["restartPolicy"] = "Never"
        return {"apiVersion": "batch/v1", "kind": kind, "metadata": metadata, "spec": spec}
    spec["selector"] = {"matchLabels": {"app": "made"}}
    if kind == "StatefulSet":
        spec["serviceName"] = "made"
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": metadata, "spec": spec}


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "ReplicaSet", "Job"])
def test_the_pods_that_controllers_make_get_their_sidecars(served: ControlPlane, kind: str) -> None:
    """By the cluster's own controllers, which name the pods only as they are made."""
    api = served.objects.api
    if not api.has_controllers:
        pytest.skip("the controllers that make pods are not here")
    made = workload(kind)
    answer = served.objects.create(made)
    assert (answer.status, answer.warnings) == (201, ())
    path = "/api/v1/namespaces/shop/pods"
    try:
        (found,) = until(
            lambda: api.need("GET", path, labelSelector="app=made")["items"], f"a pod of the {kind}"
        )
        assert found["metadata"]["ownerReferences"][0]["controller"] is True
        assert container(found, "podlink-proxy")["restartPolicy"] == "Always"
        status = json.loads(found["metadata"]["annotations"]["podlink.dev/status"])
        assert status["mode"] == "redirect"
    finally:
        served.objects.delete(made)
        api.call("DELETE", path, labelSelector="app=made", gracePeriodSeconds="0")
        until(lambda: not api.need("GET", path, labelSelector="app=made")["items"], "they are gone")


@contextlib.contextmanager
def bundle(plane: ControlPlane, pem: bytes) -> Iterator[None]:
    """The webhook's caBundle, written over; the injector puts its own back within ten seconds."""
    encoded = base64.b64encode(pem).decode()
    patch = [
        {"op": "add", "path": f"/webhooks/{n}/clientConfig/caBundle", "value": encoded}
        for n in (0, 1)
    ]
    plane.objects.api.need("PATCH", WEBHOOK, patch, kind=JSON_PATCH)
    yield


@pytest.mark.fault_row("webhook-down")
def test_a_webhook_that_is_not_believed_lets_nobody_in_without_a_sidecar(
    served: ControlPlane,
) -> None:
    """A caBundle of somebody else's: every call fails, the guard refuses, and the injector mends it."""
    with bundle(served, Forge().root_pem):
        until(lambda: "podlink-guard" in put(served, pod()).said, "the API server believes another")
        until(lambda: proxy(put(served, pod())) == OURS, "the injector wrote its own again")


def hooks(plane: ControlPlane) -> set[str]:
    found = plane.objects.api.need("GET", WEBHOOK)["webhooks"]
    return {base64.b64decode(w["clientConfig"]["caBundle"]).decode() for w in found}


def test_roots_are_replaced_and_no_pod_is_refused_meanwhile(
    served: ControlPlane, tmp_path: Any
) -> None:
    """Old and new root stand in the caBundle together; the API server believes the injector at every
    step, its certificate from the old root or from the new."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(served.objects.api.kubeconfig())

    def rotate(*words: str) -> Object:
        argv = ["rotate", "root", *words, "--kubeconfig", str(kubeconfig), "-o", "json"]
        done = CliRunner().invoke(podlink, argv)
        found: Object = json.loads(done.stdout)
        return found

    (before,) = hooks(served)
    rotate("--start")
    (both,) = until(
        lambda: [h for h in hooks(served) if h.count("BEGIN") == 2 and before.strip() in h],
        "old and new root are in the caBundle",
    )
    refused = []
    for _ in range(20):
        answer = put(served, pod())
        if proxy(answer) != OURS:
            refused.append(answer)
    assert refused == []
    assert both != before
    rotate("--abort")
    until(lambda: hooks(served) == {before}, "the old root alone again")
    assert proxy(put(served, pod())) == OURS


@pytest.mark.attack_row(37)
@pytest.mark.fault_row("webhook-down")
def test_while_the_injector_is_stopped_the_guard_refuses_and_others_live_on(
    served: ControlPlane,
) -> None:
    """A program that hangs is worse than one that is gone: each call lasts until its time-out."""
    process = served.programs["injector"].process
    process.send_signal(signal.SIGSTOP)
    try:
        refused = put(served, pod())
        assert refused.status == 403 and "podlink-guard" in refused.said, refused
        assert put(served, pod(), "elsewhere").status == 201
        assert "podlink-guard" not in put(served, pod(), SYSTEM).said, "podlink itself can start"
    finally:
        process.send_signal(signal.SIGCONT)
    until(lambda: proxy(put(served, pod())) == OURS, "pods are injected again")
