"""`podlink check` names pods whose sidecar is another than the injector makes, and what is skipped."""

import copy
from typing import Any

import pytest

from cli import posture
from cli.checks import sidecars
from cli.installed import Installation
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


ENV = {"PODLINK_IMAGE": MESH.image, "PODLINK_NATIVE_SIDECARS": "true"}


def installed(**env: str) -> Installation:
    """An installation whose injector was told this."""
    listed = [{"name": name, "value": value} for name, value in (ENV | env).items()]
    spec = {"template": {"spec": {"containers": [{"name": "injector", "env": listed}]}}}
    return Installation("podlink-system", {"podlink-injector": {"spec": spec}})


def pods_of(found: Installation) -> list[Object]:
    """`shop/honest` as this injector makes it, `shop/forged` with a proxy that was told another."""
    honest = injected(pod(), namespace(), sidecars.mesh_of(found))
    forged = copy.deepcopy(honest)
    for one in container(forged, "podlink-proxy")["env"]:
        if one["name"] == "PODLINK_OTLP_ENDPOINT":
            one["value"] = "sink.evil.svc:4317"
    return [running(honest, "honest"), running(forged, "forged")]


@pytest.mark.attack_row(62)
def test_the_report_names_each_pod_whose_sidecar_is_another() -> None:
    told = posture.other_sidecars(installed(), [namespace()], pods_of(installed()))
    assert [row["pod"] for row in told["rows"]] == ["shop/forged"]
    assert "podlink-proxy" in told["rows"][0]["why"]
    assert (told["compared"], told["count"], told["left_out"], told["unread"]) == (2, 1, 0, "")


def test_the_report_lists_so_many_and_counts_all() -> None:
    forged = pods_of(installed())[1]
    told = posture.other_sidecars(installed(), [namespace()], [forged] * 1003)
    assert (told["count"], told["left_out"], len(told["rows"])) == (1003, 3, 1000)


def test_pods_of_namespaces_that_the_injector_does_not_serve_are_not_compared() -> None:
    found = installed(PODLINK_ONLY_NAMESPACE="elsewhere")
    assert posture.other_sidecars(found, [namespace()], pods_of(found))["compared"] == 0


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (None, "no injector is installed"),
        (Installation("podlink-system", {}), "no injector is installed"),
        (installed(PODLINK_CLUSTER_CIDRS="x"), "the injector's settings cannot be read"),
    ],
)
def test_where_nothing_can_be_compared_the_report_says_why(
    found: Installation | None, why: str
) -> None:
    told = posture.other_sidecars(found, [namespace()], pods_of(installed()))
    assert why in told["unread"] and told["rows"] == []
