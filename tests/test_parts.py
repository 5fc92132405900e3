"""Every folder of tests/ has one word that runs it, and CONTRIBUTING says what it is."""

import re
from collections import Counter
from pathlib import Path

import pytest

from scripts.slow import main

ROOT = Path(__file__).resolve().parents[1]
_PART = re.compile(r"^TEST_[A-Z0-9]+ := (.*)$", re.MULTILINE)
_ALL_FILES = "$(notdir $(wildcard tests/test_*.py))"


def folders() -> set[str]:
    """Those of tests/ that hold tests."""
    return {path.relative_to(ROOT / "tests").parts[0] for path in ROOT.glob("tests/*/**/test_*.py")}


def test_every_folder_has_one_word() -> None:
    parts = _PART.findall((ROOT / "Makefile").read_text())
    assert len(parts) == 3
    assert sum(_ALL_FILES in part for part in parts) == 1
    named = Counter(name for part in parts for name in part.replace(_ALL_FILES, "").split())
    assert named == Counter(folders())


def test_the_table_names_every_folder() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## The tests")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")]
    named = {name for row in rows for name in re.findall(r"`([a-z_*.0-9]+)`", row)}
    assert named == folders() | {"test_*.py"}


@pytest.mark.parametrize("argv", [[], ["20"], ["0", "true"], ["fast", "true"]])
def test_a_slow_machine_has_a_percentage_and_a_command(argv: list[str]) -> None:
    assert main(argv) == 2
