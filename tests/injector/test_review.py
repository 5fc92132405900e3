"""AdmissionReview in and out, by well-formed and hostile requests."""

import base64
import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from injector.review import ReviewMalformed, answer, read_review
from tests.hostile import nested, spoilt
from tests.injector.pods import MESH, Raw, annotated, changed, injected, namespace, pod


def review(raw: Raw, **request: Any) -> bytes:
    asked = {
        "uid": "u-1",
        "namespace": "shop",
        "operation": "CREATE",
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "object": raw,
        **request,
    }
    whole = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": asked}
    return json.dumps(whole).encode()


def answered(body: bytes, near: Raw | None = None) -> dict[str, Any]:
    response = answer(read_review(body), near or namespace(), MESH).response
    assert response["kind"] == "AdmissionReview"
    assert response["response"]["uid"] == "u-1"
    inner = response["response"]
    assert isinstance(inner, dict)
    return inner


def test_a_pod_is_allowed_with_its_patch() -> None:
    response = answered(review(pod()))
    assert response["allowed"] is True
    assert response["patchType"] == "JSONPatch"
    assert json.loads(base64.b64decode(response["patch"])) == changed(pod()).patch


def test_a_pod_that_needs_no_change_is_allowed_without_a_patch() -> None:
    response = answered(review(injected(pod())))
    assert response == {"uid": "u-1", "allowed": True}


def test_a_warning_reaches_whoever_applied_the_pod() -> None:
    response = answered(review(pod(hostNetwork=True)))
    assert response["allowed"] is True
    assert response["warnings"][0].startswith("podlink: no sidecar")


@pytest.mark.attack_row(34)
def test_a_refused_pod_gets_one_line_that_names_the_annotation() -> None:
    response = answered(review(annotated(proxy_image="evil:1")))
    assert response["allowed"] is False
    assert response["status"]["code"] == 403
    assert "config.podlink.dev/proxy-image: unknown" in response["status"]["message"]


@pytest.mark.parametrize("operation", ["UPDATE", "DELETE", "CONNECT"])
def test_only_the_creation_of_pods_is_patched(operation: str) -> None:
    assert "patch" not in answered(review(pod(), operation=operation))


@pytest.mark.attack_row(36)
def test_a_debug_container_as_the_proxy_is_refused_in_a_meshed_pod_only() -> None:
    debug = [{"name": "d", "securityContext": {"runAsUser": 24100}}]
    for raw, allowed in ((injected(pod()), False), (pod(), True)):
        raw["spec"]["ephemeralContainers"] = debug
        body = review(raw, operation="UPDATE", subResource="ephemeralcontainers")
        assert answered(body)["allowed"] is allowed


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"containers": "x"},
        {"containers": [7]},
        {"containers": [{"image": "nameless"}], "initContainers": [{"image": "x"}]},
        {"containers": [], "volumes": [7]},
        {"containers": [{"name": "a", "securityContext": "x"}]},
        {"containers": [{"name": "a", "securityContext": {"runAsUser": [1]}}]},
    ],
)
def test_a_pod_that_cannot_be_read_is_never_let_in_by_an_exception(spec: Any) -> None:
    raw = pod()
    raw["spec"] = spec
    response = answered(review(raw))
    assert isinstance(response["allowed"], bool)


