"""A slip in a LinkPolicy, refused by a real API server when it is applied."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.charts.conftest import Render
from tests.charts.test_chart import find
from tests.charts.test_policy_guard import NAME, SLIPS, SOUND, policy
from tests.kubernetes.objects import Objects, until
from tests.kubernetes.test_linkpolicies import CRD

POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"


@pytest.fixture(scope="module")
def guarded(objects: Objects, rendered: Render) -> Iterator[Objects]:
    objects.drop_crd()
    made = [
        yaml.safe_load(CRD.read_text()),
        find(rendered(minor=36).objects, "ValidatingAdmissionPolicy", NAME),
        find(rendered(minor=36).objects, "ValidatingAdmissionPolicyBinding", NAME),
    ]
    try:
        for one in made:
            assert objects.create(one).status == 201
        objects.namespace("prod")
        objects.forget()
        until(lambda: "is not known" in put(objects, SLIPS[0]), "the guard is in force")
        yield objects
    finally:
        for one in made[1:]:
            objects.delete(one)
        objects.drop_namespace("prod")
        objects.drop_crd()


def put(objects: Objects, spec: dict[str, Any]) -> str:
    """What is said of a LinkPolicy with this spec; "" if it is taken."""
    try:
        answer = objects.create(policy(spec), dryRun="All", fieldValidation="Ignore")
    except KeyError:  # not discovered yet
        objects.forget()
        return "no such kind"
    return "" if answer.status == 201 else answer.said


@pytest.mark.parametrize("spec", SOUND)
def test_what_the_registry_can_read_is_admitted(guarded: Objects, spec: dict[str, Any]) -> None:
    assert put(guarded, spec) == ""


@pytest.mark.attack_row(17)
@pytest.mark.parametrize("spec", SLIPS)
def test_a_field_that_nobody_knows_is_refused(guarded: Objects, spec: dict[str, Any]) -> None:
    said = put(guarded, spec)
    assert NAME in said and "is not known" in said


def test_the_api_server_finds_no_fault_with_the_types(guarded: Objects) -> None:
    if not guarded.api.has_controllers:
        pytest.skip("the controller that checks the types of policies is not here")

    def checked() -> Any:
        one = guarded.api.need("GET", f"{POLICIES}/{NAME}")
        status = one.get("status") or {}
        return status if status.get("observedGeneration") else None

    status = until(checked, "the types are checked")
    assert not (status.get("typeChecking") or {}).get("expressionWarnings"), status
