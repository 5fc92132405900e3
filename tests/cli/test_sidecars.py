"""`podlink check` names pods whose sidecar is another than the injector makes, and what is skipped."""

import copy
from typing import Any

import pytest

from cli.checks import sidecars
from tests.injector.pods import MESH, annotated, container, injected, namespace, pod

Object = dict[str, Any]
NAMESPACES = {"shop": namespace()}


def running(raw: Object, name: str = "web") -> Object:
    """As it is in a cluster: scheduled, with what the API server adds."""
    made = copy.deepcopy(raw)
    made["metadata"]["name"] = name
    made["spec"] |= {"nodeName": "n1", "serviceAccountName": "default"}
    made["spec"].setdefault("volumes", []).append({"name": "kube-api-access-x", "projected": {
        "sources": [{"serviceAccountToken": {"path": "token"}}], "defaultMode": 420}})  # fmt: skip
    return made | {"status": {"phase": "Running"}}


def test_sidecars_as_they_should_be_are_counted() -> None:
    pods = [running(injected(pod())), running(injected(annotated(mode="localhost")), "two")]
    one = sidecars.as_made(pods, NAMESPACES, MESH)
    assert (one.state, one.said) == ("ok", "2 sidecars, each as the injector makes it")


@pytest.mark.attack_row(62)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PODLINK_OTLP_ENDPOINT", "sink.evil.svc:4317"),
        ("PODLINK_CLUSTER_CIDRS", "192.0.2.0/24"),
        ("PODLINK_PLAINTEXT", "allow"),
    ],
)
def test_a_proxy_that_was_told_something_else_is_named_though_its_label_is_gone(
    name: str, value: str
) -> None:
    made = injected(pod())
    for one in container(made, "podlink-proxy")["env"]:
        if one["name"] == name:
            one["value"] = value
    made["metadata"]["labels"] = {}
    pods = [running(made, "forged"), running(injected(pod()), "honest")]
    outcome = sidecars.as_made(pods, NAMESPACES, MESH)
    assert outcome.state == "warn" and "shop/forged: container podlink-proxy" in outcome.said
    assert "honest" not in outcome.said


@pytest.mark.attack_row(62)
def test_what_is_skipped_is_named() -> None:
    noted = annotated(skip_subnets="192.0.2.0/24", skip_outbound_ports="25")
    one = sidecars.skipped([running(injected(noted), "mailer"), running(injected(pod()))])
    assert one.state == "warn"
    assert (
        "shop/mailer: subnets 192.0.2.0/24, outbound ports 25" in one.said and "web" not in one.said
    )
    assert sidecars.skipped([running(injected(pod()))]).state == "ok"