@pytest.mark.parametrize("raw", [{}, {"spec": None}, {"spec": []}, {"metadata": 1, "spec": {}}])
def test_a_pod_without_a_spec_is_refused(raw: Raw) -> None:
    assert answered(review(raw))["allowed"] is False


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview"}',
        b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}',
        b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":7}',
        review(pod(), resource={"group": "apps", "resource": "deployments"}),
        review(pod(), object=None),
        review(pod(), object=[]),
        review(pod(), uid=7),
        review(pod(), namespace=["shop"]),
    ],
)
def test_what_is_no_review_of_a_pod_is_malformed(body: bytes) -> None:
    with pytest.raises(ReviewMalformed):
        read_review(body)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["name", "containers", "initContainers", "volumes", "securityContext",
                         "metadata", "labels", "annotations", "hostNetwork", "os", "image",
                         "capabilities", "add", "volumeMounts"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(junk, junk)
def test_no_pod_whatever_makes_the_injector_fail(metadata: Any, spec: Any) -> None:
    response = answered(review({"metadata": metadata, "spec": spec}))
    assert isinstance(response["allowed"], bool)


FULL = pod(
    initContainers=[{"name": "init", "image": "i", "command": ["x"], "restartPolicy": "Always"}],
    containers=[
        {
            "name": "web",
            "image": "web:1",
            "env": [{"name": "A", "value": "b"}],
            "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
            "securityContext": {"runAsUser": 1000, "capabilities": {"add": ["CHOWN"]}},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            "livenessProbe": {
                "httpGet": {
                    "path": "/",
                    "port": "http",
                    "httpHeaders": [{"name": "a", "value": "b"}],
                }
            },
            "readinessProbe": {"tcpSocket": {"port": 8080}, "timeoutSeconds": 1},
            "startupProbe": {"grpc": {"port": 8080, "service": "s"}},
            "lifecycle": {"preStop": {"httpGet": {"path": "/bye", "port": 8080}}},
        }
    ],
    ephemeralContainers=[{"name": "debug", "targetContainerName": "web"}],
    volumes=[{"name": "data", "emptyDir": {}}],
    securityContext={"fsGroup": 1000, "supplementalGroups": [7]},
    os={"name": "linux"},
    nodeSelector={"kubernetes.io/os": "linux"},
    restartPolicy="Always",
)
FULL["metadata"] |= {
    "annotations": {"config.podlink.dev/skip-inbound-ports": "9100"},
    "ownerReferences": [{"kind": "ReplicaSet", "name": "web"}],
}
WHOLE = json.loads(review(FULL))


@pytest.mark.attack_row(50)
@pytest.mark.parametrize("uid", ["0", "u-1"])
def test_the_pod_that_is_spoilt_below_is_injected_as_it_is(uid: str) -> None:
    assert answered(review(FULL))["patch"]


@pytest.mark.attack_row(50)
@settings(max_examples=200, deadline=None)
@given(spoilt(WHOLE), st.sampled_from([namespace(), namespace(None)]))
def test_a_review_with_anything_in_it_is_answered_or_refused_in_one_line(
    raw: Any, near: Raw
) -> None:
    try:
        question = read_review(json.dumps(raw).encode())
    except ReviewMalformed as malformed:
        assert len(str(malformed)) < 200
        return
    inner = answer(question, near, MESH).response["response"]
    assert isinstance(inner["allowed"], bool)
    assert len(question.pod_name) <= 253
    if not inner["allowed"]:
        message = inner["status"]["message"]
        assert "\n" not in message
        assert "unreadable" not in message, "a field is named, and not an exception"


@pytest.mark.attack_row(50)
@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"containers": 5}, "spec.containers: 5 is no list"),
        ({"containers": [5]}, "spec.containers[0]: 5 is no map"),
        ({"containers": [{}]}, "spec.containers[0]: has no name"),
        ({"containers": [{"name": 7}]}, "spec.containers[0].name: 7 is not a text"),
        ({"hostNetwork": "false"}, "spec.hostNetwork: 'false' is not true or false"),
        ({"containers": [{"name": "a", "ports": [{"containerPort": "x"}]}]}, "containerPort: 'x'"),
        ({"a": nested(100)}, "nested deeper than 64"),
    ],
)
def test_a_field_of_another_type_is_named(spec: Any, said: str) -> None:
    raw = {"metadata": {"name": "web"}, "spec": spec}
    response = answered(review(raw))
    assert response["allowed"] is False
    assert said in response["status"]["message"]
    assert response["status"]["message"].endswith("(pod_malformed)")


@pytest.mark.attack_row(50)
def test_a_port_without_a_number_is_no_port_that_a_probe_can_name() -> None:
    spoilt_one = copy.deepcopy(FULL)
    [container] = spoilt_one["spec"]["containers"]
    del container["ports"][0]["containerPort"]
    response = answered(review(spoilt_one))
    assert response["allowed"] is False
    assert "unreadable" not in response["status"]["message"]


@pytest.mark.parametrize("name", ["../secrets", "a/b", "A", "", "x" * 64, "a?b=c", "%2e%2e"])
def test_a_namespace_that_is_no_name_is_never_asked_for(name: str) -> None:
    with pytest.raises(ReviewMalformed):
        read_review(review(pod(), namespace=name))
