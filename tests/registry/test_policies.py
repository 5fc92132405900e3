"""Which LinkPolicies are in force: last good forms, and who hears of a change."""

import copy
import datetime as dt
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.rules import Source
from registry.answers import Answers
from registry.facts import PolicyObject, read_pod, read_policy
from registry.model import Model, settings_topic
from registry.policies import AUDITED, CLOSED, CURRENT, LAST_GOOD
from registry.policy_status import said
from tests.registry.objects import pod

GOOD: dict[str, Any] = {
    "selector": {"matchLabels": {"app": "db"}},
    "allow": [{"from": [{"namespace": "shop", "serviceAccount": "api"}], "ports": [5432]}],
}
SLIP: dict[str, Any] = {**GOOD, "allow": [{"from": [{"namespace": "shop"}], "port": [5432]}]}
NOW = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)


def policy(
    spec: object, generation: int = 1, name: str = "db", uid: str = "u1", status: object = None
) -> PolicyObject:
    metadata = {"namespace": "shop", "name": name, "uid": uid, "generation": generation}
    raw: dict[str, Any] = {
        "apiVersion": "podlink.dev/v1alpha1",
        "kind": "LinkPolicy",
        "metadata": metadata,
        "spec": spec,
    }
    if status is not None:
        raw["status"] = status
    return read_policy(copy.deepcopy(raw))


def world() -> Model:
    model = Model()
    for name, labels in (("db", {"app": "db"}), ("web", {"app": "web"})):
        model.change_pod(None, read_pod(pod(name, labels=labels)))
    model.change_pod(None, read_pod(pod("db", namespace="other", labels={"app": "db"})))
    return model


def names(model: Model, uid: str) -> list[str]:
    settings = Answers(model, "allow-meshed").settings(uid)
    assert settings is not None
    return [policy.name for policy in settings.policies]


def test_only_pods_that_the_policy_selects_are_told() -> None:
    model = world()
    assert model.change_policy(None, policy(GOOD)) == {settings_topic("shop-db")}
    assert names(model, "shop-db") == ["db"]
    assert names(model, "shop-web") == names(model, "other-db") == []
    assert model.count_selected("shop", "db") == 1


def test_a_policy_that_selects_others_now_is_told_to_both() -> None:
    model = world()
    model.change_policy(None, policy(GOOD))
    other = {**GOOD, "selector": {"matchLabels": {"app": "web"}}}
    topics = model.change_policy(policy(GOOD), policy(other, 2))
    assert topics == {settings_topic("shop-db"), settings_topic("shop-web")}
    assert names(model, "shop-db") == [] and names(model, "shop-web") == ["db"]


def test_a_status_that_changed_is_told_to_nobody() -> None:
    model = world()
    model.change_policy(None, policy(GOOD))
    assert model.change_policy(policy(GOOD), policy(GOOD, status={"selectedPods": 1})) == set()


def test_a_pod_whose_labels_change_comes_under_other_policies() -> None:
    model = world()
    model.change_policy(None, policy(GOOD))
    before, after = (
        read_pod(pod("web", labels={"app": "web"})),
        read_pod(pod("web", labels={"app": "db"})),
    )
    assert settings_topic("shop-web") in model.change_pod(before, after)
    assert names(model, "shop-web") == ["db"]


@pytest.mark.attack_row(17)
def test_a_slip_leaves_the_last_good_form_in_force() -> None:
    model = world()
    model.change_policy(None, policy(GOOD))
    assert model.change_policy(policy(GOOD), policy(SLIP, 2)) == set(), (
        "nothing has changed for pods"
    )
    standing = model.policies.standing("shop", "db")
    assert standing is not None and standing.error is not None
    assert (standing.state, standing.generation) == (LAST_GOOD, 1)
    assert standing.error.field == "spec.allow[0].port"
    model.change_policy(policy(SLIP, 2), policy(GOOD, 3))
    assert model.policies.standing("shop", "db").state == CURRENT  # type: ignore[union-attr]


@pytest.mark.attack_row(17)
@pytest.mark.fault_row("control-plane-down")
def test_a_registry_that_starts_anew_takes_the_last_good_form_from_the_status() -> None:
    model = world()
    model.change_policy(None, policy(GOOD, 4))
    standing = model.policies.standing("shop", "db")
    assert standing is not None
    status = said(standing, 4, 1, {}, NOW)
    fresh = world()
    fresh.change_policy(None, policy(SLIP, 5, status=status))
    kept = fresh.policies.standing("shop", "db")
    assert kept is not None
    assert (kept.state, kept.generation) == (LAST_GOOD, 4)
    assert kept.policy == standing.policy


