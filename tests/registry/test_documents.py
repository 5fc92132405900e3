"""docs/metrics.md and docs/reasons.md agree with the registry, in both directions."""

import ast
import re
from pathlib import Path

from kit.checked import REASONS
from registry.metrics import METRICS

ROOT = Path(__file__).resolve().parents[2]
METRIC_ROW = re.compile(r"^\| `([a-z_]+)` \| (\w+) \| ([^|]+) \| ([^|]+) \|$", re.M)


def section(name: str, heading: str) -> str:
    text = (ROOT / "docs" / name).read_text()
    return text.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def test_every_metric_is_described() -> None:
    rows = METRIC_ROW.findall(section("metrics.md", "The registry"))
    assert rows == [
        (m.name, m.kind, ", ".join(f"`{label}`" for label in m.labels) or "-", m.help)
        for m in METRICS
    ]


def test_every_reason_of_a_field_that_is_left_out_is_in_the_table() -> None:
    table = section("reasons.md", "Left out of the cluster's objects").partition("Addresses of")[0]
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| ([^|]+) \|", table, re.M))
    assert rows.keys() == REASONS.keys()
    assert all(rows[reason].startswith(text) for reason, text in REASONS.items())


def test_every_reason_of_an_address_that_is_no_endpoint_is_in_the_table() -> None:
    table = section("reasons.md", "Left out of the cluster's objects").partition("Addresses of")[2]
    told = set(re.findall(r"`([a-z_]+)`", "".join(re.findall(r"^\|[^|]+\|", table, re.M))))
    raised = set()
    for node in ast.walk(ast.parse((ROOT / "registry" / "endpoints.py").read_text())):
        name = getattr(getattr(node, "func", None), "id", "")
        if isinstance(node, ast.Call) and name in ("_Drop", "ValueError", "Dropped"):
            last = node.args[-1]
            if isinstance(last, ast.Constant):
                raised.add(str(last.value))
    assert told == raised
