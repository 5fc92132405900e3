"""The policies that the documents show are read as they stand."""

import re
from pathlib import Path

import yaml

from cli.policy import advice
from policy.linkpolicy import parse

ROOT = Path(__file__).parents[2]


def test_the_example_and_the_page_s_policy_are_accepted_without_advice_to_the_contrary() -> None:
    example = parse(yaml.safe_load((ROOT / "docs/examples/policy.yaml").read_text()))
    assert advice(example) == []
    (shown,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/policy.md").read_text(), re.S)
    assert parse(yaml.safe_load(shown)).policy.name == "prod/db"
