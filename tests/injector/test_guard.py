"""Pods that would undermine their sidecar, and pods that only look injected."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from injector.guard import PodRefused, check_ephemeral, check_pod
from kit.contract import INJECTED_LABEL, PROXY_UID, STATUS_ANNOTATION
from tests.injector.pods import Raw, annotated, changed, container, injected, pod

OWN = {"name": "web", "image": "web:1"}


def secured(**security: Any) -> Raw:
    return pod(containers=[{**OWN, "securityContext": security}])


@pytest.mark.attack_row(36)
@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (secured(runAsUser=PROXY_UID), "proxy_id"),
        (secured(runAsGroup=PROXY_UID), "proxy_id"),
        (pod(securityContext={"runAsUser": PROXY_UID}), "proxy_id"),
        (pod(securityContext={"runAsGroup": PROXY_UID}), "proxy_id"),
        (pod(securityContext={"fsGroup": PROXY_UID}), "proxy_id"),
        (pod(securityContext={"supplementalGroups": [1, PROXY_UID]}), "proxy_id"),
        (pod(initContainers=[{**OWN, "securityContext": {"runAsUser": PROXY_UID}}]), "proxy_id"),
        (pod(shareProcessNamespace=True), "shared_processes"),
        (pod(hostPID=True), "host_pid"),
        (secured(privileged=True), "privileged"),
        (secured(capabilities={"add": ["NET_ADMIN"]}), "capability"),
        (secured(capabilities={"add": ["CAP_NET_ADMIN"]}), "capability"),
        (secured(capabilities={"add": ["net_admin"]}), "capability"),
        (secured(capabilities={"add": ["SYS_ADMIN"]}), "capability"),
        (secured(capabilities={"add": ["ALL"]}), "capability"),
        (pod(containers=[{**OWN, "volumeMounts": [{"name": "podlink-token"}]}]), "volume_shared"),
        (pod(containers=[{**OWN, "volumeMounts": [{"name": "podlink-otlp"}]}]), "volume_shared"),
    ],
)
def test_a_pod_that_undermines_its_sidecar_is_refused(raw: Raw, reason: str) -> None:
    with pytest.raises(PodRefused) as caught:
        changed(raw)
    assert caught.value.reason == reason
    assert "spec." in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        secured(runAsUser=0, capabilities={"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]}),
        pod(securityContext={"runAsUser": 1000, "fsGroup": 1000, "supplementalGroups": [7]}),
        pod(shareProcessNamespace=False, hostPID=False),
    ],
)
def test_an_ordinary_pod_is_not_refused(raw: Raw) -> None:
    assert changed(raw).patch


def test_without_redirection_an_app_may_keep_its_network_capabilities() -> None:
    check_pod(secured(capabilities={"add": ["NET_ADMIN"]})["spec"], "localhost")


@pytest.mark.attack_row(36)
def test_a_debug_container_with_the_proxys_uid_is_refused() -> None:
    debug = {"name": "debug", "securityContext": {"runAsUser": PROXY_UID}}
    with pytest.raises(PodRefused, match=r"spec.ephemeralContainers\[0\]"):
        check_ephemeral({"ephemeralContainers": [debug]})


@pytest.mark.attack_row(35)
@pytest.mark.parametrize("kind", ["containers", "initContainers"])
@pytest.mark.parametrize("name", ["podlink-proxy", "podlink-capture"])
def test_a_container_that_is_merely_named_like_ours_is_refused(kind: str, name: str) -> None:
    evil = pod()
    evil["spec"][kind] = [*evil["spec"].get(kind, []), {"name": name, "image": "evil:1"}]
    with pytest.raises(PodRefused) as caught:
        changed(evil)
    assert caught.value.reason == "container_foreign"


@pytest.mark.attack_row(35)
def test_the_marks_of_injection_are_not_believed() -> None:
    marked = pod()
    marked["metadata"]["labels"][INJECTED_LABEL] = "true"
    marked["metadata"]["annotations"] = {STATUS_ANNOTATION: '{"version":"0.1.0"}'}
    assert container(injected(marked), "podlink-proxy")


def _image(raw: Raw) -> None:
    container(raw, "podlink-proxy")["image"] = "evil:1"


def _args(raw: Raw) -> None:
    container(raw, "podlink-proxy")["args"] = ["-c", "evil"]


def _more_env(raw: Raw) -> None:
    container(raw, "podlink-proxy")["env"].append({"name": "LD_PRELOAD", "value": "/x.so"})


def _other_env(raw: Raw) -> None:
    container(raw, "podlink-proxy")["env"][1]["value"] = "evil:24110"


def _env_from(raw: Raw) -> None:
    container(raw, "podlink-proxy")["envFrom"] = [{"configMapRef": {"name": "evil"}}]


def _mount(raw: Raw) -> None:
    container(raw, "podlink-proxy")["volumeMounts"].append({"name": "x", "mountPath": "/usr/lib"})


def _mount_over_api_token(raw: Raw) -> None:
    path = "/var/run/secrets/kubernetes.io/serviceaccount"
    mount = {"name": "x", "mountPath": path, "readOnly": True, "subPath": "y"}
    container(raw, "podlink-proxy")["volumeMounts"].append(mount)


def _caps(raw: Raw) -> None:
    container(raw, "podlink-capture")["securityContext"]["capabilities"]["add"].append("SYS_ADMIN")


def _privileged(raw: Raw) -> None:
    container(raw, "podlink-capture")["securityContext"]["privileged"] = True


def _number_for_flag(raw: Raw) -> None:
    container(raw, "podlink-proxy")["securityContext"]["privileged"] = 0


def _no_restart(raw: Raw) -> None:
    del container(raw, "podlink-proxy")["restartPolicy"]


def _hook(raw: Raw) -> None:
    container(raw, "podlink-proxy")["lifecycle"] = {"preStop": {"exec": {"command": ["x"]}}}


def _no_capture(raw: Raw) -> None:
    del raw["spec"]["initContainers"][0]


def _not_first(raw: Raw) -> None:
    raw["spec"]["initContainers"].insert(0, {"name": "early", "image": "x"})


def _twice(raw: Raw) -> None:
    raw["spec"]["containers"].append(copy.deepcopy(container(raw, "podlink-proxy")))


def _volume(raw: Raw) -> None:
    raw["spec"]["volumes"][1] = {"name": "podlink-bundle", "configMap": {"name": "evil"}}


def _no_volume(raw: Raw) -> None:
    del raw["spec"]["volumes"][0]


@pytest.mark.attack_row(35)
@pytest.mark.parametrize(
    "spoil",
    [_image, _args, _more_env, _other_env, _env_from, _mount, _mount_over_api_token, _caps,
     _privileged, _number_for_flag, _no_restart, _hook, _no_capture, _not_first, _twice, _volume,
     _no_volume],
)  # fmt: skip
def test_an_injected_pod_with_one_thing_changed_is_refused(spoil: Any) -> None:
    raw = injected(pod())
    spoil(raw)
    with pytest.raises(PodRefused):
        changed(raw)


@pytest.mark.attack_row(35)
def test_an_injected_pod_whose_annotation_no_longer_fits_is_refused() -> None:
    raw = injected(annotated(plaintext="deny"))
    raw["metadata"]["annotations"]["config.podlink.dev/plaintext"] = "allow"
    with pytest.raises(PodRefused):
        changed(raw)


def test_what_the_api_server_fills_in_between_two_calls_is_no_change() -> None:
    raw = injected(pod())
    for name in ("podlink-capture", "podlink-proxy"):
        one = container(raw, name)
        one["imagePullPolicy"] = "IfNotPresent"
        one["terminationMessagePath"] = "/dev/termination-log"
        one["terminationMessagePolicy"] = "File"
        one["resources"]["limits"]["cpu"] = "1"
    proxy = container(raw, "podlink-proxy")
    proxy["startupProbe"] |= {"timeoutSeconds": 1, "successThreshold": 1}
    proxy["startupProbe"]["httpGet"]["scheme"] = "HTTP"
    for one in proxy["env"]:
        if "valueFrom" in one and "fieldRef" in one["valueFrom"]:
            one["valueFrom"]["fieldRef"]["apiVersion"] = "v1"
    raw["spec"]["volumes"][0]["projected"]["defaultMode"] = 420
    raw["spec"]["volumes"][1]["configMap"]["defaultMode"] = 420
    assert changed(raw).patch == []


@pytest.mark.attack_row(62)
@pytest.mark.parametrize(
    ("place", "field", "value"),
    [
        ("podlink-proxy", "terminationMessagePolicy", "FallbackToLogsOnError"),
        ("podlink-proxy", "imagePullPolicy", "Never"),
        ("podlink-capture", "timeoutSeconds", 1),
        ("podlink-proxy", "resources", {"claims": [{"name": "gpu"}]}),
    ],
)
def test_only_what_the_api_server_fills_in_there_may_be_there(
    place: str, field: str, value: object
) -> None:
    raw = injected(pod())
    container(raw, place)[field] = value
    with pytest.raises(PodRefused, match="container_foreign"):
        changed(raw)


def test_amounts_are_the_pods_own() -> None:
    """A LimitRange and a VerticalPodAutoscaler set them at admission, in whatever order webhooks run."""
    raw = injected(pod())
    container(raw, "podlink-proxy")["resources"] = {"requests": {"cpu": "1", "memory": "1Gi"}}
    assert changed(raw).patch == []


@pytest.mark.attack_row(53)
def test_a_token_for_the_ca_in_another_volume_is_refused() -> None:
    source = {"serviceAccountToken": {"audience": "podlink-ca", "path": "token"}}
    for sources in ([source], [{"configMap": {"name": "x"}}, source]):
        raw = pod(volumes=[{"name": "mine", "projected": {"sources": sources}}])
        with pytest.raises(PodRefused, match="token_foreign"):
            changed(raw)
    other = {"serviceAccountToken": {"audience": "vault", "path": "token"}}
    injected(pod(volumes=[{"name": "mine", "projected": {"sources": [other]}}]))


@pytest.mark.attack_row(36)
@pytest.mark.parametrize("name", ["net_admin", "Cap_Sys_Admin", "all", "NET_ADM\u0131N", "CAP_ALL"])
def test_a_capability_is_refused_however_it_is_spelt(name: str) -> None:
    security = {"capabilities": {"add": [name]}}
    with pytest.raises(PodRefused, match="capability"):
        changed(pod(containers=[{"name": "web", "image": "w", "securityContext": security}]))


def test_every_reason_for_a_refusal_is_explained() -> None:
    sources = "".join(path.read_text() for path in Path("injector").glob("*.py"))
    used = set(re.findall(r'(?:PodRefused|refuse)\([^")]*"([a-z_]+)"', sources))
    assert {"proxy_id", "probe_port", "never_ends", "namespace_unknown"} <= used
    page = Path("docs/reasons.md").read_text()
    assert {reason for reason in used if f"`{reason}`" not in page} == set()


@pytest.mark.attack_row(36)
@pytest.mark.attack_row(41)
@pytest.mark.parametrize("name", ["podlink-proxy", "podlink-capture", "podlink-validate"])
def test_a_debug_container_may_not_share_the_proxys_processes(name: str) -> None:
    debug = {"name": "d", "image": "busybox", "targetContainerName": "web"}
    check_ephemeral({"ephemeralContainers": [debug]})
    debug["targetContainerName"] = name
    with pytest.raises(PodRefused, match=r"spec.ephemeralContainers\[0\]") as caught:
        check_ephemeral({"ephemeralContainers": [debug]})
    assert caught.value.reason == "shared_processes"
