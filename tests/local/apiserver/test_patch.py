"""The three kinds of patch, by their documents' own examples."""

from typing import Any

import pytest

from local.apiserver.patch import json_patch, merge_patch, strategic_merge
from local.errors import ApiError

POD: dict[str, Any] = {
    "metadata": {"labels": {"a": "1", "b": "2"}},
    "spec": {"containers": [{"name": "app", "image": "x"}, {"name": "side", "image": "y"}]},
}


def test_a_json_patch_adds_replaces_removes_and_moves() -> None:
    operations = [
        {"op": "test", "path": "/metadata/labels/a", "value": "1"},
        {"op": "add", "path": "/spec/containers/0", "value": {"name": "first"}},
        {"op": "add", "path": "/metadata/labels/x~1y", "value": "3"},
        {"op": "remove", "path": "/metadata/labels/b"},
        {"op": "move", "from": "/metadata/labels/a", "path": "/metadata/labels/c"},
        {"op": "replace", "path": "/spec/containers/-1/image", "value": "z"},
    ]
    changed = json_patch(POD, operations[:-1])
    assert changed["metadata"]["labels"] == {"c": "1", "x/y": "3"}
    assert [c["name"] for c in changed["spec"]["containers"]] == ["first", "app", "side"]
    assert POD["metadata"]["labels"] == {"a": "1", "b": "2"}  # the original is untouched


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/metadata/labels/a", "value": "9"},
        {"op": "remove", "path": "/metadata/none"},
        {"op": "add", "path": "metadata", "value": 1},
        {"op": "add", "path": "/spec/containers/9", "value": 1},
        {"op": "dance", "path": "/metadata"},
        {"path": "/metadata"},
    ],
)
def test_a_json_patch_that_cannot_be_applied_names_its_operation(operation: object) -> None:
    with pytest.raises(ApiError, match="JSON patch operation 0"):
        json_patch(POD, [operation])


def test_a_merge_patch_removes_what_is_null_and_replaces_lists() -> None:
    change = {"metadata": {"labels": {"a": None, "c": "3"}}, "spec": {"containers": []}}
    assert merge_patch(POD, change) == {
        "metadata": {"labels": {"b": "2", "c": "3"}},
        "spec": {"containers": []},
    }


def test_a_strategic_merge_merges_containers_by_name() -> None:
    change = {
        "spec": {
            "$setElementOrder/containers": [{"name": "app"}, {"name": "new"}],
            "containers": [
                {"name": "app", "image": "z"},
                {"name": "new", "image": "n"},
                {"$patch": "delete", "name": "side"},
            ],
        }
    }
    changed = strategic_merge(POD, change)
    assert changed["spec"] == {
        "containers": [{"name": "app", "image": "z"}, {"name": "new", "image": "n"}]
    }
    assert changed["metadata"] == POD["metadata"]
