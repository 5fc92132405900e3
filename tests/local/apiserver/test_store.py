"""Versions, conflicts, and how far back a watch can begin."""

import pytest

from local.apiserver.selectors import fields_from_query, labels_from_query
from local.apiserver.store import Event, Store
from local.apiserver.watch import seen
from local.errors import ApiError
from local.objects import Object

KEY = ("", "configmaps")


def _object(name: str, **labels: str) -> Object:
    return {"metadata": {"name": name, "namespace": "n", "labels": labels}}


def test_an_update_that_changes_nothing_makes_no_version() -> None:
    store = Store()
    first = store.add(KEY, _object("a"))
    assert store.replace(KEY, dict(first)) == first
    assert store.version == int(first["metadata"]["resourceVersion"])


def test_a_watch_from_a_forgotten_version_is_gone_and_a_recent_one_is_not() -> None:
    store = Store(history=3)
    for number in range(6):
        store.add(KEY, _object(f"o{number}"))
    assert [e.object["metadata"]["name"] for e in store.since(KEY, 4)] == ["o3", "o4", "o5"]
    with pytest.raises(ApiError) as gone:
        store.since(KEY, 3)
    assert gone.value.code == 410
    with pytest.raises(ApiError):
        store.since(KEY, 99)  # a version of another run


def test_what_leaves_a_selection_is_seen_as_deleted() -> None:
    match = labels_from_query("app=a")
    mine, other = _object("x", app="a"), _object("x", app="b")
    assert (seen(Event(2, KEY, "MODIFIED", other, mine), "n", match) or {})["type"] == "DELETED"
    assert (seen(Event(2, KEY, "MODIFIED", mine, other), "n", match) or {})["type"] == "ADDED"
    assert seen(Event(2, KEY, "MODIFIED", other, other), "n", match) is None
    assert seen(Event(2, KEY, "ADDED", mine, None), "elsewhere", match) is None


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ("a=1", True),
        ("a==1,b", True),
        ("a!=1", False),
        ("a in (1, 2),c notin (3)", True),
        ("!a", False),
        ("!c", True),
        ("podlink.dev/inject", False),
    ],
)
def test_label_selectors(selector: str, matches: bool) -> None:
    assert labels_from_query(selector)(_object("x", a="1", b="")) is matches


@pytest.mark.parametrize("selector", ["a=(", "=1", "a in 1", "a=1;b=2"])
def test_a_label_selector_that_makes_no_sense_is_refused(selector: str) -> None:
    with pytest.raises(ApiError, match="labelSelector"):
        labels_from_query(selector)


def test_field_selectors_know_their_fields_and_refuse_others() -> None:
    assert fields_from_query("metadata.name=x,metadata.namespace!=m")(_object("x"))
    assert not fields_from_query("metadata.name=y")(_object("x"))
    with pytest.raises(ApiError, match=r"spec\.colour"):
        fields_from_query("spec.colour=red")
