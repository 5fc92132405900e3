"""LinkPolicy objects: read whole, or refused with the field that is wrong."""

import copy
import ipaddress
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.judge import Denial, Permit, judge
from policy.linkpolicy import API_VERSION, KIND, PolicyInvalid, closed, parse
from policy.rules import PolicySet, Source
from policy.selector import EVERY_POD
from tests.hostile import spoilt
from tests.policy.test_judge import who

EXISTS = {"key": "a", "operator": "Exists"}
DESIGN = """
apiVersion: podlink.dev/v1alpha1
kind: LinkPolicy
metadata: {name: db, namespace: prod}
spec:
  selector: {matchLabels: {app: db}}
  mode: Enforce
  allow:
    - from:
        - {namespace: shop, serviceAccount: api}
        - {namespace: batch}
      ports: [5432]
    - fromCIDRs: [10.0.0.0/8]
      ports: [9187]
  deny:
    - from: [{namespace: shop, serviceAccount: legacy}]
"""


def design() -> Any:
    return yaml.safe_load(DESIGN)


def changed(path: str, value: object) -> Any:
    """The design's policy with `value` at a dotted path; numbers are list indexes."""
    raw = design()
    *way, last = path.split(".")
    at = raw
    for step in way:
        at = at[int(step)] if step.isdigit() else at[step]
    at[int(last) if last.isdigit() else last] = value
    return raw


def test_the_policy_of_the_design_is_read_word_for_word() -> None:
    it = parse(design())
    assert (it.namespace, it.name, it.policy.name, it.policy.audit) == (
        "prod",
        "db",
        "prod/db",
        False,
    )
    first, second = it.policy.allow
    assert first.sources == (Source("shop", "api"), Source("batch"))
    assert first.ports == {5432}
    assert second.networks == (ipaddress.ip_network("10.0.0.0/8"),)
    (deny,) = it.policy.deny
    assert (deny.name, deny.sources) == ("deny[0]", (Source("shop", "legacy"),))


def test_a_policy_selects_by_labels_in_its_own_namespace_only() -> None:
    it = parse(design())
    assert it.selects("prod", {"app": "db", "x": "y"})
    assert not it.selects("prod", {"app": "web"})
    assert not it.selects("prod", {})
    assert not it.selects("shop", {"app": "db"})
    raw = design()
    del raw["spec"]["selector"]
    assert parse(raw).selects("prod", {})


@pytest.mark.parametrize(
    ("expression", "labels", "selected"),
    [
        ({"key": "app", "operator": "In", "values": ["a", "b"]}, {"app": "b"}, True),
        ({"key": "app", "operator": "In", "values": ["a", "b"]}, {}, False),
        ({"key": "app", "operator": "NotIn", "values": ["a"]}, {"app": "a"}, False),
        ({"key": "app", "operator": "NotIn", "values": ["a"]}, {}, True),
        ({"key": "app", "operator": "Exists"}, {"app": ""}, True),
        ({"key": "app", "operator": "DoesNotExist"}, {"app": ""}, False),
    ],
)
def test_expressions_mean_what_kubernetes_says(
    expression: dict[str, object], labels: dict[str, str], selected: bool
) -> None:
    it = parse(changed("spec.selector", {"matchExpressions": [expression]}))
    assert it.selects("prod", labels) is selected


