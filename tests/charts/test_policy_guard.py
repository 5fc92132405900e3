"""A slip in a LinkPolicy is refused when it is applied, in the words of the reader that decides."""

from typing import Any

import pytest
import yaml

from local.apiserver import policies
from local.supervisor import SOURCE_ROOT
from policy.linkpolicy import PolicyInvalid, parse
from tests.charts.conftest import Render
from tests.charts.test_chart import find

pytest.importorskip("cel_expr_python", reason="Google's CEL has wheels for x86-64 Linux only")
NAME = "podlink-guard-policies"
SHOP = [{"namespace": "shop", "serviceAccount": "api"}]
SOUND: list[dict[str, Any]] = [
    {},
    {"mode": "Audit", "allow": [], "deny": []},
    {"selector": {"matchLabels": {"any.key/is": "fine", "port": "80"}}, "allow": [{"from": SHOP}]},
    {"selector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}},
    {"deny": [{"from": SHOP, "fromCIDRs": ["10.0.0.0/8"], "ports": [80]}]},
]
SLIPS: list[dict[str, Any]] = [
    {"alow": []},
    {"selector": {"matchLabel": {"app": "db"}}},
    {"selector": {"matchExpressions": [{"key": "a", "operator": "Exists", "value": "b"}]}},
    {"allow": [{"from": SHOP, "port": [80]}]},
    {"deny": [{"from": SHOP, "port": [80]}]},
    {"deny": [{"from": [{"namespace": "shop", "serviceaccount": "api"}]}]},
]


def judged(rendered: Render, spec: dict[str, Any]) -> str:
    made = rendered().objects
    facts = {"object": policy(spec), "request": {"operation": "CREATE"}}
    return policies.judge(
        find(made, "ValidatingAdmissionPolicy", NAME),
        find(made, "ValidatingAdmissionPolicyBinding", NAME),
        facts,
    )


def policy(spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": "db", "namespace": "prod"}
    return {
        "apiVersion": "podlink.dev/v1alpha1",
        "kind": "LinkPolicy",
        "metadata": metadata,
        "spec": spec,
    }


@pytest.mark.parametrize("spec", SOUND)
def test_what_the_registry_can_read_is_admitted(rendered: Render, spec: dict[str, Any]) -> None:
    parse(policy(spec))
    assert judged(rendered, spec) == ""


@pytest.mark.attack_row(17)
@pytest.mark.parametrize("spec", SLIPS)
def test_a_field_that_nobody_knows_is_refused_before_it_is_stored(
    rendered: Render, spec: dict[str, Any]
) -> None:
    """Stored, it would leave the last good form in force: a new `deny` would deny nobody."""
    with pytest.raises(PolicyInvalid):
        parse(policy(spec))
    assert "is not known" in judged(rendered, spec)


def test_every_field_of_the_schema_is_known_to_the_guard(rendered: Render) -> None:
    crd = yaml.safe_load((SOURCE_ROOT / "charts/podlink/files/linkpolicy.crd.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    text = yaml.safe_dump(find(rendered().objects, "ValidatingAdmissionPolicy", NAME)["spec"])

    def fields(node: dict[str, Any]) -> set[str]:
        found = set(node.get("properties") or ())
        for below in [*(node.get("properties") or {}).values(), node.get("items")]:
            found |= fields(below) if isinstance(below, dict) else set()
        return found

    assert all(f"'{field}'" in text or f"''{field}''" in text for field in fields(schema))
