"""A container's environment and credentials, out of its spec."""

import sys

import pytest

from local.node.environment import (
    ConfigMissing,
    PodFacts,
    argv,
    build,
    credentials,
    expand,
    quantity,
)
from local.objects import Object

FACTS = PodFacts(("10.244.0.9", "fd44::9"), "10.244.0.1", "10.96.0.1", 443)
POD: Object = {
    "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a": "b"}},
    "spec": {"containers": [], "serviceAccountName": "sa"},
}


def _field(name: str, path: str) -> Object:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def test_fields_of_the_pod_become_variables() -> None:
    env = build(
        POD,
        {
            "command": ["true"],
            "env": [
                _field("IPS", "status.podIPs"),
                _field("LABEL", "metadata.labels['a']"),
                _field("SA", "spec.serviceAccountName"),
            ],
        },
        FACTS,
        lambda kind, name: None,
    )
    assert (env["IPS"], env["LABEL"], env["SA"]) == ("10.244.0.9,fd44::9", "b", "sa")
    assert "PYTHONPATH" not in env


def test_a_missing_key_is_named() -> None:
    source = {"secretKeyRef": {"name": "s", "key": "k"}}
    entry = {"name": "X", "valueFrom": source}
    with pytest.raises(ConfigMissing, match='env X: secret "s" not found'):
        build(POD, {"command": ["true"], "env": [entry]}, FACTS, lambda kind, name: None)


def test_python_is_the_interpreter_that_runs_podlink() -> None:
    env = {"A": "1"}
    assert argv({"command": ["python", "-m", "x"], "args": ["$(A)"]}, env) == [
        *(sys.executable, "-m", "x", "1")
    ]
    assert argv({"command": ["nginx"]}, env) == ["nginx"]


@pytest.mark.parametrize(
    ("text", "result"),
    [("$(A)-$(B)", "1-$(B)"), ("$$(A)", "$(A)"), ("$A $", "$A $"), ("$(A)$(A)", "11")],
)
def test_references_are_expanded_as_kubernetes_does(text: str, result: str) -> None:
    assert expand(text, {"A": "1"}) == result


def test_the_containers_user_beats_the_pods_and_nobody_is_the_default() -> None:
    pod = {**POD, "spec": {**POD["spec"], "securityContext": {"runAsUser": 5}}}
    own = {"securityContext": {"runAsUser": 7}}
    assert credentials(pod, own, single_uid=False)["uid"] == 7
    assert credentials(pod, {}, single_uid=False)["uid"] == 5
    assert credentials(POD, {}, single_uid=False)["uid"] == 65534
    assert credentials(pod, own, single_uid=True)["uid"] is None


def test_only_what_is_asked_for_is_kept_of_capabilities() -> None:
    asked = {"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "CAP_NET_RAW"]}}
    as_root = credentials(POD, {"securityContext": {"runAsUser": 0, **asked}}, single_uid=False)
    assert as_root["capabilities"] == ["NET_ADMIN", "NET_RAW"]
    assert credentials(POD, {}, single_uid=False)["capabilities"] == []


@pytest.mark.parametrize(("text", "value"), [("100m", 0.1), ("64Mi", 67108864), ("2", 2)])
def test_quantities(text: str, value: float) -> None:
    assert quantity(text) == value