WRONG: list[tuple[str, object, str]] = [
    ("apiVersion", "podlink.dev/v1", "apiVersion"),
    ("kind", "LinkPolicies", "kind"),
    ("extra", 1, "extra"),
    ("metadata.name", "", "metadata.name"),
    ("metadata.namespace", "a.b", "metadata.namespace"),
    ("spec", None, "spec"),
    ("spec", [], "spec"),
    ("spec.allows", [], "spec.allows"),
    ("spec.mode", "enforce", "spec.mode"),
    ("spec.mode", None, "spec.mode"),
    ("spec.selector", None, "spec.selector"),
    ("spec.selector.podSelector", {}, "spec.selector.podSelector"),
    ("spec.selector.matchLabels", {"app": 1}, "spec.selector.matchLabels['app']"),
    ("spec.selector.matchLabels", {"a b": "x"}, "spec.selector.matchLabels"),
    ("spec.selector.matchLabels", {"app": "*"}, "spec.selector.matchLabels['app']"),
    (
        "spec.selector.matchExpressions",
        [{"key": "a", "operator": "Matches"}],
        "spec.selector.matchExpressions[0].operator",
    ),
    (
        "spec.selector.matchExpressions",
        [{"key": "a", "operator": "In"}],
        "spec.selector.matchExpressions[0].values",
    ),
    (
        "spec.selector.matchExpressions",
        [{"key": "a", "operator": "Exists", "values": ["x"]}],
        "spec.selector.matchExpressions[0].values",
    ),
    ("spec.selector.matchLabels", {f"k{n}": "v" for n in range(33)}, "spec.selector"),
    ("spec.selector.matchExpressions", [EXISTS] * 33, "spec.selector.matchExpressions"),
    ("spec.selector.matchExpressions", [EXISTS] * 32, "spec.selector"),  # one label is there, too
    ("spec.allow", {}, "spec.allow"),
    ("spec.allow.0", {"ports": [80]}, "spec.allow[0]"),
    ("spec.allow.0", {}, "spec.allow[0]"),
    ("spec.allow.0.from", [], "spec.allow[0].from"),
    ("spec.allow.0.from", None, "spec.allow[0].from"),
    ("spec.allow.0.port", [80], "spec.allow[0].port"),
    ("spec.allow.0.notFrom", [], "spec.allow[0].notFrom"),
    ("spec.allow.0.ports", [], "spec.allow[0].ports"),
    ("spec.allow.0.ports", ["5432"], "spec.allow[0].ports[0]"),
    ("spec.allow.0.ports", [5432, 0], "spec.allow[0].ports[1]"),
    ("spec.allow.0.ports", [65536], "spec.allow[0].ports[0]"),
    ("spec.allow.0.ports", [True], "spec.allow[0].ports[0]"),
    ("spec.allow.0.from.0", "shop/api", "spec.allow[0].from[0]"),
    ("spec.allow.0.from.0", {"serviceAccount": "api"}, "spec.allow[0].from[0].namespace"),
    ("spec.allow.0.from.0.namespace", "*", "spec.allow[0].from[0].namespace"),
    ("spec.allow.0.from.0.namespace", "shop*", "spec.allow[0].from[0].namespace"),
    ("spec.allow.0.from.0.namespace", "shоp", "spec.allow[0].from[0].namespace"),  # Cyrillic
    ("spec.allow.0.from.0.namespace", "shop\n", "spec.allow[0].from[0].namespace"),
    ("spec.allow.0.from.0.namespace", "x" * 64, "spec.allow[0].from[0].namespace"),
    ("spec.allow.0.from.0.serviceAccount", "", "spec.allow[0].from[0].serviceAccount"),
    ("spec.allow.0.from.0.serviceAccount", "a*", "spec.allow[0].from[0].serviceAccount"),
    ("spec.allow.0.from.0.trustDomain", "x", "spec.allow[0].from[0].trustDomain"),
    ("spec.allow.1.fromCIDRs", ["10.0.0.1/8"], "spec.allow[1].fromCIDRs[0]"),
    ("spec.allow.1.fromCIDRs", ["10.0.0.1"], "spec.allow[1].fromCIDRs[0]"),
    ("spec.allow.1.fromCIDRs", ["::ffff:10.0.0.0/104"], "spec.allow[1].fromCIDRs[0]"),
    ("spec.allow.1.fromCIDRs", ["FD00::/8"], "spec.allow[1].fromCIDRs[0]"),
    ("spec.allow.1.fromCIDRs", ["10.0.0.0/255.0.0.0"], "spec.allow[1].fromCIDRs[0]"),
    ("spec.allow.1.fromCIDRs", [10], "spec.allow[1].fromCIDRs[0]"),
    ("spec.allow", [{"from": [{"namespace": "a"}]}] * 65, "spec.allow"),
]


