"""The threat model can be read by a machine, and no test claims to prove what it does not name."""

import re
from pathlib import Path

import pytest

from tests.threats import (
    DocumentMalformed,
    Entry,
    Mark,
    problems,
    read_entries,
    read_marks,
    report,
    repository,
)

ENTRIES = {
    "Attack 8": Entry("Attack 8", "two URI SANs"),
    "Attack 9": Entry("Attack 9", "no URI SAN"),
    "Fault half-open": Entry("Fault half-open", "the peer vanishes"),
    "Fault slow": Entry("Fault slow", "the same", same_as="Attack 8"),
}


def test_every_mark_in_the_tests_names_an_entry_of_the_threat_model() -> None:
    assert problems(*repository()) == []


def test_the_documents_attacks_are_numbered_without_a_gap_and_it_has_30_faults() -> None:
    entries, _ = repository()
    attacks = [name for name in entries if name.startswith("Attack ")]
    assert attacks == [f"Attack {number}" for number in range(1, len(attacks) + 1)]
    assert len(attacks) >= 50
    assert len(entries) - len(attacks) == 30


def test_every_entry_says_which_part_defends() -> None:
    document = (Path(__file__).parent.parent / "docs" / "threat-model.md").read_text()
    sections = re.split(r"^### ", document, flags=re.MULTILINE)[1:]
    silent = [
        section.splitlines()[0]
        for section in sections
        if not re.search(r"(Defended|Handled)\s+by", section)
    ]
    assert silent == []


def test_headings_give_the_entries_in_order() -> None:
    document = "## Attacks\n### Attack 8: two\ntext\n## Faults\n### Fault half-open: gone\n"
    assert list(read_entries(document)) == ["Attack 8", "Fault half-open"]


def test_an_entry_may_point_at_another() -> None:
    document = "### Attack 8: two\n\n### Fault slow: late\n\nSame as Attack 8. More words.\n"
    assert read_entries(document)["Fault slow"].same_as == "Attack 8"


@pytest.mark.parametrize(
    "document",
    [
        "### Attack 8: two\n### Attack 8: two\n",
        "### Attack eight: two\n",
        "### Fault Half Open: gone\n",
        "### Fault: gone\n",
        "### Attack 8: two\n\nSame as Attack 99.\n",
    ],
)
def test_a_heading_that_cannot_be_read_stops_the_check(document: str) -> None:
    with pytest.raises(DocumentMalformed, match=r"docs/threat-model\.md"):
        read_entries(document)


MARK_8 = "pytest.mark.attack_row(8)"
EIGHT, BOTH = ["Attack 8"], ["Attack 8", "Attack 9"]


@pytest.mark.parametrize(
    ("source", "names", "test"),
    [
        (f"@{MARK_8}\ndef test_a(): ...", EIGHT, "t.py::test_a"),
        ("@mark.fault_row('slow')\nasync def test_a(): ...", ["Fault slow"], "t.py::test_a"),
        ("@pytest.mark.attack_row(8, 9)\ndef test_a(): ...", BOTH, "t.py::test_a"),
        (f"class TestB:\n @{MARK_8}\n def test_a(self): ...", EIGHT, "t.py::TestB::test_a"),
        (f"@{MARK_8}\nclass TestB: ...", EIGHT, "t.py::TestB"),
        (f"pytestmark = {MARK_8}", EIGHT, "t.py"),
        ("pytestmark = [pytest.mark.attack_row(n) for n in (8, 9)]", BOTH, "t.py"),
        (f"CASES = [pytest.param(1, marks={MARK_8})]", EIGHT, "t.py"),
        (f"@each([pytest.param(1, marks={MARK_8})])\ndef test_a(x): ...", EIGHT, "t.py::test_a"),
        ("ROW = 8\n@pytest.mark.attack_row(ROW)\ndef test_a(): ...", EIGHT, "t.py::test_a"),
        ("def test_a(): ...", [], ""),
        (f"'@{MARK_8} in a text is not a mark'", [], ""),
    ],
)
def test_a_mark_is_found_wherever_pytest_finds_it(source: str, names: list[str], test: str) -> None:
    marks = read_marks(source, "t.py")
    assert [mark.name for mark in marks] == names
    assert {mark.test for mark in marks} <= {test}


@pytest.mark.parametrize(
    "source",
    [
        "pytestmark = pytest.mark.attack_row(ROW)",
        "pytestmark = [pytest.mark.attack_row(n) for n in ROWS]",
        "pytestmark = pytest.mark.attack_row()",
    ],
)
def test_a_mark_that_only_running_could_read_is_a_problem(source: str) -> None:
    (line,) = problems(ENTRIES, read_marks(source, "t.py"))
    assert line.startswith("t.py:1: a mark's row must be a literal, a constant of its file, or a")


def test_a_mark_without_an_entry_is_a_problem_that_names_the_place_and_the_choices() -> None:
    (line,) = problems(ENTRIES, [Mark("Fault half open", "t.py::test_a", "t.py:7")])
    assert line == (
        "t.py:7: no entry 'Fault half open' in docs/threat-model.md;"
        " Fault is one of: half-open, slow"
    )


def test_a_number_written_as_text_still_names_its_row() -> None:
    assert problems(ENTRIES, read_marks("pytestmark = pytest.mark.attack_row('8')", "t.py")) == []


def test_the_report_lists_tests_gaps_and_counts() -> None:
    text = report(ENTRIES, [Mark("Attack 8", "t.py::test_a", "t.py:1")])
    assert "Attack 8: two URI SANs\n    t.py::test_a\n" in text
    assert "Attack 9: no URI SAN\n    no test yet\n" in text
    assert "Fault slow: the same\n    t.py::test_a\n" in text
    assert text.endswith("1 of 2 attacks and 1 of 2 faults have a test")
