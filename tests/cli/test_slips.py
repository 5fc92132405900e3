"""`podlink check` names what the API server took though it was hardly meant."""

from typing import Any, cast

import pytest

from cli import check
from cli.checks import slips
from cli.checks.model import Outcome
from kit.kube import Kube, KubeError


class FakeKube:
    """Answers a path with a list of objects; any other is forbidden."""

    def __init__(self, lists: dict[str, list[dict[str, Any]]]) -> None:
        self.lists = lists

    async def get(self, path: str, **_query: str) -> dict[str, Any]:
        if path not in self.lists:
            raise KubeError(403, "Forbidden", "no")
        return {"items": self.lists[path]}


def named(name: str, **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, **metadata}}


async def said_of(*namespaces: dict[str, Any]) -> tuple[Outcome, Outcome]:
    """Of their labels, and of their annotations."""
    kube = FakeKube({"/api/v1/namespaces": list(namespaces)})
    labels, annotations = await slips.namespaces(cast(Kube, kube))
    assert (labels.id, annotations.id) == ("namespace-labels", "namespace-annotations")
    return labels, annotations


async def labels_of(*namespaces: dict[str, Any]) -> Outcome:
    return (await said_of(*namespaces))[0]


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("podlink.dev/inject", "enable", "podlink.dev/inject=enabled"),
        ("podlink.dev/inject", "true", "podlink.dev/inject=enabled"),
        ("podlink.dev/inject", "Enabled", "podlink.dev/inject=enabled"),
        ("podlink.dev/inject", "disable", "podlink.dev/inject=disabled"),
        ("podlink.dev/inject", "", "podlink.dev/inject=enabled or disabled"),
        ("podlink.dev/injection", "enabled", "podlink.dev/inject=enabled"),
        ("podlink.dev/injected", "true", "podlink.dev/inject=enabled"),
        ("podlink.dev/leaf-without-sidecar", "yes", "podlink.dev/leaf-without-sidecar=allowed"),
        ("podlink.io/inject", "enabled", "podlink.dev/inject=enabled"),
        ("inject.podlink/inject", "enabled", "podlink.dev/inject=enabled"),
        ("config.podlink.dev/plaintext", "allow", "as an annotation"),
    ],
)
async def test_a_namespaces_label_that_enrols_nobody_is_named_with_what_was_meant(
    key: str, value: str, meant: str
) -> None:
    one = await labels_of(named("calm"), named("shop", labels={key: value}))
    assert one.state == "warn"
    assert f"shop: label {key}" in one.said and f"meant {meant}?" in one.said
    assert "calm" not in one.said and "label --overwrite namespace" in one.todo


async def test_a_label_put_among_the_annotations_is_named() -> None:
    one = await labels_of(named("shop", annotations={"podlink.dev/inject": "enabled"}))
    assert one.state == "warn" and "shop: annotation podlink.dev/inject" in one.said


async def test_labels_as_they_should_be_and_those_of_others_are_left_alone() -> None:
    one = await labels_of(
        named("a", labels={"podlink.dev/inject": "enabled"}),
        named("b", labels={"podlink.dev/inject": "disabled"}),
        named("c", labels={"app.kubernetes.io/part-of": "podlink", "team/podlink": "yes"}),
        named("d", labels={"linkerd.io/inject": "enabled", "podlink": "x"}),
        named("e", labels={"podlink.dev/leaf-without-sidecar": "allowed"}),
    )
    assert one.state == "ok", one


async def test_many_slips_are_counted_and_the_first_named() -> None:
    many = [named(f"n{i}", labels={"podlink.dev/inject": "yes"}) for i in range(9)]
    one = await labels_of(*many)
    assert "n4:" in one.said and "n5:" not in one.said and "and 4 more" in one.said


