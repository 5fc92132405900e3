"""Every object of the chart, as a dry run with strict fields: taken, and without a warning."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.charts.conftest import Render
from tests.charts.test_chart import MATRIX
from tests.kubernetes.objects import Objects

NAMESPACES = ("podlink-system", "podlink-test", "shop")


@pytest.fixture(scope="module")
def places(objects: Objects) -> Iterator[Objects]:
    objects.drop_crd()
    for one in NAMESPACES:
        objects.namespace(one)
    yield objects
    for one in NAMESPACES:
        objects.drop_namespace(one)


@pytest.mark.parametrize("name", MATRIX)
def test_every_object_of_the_chart_is_taken_strictly_and_without_a_warning(
    rendered: Render, places: Objects, name: str
) -> None:
    """All that Helm would send, the hooks of `helm test` among them; monitors need the operator."""
    made = rendered(MATRIX[name], minor=36)
    tried = 0
    for one in (*made.objects, *made.hooks):
        if one["apiVersion"].startswith("monitoring.coreos.com/"):
            continue
        if one["kind"] == "Namespace" and one["metadata"]["name"] in NAMESPACES:
            continue
        answer = places.create(one, dryRun="All")
        label = f"{one['kind']} {one['metadata']['name']}"
        assert answer.status == 201, f"{label}: {answer.said}"
        assert answer.warnings == (), label
        tried += 1
    assert tried > 15


def test_a_field_that_nobody_knows_would_be_noticed(rendered: Render, places: Objects) -> None:
    """The control of the test above."""
    made = next(o for o in rendered(minor=36).objects if o["kind"] == "PriorityClass")
    wrong: dict[str, Any] = {**made, "valeu": 1}
    assert "unknown field" in places.create(wrong, dryRun="All").said
    secret = {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": "x", "namespace": "shop"},
    }
    assert places.create(secret, dryRun="All").warnings, "a deprecated kind is warned of"
