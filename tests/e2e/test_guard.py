"""The injector is away: what the webhook lets pass the guard refuses, and everybody else lives on."""

import pytest

from local.errors import ApiError
from tests.e2e.mesh import Mesh, until
from tests.e2e.objects import PLAIN, pod

DEPLOYMENT = "/apis/apps/v1/namespaces/podlink-system/deployments/podlink-injector"


def scale(mesh: Mesh, replicas: int) -> None:
    body = {"spec": {"replicas": replicas}}
    mesh.cluster.client.call("PATCH", DEPLOYMENT, body, "application/merge-patch+json")
    wanted = f"the injector has {replicas} replicas"
    until(lambda: len(injectors(mesh)) == replicas, wanted)


def injectors(mesh: Mesh) -> list[str]:
    pods = mesh.cluster.select("Pod", "podlink-system")
    return [p["metadata"]["name"] for p in pods if "podlink-injector" in p["metadata"]["name"]]


def refused(mesh: Mesh, name: str, **spec: object) -> str:
    made = pod(name, **spec)  # type: ignore[arg-type]
    with pytest.raises(ApiError) as caught:
        mesh.cluster.client.call("POST", "/api/v1/namespaces/mesh/pods", made)
    return str(caught.value)


@pytest.mark.attack_row(37)
@pytest.mark.fault_row("webhook-down")
def test_while_the_injector_is_away_no_pod_of_the_mesh_starts_without_its_sidecar(
    mesh: Mesh,
) -> None:
    scale(mesh, 0)
    try:
        said = refused(mesh, "unguarded")
        assert "podlink-guard" in said and "has no sidecar" in said
        # Whoever is not in the mesh, and podlink itself, can start as ever.
        bystander = pod("bystander", where=PLAIN)
        mesh.apply(bystander)
        mesh.delete(bystander)
    finally:
        scale(mesh, 1)
    until(lambda: injectable(mesh), "pods can be injected again")


def injectable(mesh: Mesh) -> bool:
    try:
        made = mesh.cluster.client.call(
            "POST", "/api/v1/namespaces/mesh/pods", pod("probe"), dryRun="All"
        )
    except ApiError:
        return False
    return any(c["name"] == "podlink-proxy" for c in made["spec"].get("initContainers") or ())


@pytest.mark.attack_row(35)
def test_the_guard_refuses_a_proxy_of_somebody_elses_making(mesh: Mesh) -> None:
    evil = {"name": "podlink-proxy", "image": "evil:1", "restartPolicy": "Always"}
    assert "container_foreign" in refused(mesh, "evil", initContainers=[evil])


@pytest.mark.attack_row(35)
def test_the_guard_refuses_another_image_for_the_proxy_of_a_running_pod(mesh: Mesh) -> None:
    path = "/api/v1/namespaces/mesh/pods/client"
    patch = {"spec": {"initContainers": [{"name": "podlink-proxy", "image": "evil:1"}]}}
    kind = "application/strategic-merge-patch+json"
    with pytest.raises(ApiError) as caught:
        mesh.cluster.client.call("PATCH", path, patch, kind)
    assert "podlink-guard-images" in str(caught.value)
    mesh.cluster.client.call("PATCH", path, {"metadata": {"labels": {"seen": "yes"}}}, kind)