@pytest.mark.attack_row(17)
@pytest.mark.parametrize(
    "status", [None, [], {"inForce": {"generation": 1, "spec": SLIP}}, {"inForce": 1}]
)
def test_what_was_never_readable_closes_the_pods_it_selects(status: object) -> None:
    model = world()
    model.change_policy(None, policy(SLIP, status=status))
    standing = model.policies.standing("shop", "db")
    assert standing is not None and standing.state == CLOSED
    settings = Answers(model, "allow-all").settings("shop-db")
    assert settings is not None
    (closed,) = settings.policies
    assert not closed.allow and not closed.audit
    assert names(model, "shop-web") == []


@pytest.mark.attack_row(17)
def test_a_policy_made_anew_does_not_inherit_from_its_namesake() -> None:
    model = world()
    model.change_policy(None, policy(GOOD))
    model.change_policy(policy(GOOD), policy(SLIP, uid="u2"))
    assert model.policies.standing("shop", "db").state == CLOSED  # type: ignore[union-attr]


def test_a_policy_that_is_gone_is_in_force_no_more() -> None:
    model = world()
    model.change_policy(None, policy(GOOD))
    assert model.change_policy(policy(GOOD), None) == {settings_topic("shop-db")}
    assert names(model, "shop-db") == []


def test_policies_are_told_in_the_order_of_their_names() -> None:
    model = world()
    for name in ("b", "c", "a"):
        model.change_policy(None, policy(GOOD, name=name))
    assert names(model, "shop-db") == ["a", "b", "c"]


def test_what_sidecars_are_told_is_the_policy_word_for_word() -> None:
    model = world()
    model.change_policy(None, policy(GOOD))
    settings = Answers(model, "allow-meshed").settings("shop-db")
    assert settings is not None
    (rule,) = settings.policies[0].allow
    (source,) = getattr(rule, "from")
    assert Source(source.namespace, source.service_account) == Source("shop", "api")
    assert (rule.name, list(rule.ports)) == ("allow[0]", [5432])


def test_the_status_says_what_is_wrong_what_is_in_force_and_since_when() -> None:
    model = world()
    model.change_policy(None, policy(GOOD))
    good = model.policies.standing("shop", "db")
    assert good is not None
    first = said(good, 1, 3, {}, NOW)
    assert first["selectedPods"] == 3
    assert [(c["type"], c["status"], c["reason"]) for c in first["conditions"]] == [
        ("Accepted", "True", "Valid"),
        ("InForce", "True", CURRENT),
    ]
    later = NOW + dt.timedelta(hours=1)
    assert said(good, 1, 3, json.loads(json.dumps(first)), later) == first, "nothing to write"
    model.change_policy(policy(GOOD), policy(SLIP, 2))
    slip = model.policies.standing("shop", "db")
    assert slip is not None
    accepted, in_force = said(slip, 2, 3, first, later)["conditions"]
    assert accepted["message"].startswith("spec.allow[0].port: ")
    assert accepted["lastTransitionTime"] == "2026-11-24T13:00:00Z"
    assert in_force["message"] == "generation 1 stays in force until this one can be read"
    assert in_force["lastTransitionTime"] == "2026-11-24T12:00:00Z"


def test_an_auditing_policy_says_so() -> None:
    model = world()
    model.change_policy(None, policy({**GOOD, "mode": "Audit"}))
    assert model.policies.standing("shop", "db").state == AUDITED  # type: ignore[union-attr]


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["selector", "allow", "mode", "from", "x"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@pytest.mark.attack_row(17)
@given(st.lists(st.one_of(junk, st.just(GOOD), st.just(SLIP)), max_size=5), junk)
def test_no_history_of_an_object_crashes_the_registry_or_opens_a_pod(
    specs: list[object], status: object
) -> None:
    """Whatever comes, what is in force is the last form that could be read, or lets nobody in."""
    model = world()
    old, last_good = None, None
    for generation, spec in enumerate(specs, 1):
        new = policy(spec, generation, status=status)
        model.change_policy(old, new)
        standing = model.policies.standing("shop", "db")
        assert standing is not None
        if standing.error is None:
            last_good = standing.policy
        elif last_good is not None:
            assert (standing.state, standing.policy) == (LAST_GOOD, last_good)
        else:
            assert standing.state == CLOSED and not standing.policy.policy.allow
        old = new


def test_a_list_that_does_not_say_what_its_items_are_is_read_all_the_same() -> None:
    raw = {"metadata": {"namespace": "shop", "name": "db", "uid": "u1"}, "spec": GOOD}
    model = world()
    model.change_policy(None, read_policy(raw))
    assert model.policies.standing("shop", "db").error is None  # type: ignore[union-attr]
    assert read_policy({**raw, "kind": "Other"}) != read_policy(raw)
