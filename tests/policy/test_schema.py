"""The CRD's schema and our reader agree: what one refuses by form, the other does not let pass."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from local.apiserver import schemas
from policy import linkpolicy
from policy.linkpolicy import PolicyInvalid, parse
from tests.policy.test_linkpolicy import WRONG, changed, design

CRD: Any = yaml.safe_load(
    (Path(__file__).parents[2] / "charts/podlink/files/linkpolicy.crd.yaml").read_text()
)
SCHEMA: Any = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
SPEC: Any = SCHEMA["properties"]["spec"]["properties"]


def test_the_design_conforms_and_is_stored_as_it_was_written() -> None:
    raw = design()
    assert list(schemas.faults(SCHEMA, raw, "")) == []
    assert schemas.conform(SCHEMA, raw)["spec"] == raw["spec"]
    del raw["spec"]["mode"]
    assert schemas.conform(SCHEMA, raw)["spec"]["mode"] == "Enforce"


@pytest.mark.attack_row(17)
@pytest.mark.parametrize(("path", "value", "field"), [w for w in WRONG if w[0].startswith("spec")])
def test_what_the_reader_refuses_the_schema_refuses_or_hands_on_unpruned(
    path: str, value: object, field: str
) -> None:
    raw = changed(path, value)
    if not list(schemas.faults(SCHEMA, raw, "")):
        with pytest.raises(PolicyInvalid):
            parse({**schemas.conform(SCHEMA, raw), "metadata": raw["metadata"]})


def test_the_bounds_are_the_same() -> None:
    rules = SPEC["allow"]
    assert rules["items"]["properties"].keys() == {"from", "fromCIDRs", "ports"}
    assert {rules["maxItems"], SPEC["deny"]["maxItems"]} == {linkpolicy.MAX_RULES}
    for key in ("from", "fromCIDRs", "ports"):
        assert rules["items"]["properties"][key]["maxItems"] == linkpolicy.MAX_PEERS
    assert SPEC["deny"]["items"]["properties"] == {**rules["items"]["properties"]}
    assert (
        SPEC["selector"]["properties"]["matchExpressions"]["maxItems"]
        == linkpolicy.MAX_REQUIREMENTS
    )


def test_every_field_for_authors_has_a_type_and_every_map_keeps_what_it_does_not_know() -> None:
    def look(schema: Any, path: str) -> None:
        assert "type" in schema, path
        if schema["type"] == "object" and "properties" in schema:
            assert schema.get("x-kubernetes-preserve-unknown-fields") is True, path
        for key, inner in schema.get("properties", {}).items():
            look(inner, f"{path}.{key}")
        if "items" in schema:
            look(schema["items"], f"{path}[]")

    look(SCHEMA["properties"]["spec"], "spec")


def test_the_schema_prunes_elsewhere_as_an_api_server_does() -> None:
    assert schemas.conform(SCHEMA, {"spec": {}, "status": {"foo": 1, "selectedPods": 2}}) == {
        "spec": {"mode": "Enforce"},
        "status": {"selectedPods": 2},
    }