async def test_namespaces_that_may_not_be_read_are_said_to_be_so() -> None:
    for one in await slips.namespaces(cast(Kube, FakeKube({}))):
        assert one.state == "warn" and "may not read" in one.said


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (
            "podlink.dev/plaintext",
            "shop: annotation podlink.dev/plaintext counts for nothing; "
            "meant config.podlink.dev/plaintext?",
        ),
        (
            "config.podlink.dev/plaintxt",
            "shop: its meshed pods are refused: namespace annotation config.",
        ),
        ("config.podlink.dev/workers", "must be a whole number"),
    ],
)
async def test_a_namespaces_setting_that_is_none_is_named(key: str, said: str) -> None:
    _, one = await said_of(named("shop", annotations={key: "allow"}))
    assert one.state == "warn" and said in one.said


async def test_a_namespaces_settings_as_they_should_be_are_left_alone() -> None:
    good = {"config.podlink.dev/plaintext": "allow", "example.com/workers": "many"}
    large = {"config.podlink.dev/proxy-memory-request": "1Gi"}  # the mesh's own limit may be higher
    small = {"config.podlink.dev/proxy-memory-limit": "24Mi"}
    made = [named(f"n{i}", annotations=one) for i, one in enumerate((good, large, small))]
    _, one = await said_of(*made, named("calm"))
    assert one.state == "ok", one


POLICIES = "/apis/podlink.dev/v1alpha1/linkpolicies"
SHOP = {
    "/api/v1/namespaces": [named("shop"), named("payments")],
    "/api/v1/namespaces/shop/pods": [
        named("web-1", labels={"app": "web", "tier": "front"}),
        named("db-0", labels={"app": "db", "tier": "back"}),
    ],
}


async def policies_of(*specs: Any) -> Outcome:
    made = [
        {"metadata": {"name": f"p{i}", "namespace": "shop"}, "spec": spec}
        for i, spec in enumerate(specs)
    ]
    (one,) = await slips.policies(cast(Kube, FakeKube({**SHOP, POLICIES: made})))
    assert one.id == "policies-apply"
    return one


def for_app(app: str, **more: Any) -> dict[str, Any]:
    return {"selector": {"matchLabels": {"app": app}}, **more}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (for_app("wbe"), "shop/p0 selects no pod: none has app=wbe; meant app=web?"),
        (
            {"selector": {"matchLabels": {"app": "web", "tier": "back"}}},
            "shop/p0 selects no pod: none has all of its labels",
        ),
        (
            {"selector": {"matchExpressions": [{"key": "team", "operator": "Exists"}]}},
            "shop/p0 selects no pod: team Exists holds for none",
        ),
        (
            for_app("web", allow=[{"from": [{"namespace": "paymnets"}]}]),
            "shop/p0 names namespace paymnets, which does not exist; meant payments?",
        ),
        (
            for_app("web", deny=[{"from": [{"namespace": "q", "serviceAccount": "x"}]}]),
            "shop/p0 names namespace q, which does not exist",
        ),
    ],
)
async def test_a_policy_about_nobody_is_named_with_what_is_missing(
    spec: dict[str, Any], said: str
) -> None:
    one = await policies_of(for_app("db"), for_app("db"))
    assert one.state == "ok"
    one = await policies_of(spec, for_app("db"))
    assert (one.state, one.said) == ("warn", said) and one.todo


async def test_policies_that_apply_or_are_not_understood_are_left_alone() -> None:
    one = await policies_of(
        {},
        {"selector": {}, "allow": [{"from": [{"namespace": "payments"}]}]},
        {"allow": [{"fromCIDRs": ["10.0.0.0/8"]}]},
        {"selector": 5},
        "nonsense",
    )
    assert one.state == "ok", one


async def test_a_policy_for_every_pod_of_an_empty_namespace_is_no_slip() -> None:
    made = [{"metadata": {"name": "p", "namespace": "new"}, "spec": {"deny": []}}]
    lists = {**SHOP, POLICIES: made, "/api/v1/namespaces/new/pods": []}
    (one,) = await slips.policies(cast(Kube, FakeKube(lists)))
    assert one.state == "ok"


async def test_the_command_asks_for_each() -> None:
    one = {"metadata": {"name": "podlink-ca", "namespace": "podlink-system"}, "spec": {}}
    kube = FakeKube({"/apis/apps/v1/deployments": [one]})
    asked = {outcome.id for outcome in await check._installed(cast(Kube, kube))}
    assert asked >= {"namespace-labels", "namespace-annotations", "policies-apply"}
