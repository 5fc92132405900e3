"""docs/spans.md and the code agree, in both directions."""

import re
from pathlib import Path

import pytest

from certs import ledger
from sidecar.telemetry import attributes as a
from sidecar.telemetry.access import KEYS

DOC = (Path(__file__).resolve().parents[3] / "docs" / "spans.md").read_text()
ROW = re.compile(r"^\| `([a-z0-9_.]+)` \| ([a-z]+) \| ([^|]+) \| ([^|]+) \| `[^`|]+` \|$", re.M)


def table_under(heading: str) -> dict[str, str]:
    section = DOC.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    assert len(ROW.findall(section)) == section.count("\n| `"), "a row is not of the expected form"
    return {name: kind for name, kind, _, _ in ROW.findall(section)}


@pytest.mark.parametrize(
    ("heading", "constants"),
    [
        ("Attributes of links", a.OF_LINKS),
        ("Attributes of requests", a.OF_REQUESTS),
        ("Attributes of a span link", a.OF_SPAN_LINKS),
        ("Attributes of `spans dropped`", a.OF_DROPS),
        ("Attributes of `chain checkpoint`", a.OF_CHECKPOINTS),
        ("Attributes of the CA's ledger", ledger.OF_LEDGER),
        ("Attributes of `root rotation`", ledger.OF_ROTATION),
        ("Attributes of the resource", a.OF_RESOURCE),
    ],
)
def test_the_table_lists_exactly_the_attributes_of_the_code(
    heading: str, constants: dict[str, str]
) -> None:
    assert table_under(heading) == constants


def test_every_span_name_is_in_the_document() -> None:
    for name in (a.LINK, a.LINK_OPENED, a.SPANS_DROPPED, a.CHAIN_CHECKPOINT, *ledger.NAMES):
        assert f"| `{name}` |" in DOC


def test_the_keys_of_the_access_log_are_those_of_the_code_in_order() -> None:
    section = DOC.partition("## Access log\n")[2].partition("\n## ")[0]
    assert tuple(re.findall(r"^\| `([a-z_.]+)` \|", section, re.M)) == KEYS