@pytest.mark.attack_row(17)
@pytest.mark.parametrize(("path", "value", "field"), WRONG)
def test_what_is_wrong_is_refused_whole_and_named(path: str, value: object, field: str) -> None:
    with pytest.raises(PolicyInvalid) as caught:
        parse(changed(path, value))
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
PLACES = sorted({path for path, _, _ in WRONG})


@given(st.sampled_from(PLACES), anything)
def test_junk_anywhere_is_refused_or_understood_and_never_a_crash(path: str, junk: object) -> None:
    try:
        parse(changed(path, junk))
    except PolicyInvalid as error:
        assert error.field


@pytest.mark.attack_row(17)
@given(st.sampled_from(PLACES), st.text(min_size=1, max_size=6).map(lambda text: "x-" + text))
def test_an_unknown_field_at_any_depth_is_refused(path: str, unknown: str) -> None:
    raw = copy.deepcopy(design())
    maps = [raw, raw["spec"], raw["spec"]["selector"], raw["spec"]["allow"][0],
            raw["spec"]["allow"][0]["from"][0], raw["spec"]["deny"][0]]  # fmt: skip
    maps[len(unknown) % len(maps)][unknown] = 1
    with pytest.raises(PolicyInvalid):
        parse(raw)


@pytest.mark.attack_row(17)
def test_what_cannot_be_read_and_never_could_lets_nobody_in() -> None:
    raw = changed("spec.allow.0.port", [80])
    stands = closed("prod", "db", raw["spec"])
    assert stands.selects("prod", {"app": "db"}) and not stands.selects("prod", {"app": "web"})
    verdict = judge(who("shop", "api"), "10.0.0.1", 5432, PolicySet(policies=(stands.policy,)))
    assert isinstance(verdict, Denial)
    raw["spec"]["selector"] = {"podSelector": {}}
    assert closed("prod", "db", raw["spec"]).selector is EVERY_POD
    raw["spec"]["mode"] = "Audit"
    audits = PolicySet(policies=(closed("prod", "db", raw["spec"]).policy,))
    assert isinstance(judge(who("shop", "api"), "10.0.0.1", 5432, audits), Permit)


@pytest.mark.attack_row(17)
@given(anything)
def test_what_stands_for_junk_lets_nobody_in(junk: object) -> None:
    stands = closed("prod", "db", junk)
    assert not stands.policy.allow
    if not (isinstance(junk, dict) and junk.get("mode") == "Audit"):
        verdict = judge(who("shop", "api"), "10.0.0.1", 1, PolicySet(policies=(stands.policy,)))
        assert isinstance(verdict, Denial)


@pytest.mark.attack_row(50)
@settings(max_examples=200, deadline=None)
@given(
    spoilt(
        {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"namespace": "shop", "name": "p"},
            "spec": {
                "selector": {
                    "matchLabels": {"app": "p"},
                    "matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}],
                },
                "mode": "Audit",
                "allow": [{"from": [{"namespace": "x", "serviceAccount": "y"}], "ports": [80]}],
                "deny": [{"fromCIDRs": ["10.0.0.0/8"]}],
            },
        }
    )
)
def test_an_object_with_anything_in_it_is_a_policy_or_is_refused_in_one_short_line(
    raw: Any,
) -> None:
    """`operator: {}` once ended whoever read it."""
    try:
        parse(raw)
    except PolicyInvalid as refused:
        assert len(str(refused)) < 500
        assert "\n" not in str(refused)
    closed("shop", "p", raw.get("spec") if isinstance(raw, dict) else raw)
