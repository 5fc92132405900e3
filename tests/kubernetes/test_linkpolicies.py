"""LinkPolicies on a real API server: its schema, its CEL rules, its watch, and our status."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kit.kube import Kube, KubeError
from kit.tasks import spawn, stop
from policy.linkpolicy import API_VERSION, GROUP, PLURAL, VERSION
from registry.answers import Answers
from registry.hub import Hub
from registry.model import Model
from registry.refused import RefusedFields
from registry.watch import ClusterWatch
from tests.charts.conftest import Render
from tests.charts.test_chart import find
from tests.charts.test_policy_guard import SLIPS, SOUND
from tests.kubernetes.real_api import RealApi
from tests.patience import PATIENCE_S

CRD = Path(__file__).parents[2] / "charts/podlink/files/linkpolicy.crd.yaml"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
PATH = f"/apis/{GROUP}/{VERSION}/namespaces/default/{PLURAL}"
ALLOW = [{"from": [{"namespace": "shop", "serviceAccount": "api"}], "ports": [5432]}]


def policy(name: str, **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": API_VERSION, "kind": "LinkPolicy", "metadata": metadata, "spec": spec}


@pytest.fixture
async def kube(real: RealApi) -> AsyncIterator[Kube]:
    """A client of an API server that has the CRD, established, and no policies."""
    client = real.kube()
    try:
        try:
            await client.create(CRDS, yaml.safe_load(CRD.read_text()))
        except KubeError as e:
            if e.status != 409:
                raise
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    await client.delete(PATH)
                    break
                except KubeError:
                    await asyncio.sleep(0.2)
        yield client
    finally:
        await client.close()


@pytest.mark.parametrize(
    "spec",
    [
        {"allow": [{"ports": [80]}]},  # CEL: says nobody
        {"allow": [{"from": []}]},
        {"allow": [{"from": [{"namespace": "shop*"}]}]},
        {"allow": [{"from": [{"namespace": "shop"}], "ports": [0]}]},
        {"mode": "enforce"},
        {"selector": {"matchExpressions": [{"key": "a", "operator": "In"}]}},  # CEL
    ],
)
async def test_the_api_server_refuses_what_the_schema_forbids(kube: Kube, spec: Any) -> None:
    with pytest.raises(KubeError, match="Invalid"):
        await kube.create(PATH, policy("wrong", **spec))


async def test_an_unknown_field_is_stored_so_that_the_registry_can_refuse_it(kube: Kube) -> None:
    await kube.create(PATH, policy("slip", allow=[{"from": [{"namespace": "a"}], "port": [80]}]))
    stored = await kube.get(f"{PATH}/slip")
    assert stored["spec"]["allow"][0]["port"] == [80]
    assert stored["spec"]["mode"] == "Enforce"


async def test_the_registry_watches_and_writes_the_status(kube: Kube) -> None:
    model = Model()
    watch = ClusterWatch(kube, model, Hub(Answers(model, "allow-meshed")), RefusedFields())
    running = spawn(watch.run(), name="watch")
    try:
        await asyncio.wait_for(watch.wait_synced(), PATIENCE_S)
        await kube.create(PATH, policy("db", allow=ALLOW))
        async with asyncio.timeout(PATIENCE_S):
            while not (status := (await kube.get(f"{PATH}/db")).get("status")):
                await asyncio.sleep(0.2)
        conditions = {one["type"]: one["status"] for one in status["conditions"]}
        assert conditions == {"Accepted": "True", "InForce": "True"}
        assert status["inForce"]["spec"]["allow"] == ALLOW
        assert model.policies.of("default", "db") is not None
    finally:
        await stop(running)


@pytest.mark.attack_row(17)
async def test_the_guard_refuses_an_unknown_field_that_the_schema_keeps(
    kube: Kube, rendered: Render
) -> None:
    kinds = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
    guard = [find(rendered().objects, kind, "podlink-guard-policies") for kind in kinds]
    where = ("validatingadmissionpolicies", "validatingadmissionpolicybindings")
    paths = [f"/apis/admissionregistration.k8s.io/v1/{plural}" for plural in where]
    try:
        for path, one in zip(paths, guard, strict=True):
            await kube.create(path, one)
        async with asyncio.timeout(PATIENCE_S):  # the API server compiles it a moment later
            while True:
                try:
                    await kube.create(PATH, policy("slip", alow=[]))
                except KubeError as e:
                    assert "a field of spec is not known" in str(e)
                    break
                await kube.delete(f"{PATH}/slip")
                await asyncio.sleep(0.2)
        for number, spec in enumerate(SLIPS):
            with pytest.raises(KubeError, match="is not known|Invalid"):
                await kube.create(PATH, policy(f"slip-{number}", **spec))
        for number, spec in enumerate(SOUND):
            await kube.create(PATH, policy(f"sound-{number}", **spec))
    finally:
        for path, one in zip(paths, guard, strict=True):
            await kube.delete(f"{path}/{one['metadata']['name']}")
