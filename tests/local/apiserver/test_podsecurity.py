"""Pod Security levels: each control alone, and what the injector makes of a pod."""

import copy
from dataclasses import replace
from typing import Any

import pytest

from local.apiserver.podsecurity import violations
from tests.injector.pods import MESH, annotated, injected, namespace

STRICT: dict[str, Any] = {
    "securityContext": {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    },
    "containers": [
        {
            "name": "app",
            "image": "app:1",
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            },
        }
    ],
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """STRICT with one field changed; "app" in the path is the container."""
    made = copy.deepcopy(STRICT)
    *way, last = path.split(".")
    at = made
    for step in way:
        at = at["containers"][0] if step == "app" else at.setdefault(step, {})
    at[last] = value
    return made


def test_a_pod_without_any_word_on_security_is_baseline_and_not_restricted() -> None:
    spec = {"containers": [{"name": "app", "image": "app:1"}]}
    assert violations(spec, "baseline") == []
    assert len(violations(spec, "restricted")) == 4
    assert violations(STRICT, "restricted") == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("hostNetwork", True),
        ("hostPID", True),
        ("hostIPC", True),
        ("volumes", [{"name": "v", "hostPath": {"path": "/"}}]),
        ("securityContext.sysctls", [{"name": "kernel.msgmax", "value": "1"}]),
        ("securityContext.seccompProfile", {"type": "Unconfined"}),
        ("securityContext.seLinuxOptions", {"user": "root"}),
        ("securityContext.windowsOptions", {"hostProcess": True}),
        ("app.securityContext.privileged", True),
        ("app.securityContext.procMount", "Unmasked"),
        ("app.securityContext.appArmorProfile", {"type": "Unconfined"}),
        ("app.securityContext.capabilities", {"drop": ["ALL"], "add": ["NET_ADMIN"]}),
        ("app.ports", [{"containerPort": 80, "hostPort": 80}]),
        ("app.livenessProbe", {"httpGet": {"port": 80, "host": "10.0.0.1"}}),
        ("app.lifecycle", {"preStop": {"tcpSocket": {"port": 80, "host": "10.0.0.1"}}}),
    ],
)
def test_what_baseline_forbids_restricted_forbids_too(path: str, value: Any) -> None:
    assert len(violations(changed(path, value), "baseline")) == 1
    assert violations(changed(path, value), "restricted")
    assert violations(changed(path, value), "privileged") == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("volumes", [{"name": "v", "nfs": {"server": "s", "path": "/"}}]),
        ("securityContext.runAsNonRoot", False),
        ("securityContext.runAsUser", 0),
        ("securityContext.seccompProfile", None),
        ("app.securityContext.runAsUser", 0),
        ("app.securityContext.runAsNonRoot", False),
        ("app.securityContext.allowPrivilegeEscalation", None),
        ("app.securityContext.capabilities", {"drop": ["NET_RAW"]}),
        ("app.securityContext.capabilities", {"drop": ["ALL"], "add": ["CHOWN"]}),
    ],
)
def test_what_restricted_alone_forbids(path: str, value: Any) -> None:
    assert violations(changed(path, value), "baseline") == []
    assert len(violations(changed(path, value), "restricted")) == 1


def strict_pod(**annotations: str) -> dict[str, Any]:
    made = annotated(**annotations)
    made["spec"] = copy.deepcopy(STRICT)
    return made


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("exempt_by", ["uid", "mark"])
def test_a_restricted_pod_in_localhost_mode_is_still_one_with_its_sidecar(
    exempt_by: str, native: bool
) -> None:
    mesh = replace(MESH, exempt_by=exempt_by, native_sidecars=native)
    pod = strict_pod(mode="localhost", upstreams="5432=db.prod:5432", plaintext_ports="9187")
    spec = injected(pod, namespace(), mesh)["spec"]
    names = [c["name"] for kind in ("initContainers", "containers") for c in spec.get(kind) or ()]
    assert sorted(names) == ["app", "podlink-proxy"]
    assert violations(spec, "restricted") == []


def test_redirection_needs_one_capability_more_than_baseline_allows() -> None:
    spec = injected(strict_pod())["spec"]
    assert violations(spec, "baseline") == [
        'non-default capabilities (container "podlink-capture": NET_ADMIN)'
    ]
