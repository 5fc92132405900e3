"""`podlink check` shows what the registry leaves out."""

from typing import Any, cast

from cli.checks import left_out
from kit.kube import Kube
from tests.cli.test_slips import FakeKube
from tests.registry.objects import endpoint, namespace_object, pod, service, slice_of

PATHS = [path for _, path, _ in left_out._KINDS]


async def said_of(**lists: list[dict[str, Any]]) -> tuple[str, str]:
    names = ("namespaces", "pods", "services", "slices", "policies")
    kube = FakeKube({path: lists.get(name, []) for name, path in zip(names, PATHS, strict=True)})
    (outcome,) = await left_out.objects(cast(Kube, kube))
    assert outcome.id == "objects-read"
    return outcome.state, outcome.said


async def test_objects_whose_fields_can_all_be_used_are_well() -> None:
    state, said = await said_of(
        namespaces=[namespace_object("shop")],
        pods=[pod("web", "10.0.0.1")],
        services=[service("db", "10.96.0.1")],
        slices=[slice_of("db", endpoint("10.0.0.1"))],
    )
    assert (state, said) == ("ok", "4 objects, no field that podlink leaves out")


async def test_each_field_that_is_left_out_is_named_with_its_object_and_why() -> None:
    bad = slice_of("db", endpoint("10.0.0.1"), ports=({"name": "", "port": 70000},))
    state, said = await said_of(slices=[bad], pods=[pod("web", "10.0.0.1")])
    assert state == "warn"
    assert said == "EndpointSlice shop/db-abc, ports.port: no port from 1 to 65535 (70000)"


async def test_an_object_without_a_name_is_named_as_far_as_it_goes() -> None:
    nameless = pod("web", "10.0.0.1")
    nameless["metadata"]["uid"] = ""
    _, said = await said_of(pods=[nameless])
    assert said == "Pod shop/web is left out whole: metadata.uid: missing"


async def test_a_policy_that_is_not_installed_is_no_fault_and_a_forbidden_list_is_told() -> None:
    kube = FakeKube({path: [] for path in PATHS[:2]})
    (outcome,) = await left_out.objects(cast(Kube, kube))
    assert outcome.state == "warn"
    assert "Service" in outcome.said
