"""The checks themselves: a good pod passes, and each rule catches its own offence."""

import copy
from typing import Any

import pytest

from tests.charts.pod_security import baseline, restricted

GOOD: dict[str, Any] = {
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "volumes": [{"name": "a", "emptyDir": {}}],
    "containers": [
        {
            "name": "c",
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            },
        }
    ],
}


def test_a_good_pod_passes_both() -> None:
    assert (baseline(GOOD), restricted(GOOD)) == ([], [])


def changed(path: str, value: Any) -> dict[str, Any]:
    made = copy.deepcopy(GOOD)
    at: Any = made
    *way, last = path.split(".")
    for step in way:
        at = at[int(step)] if step.isdigit() else at.setdefault(step, {})
    at[last] = value
    return made


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("hostNetwork", True), ("hostPID", True), ("hostIPC", True),
        ("volumes", [{"name": "h", "hostPath": {"path": "/"}}]),
        ("containers.0.securityContext.privileged", True),
        ("containers.0.securityContext.capabilities.add", ["NET_ADMIN"]),
        ("containers.0.securityContext.capabilities.add", ["NET_RAW"]),
        ("containers.0.ports", [{"hostPort": 80}]),
        ("containers.0.securityContext.procMount", "Unmasked"),
        ("containers.0.livenessProbe", {"httpGet": {"host": "10.0.0.1"}}),
        ("containers.0.securityContext.seccompProfile", {"type": "Unconfined"}),
        ("securityContext.sysctls", [{"name": "kernel.msgmax"}]),
        ("securityContext.seLinuxOptions", {"type": "spc_t"}),
    ],
)  # fmt: skip
def test_baseline_catches_each(path: str, value: Any) -> None:
    assert baseline(changed(path, value))
    assert restricted(changed(path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("securityContext.runAsNonRoot", None), ("securityContext.runAsUser", 0),
        ("securityContext.seccompProfile", None),
        ("containers.0.securityContext.allowPrivilegeEscalation", None),
        ("containers.0.securityContext.capabilities", {"drop": ["NET_RAW"]}),
        ("containers.0.securityContext.runAsUser", 0),
        ("volumes", [{"name": "n", "nfs": {}}]),
        ("initContainers", [{"name": "i"}]),
    ],
)  # fmt: skip
def test_restricted_catches_each_and_baseline_does_not(path: str, value: Any) -> None:
    assert restricted(changed(path, value))
    assert baseline(changed(path, value)) == []
