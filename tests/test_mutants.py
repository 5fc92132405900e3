"""The table of mutants fits the tree, and `make mutants` tells a dead one from a living one."""

import subprocess
from pathlib import Path

import pytest

from tests.mutants.__main__ import as_junit, chosen, failed, run
from tests.mutants.table import Mutant, TableMalformed, problems, read_table, repository

ENTRY = """
[[mutant]]
defence = "a sum is right"
file = "sums.py"
old = "a + b"
new = "a - b"
tests = ["tests/test_sums.py::test_two_and_two"]
"""


def test_every_mutant_of_the_table_fits_the_tree() -> None:
    assert problems(repository()) == []


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "sums.py").write_text("def add(a: int, b: int) -> int:\n    return a + b\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_sums.py").write_text(
        "from sums import add\n\ndef test_two_and_two():\n    assert add(2, 2) == 4\n\n"
        "def test_nothing():\n    assert add(0, 0) == 0\n\n"
        "def test_wrong():\n    assert add(0, 0) == 1\n"
    )
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\npythonpath = ['.']\n")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def mutant(**changed: object) -> Mutant:
    (one,) = read_table(ENTRY, "t.toml")
    return Mutant(**{**vars(one), **changed})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"file": "gone.py"}, "no file gone.py"),
        ({"old": "a * b"}, "`old` stands 0 times in sums.py, not once"),
        ({"old": "int"}, "`old` stands 3 times"),
        ({"new": "a + b"}, "nothing would be broken"),
        ({"tests": ("tests/test_sums.py::test_gone",)}, "no test tests/test_sums.py::test_gone"),
        ({"tests": ("tests/test_gone.py::test_a",)}, "no test tests/test_gone.py::test_a"),
        ({"tests": ("tests/test_sums.py",)}, "no test tests/test_sums.py"),
        ({"tests": ("tests/test_sums.py::TestA::test_nothing",)}, "no test"),
    ],
)
def test_an_entry_that_has_rotted_is_a_problem(
    tree: Path, changed: dict[str, object], said: str
) -> None:
    assert problems([mutant()], tree) == []
    (line,) = problems([mutant(**changed)], tree)
    assert line.startswith("t.toml: a sum is right: ") and said in line


def test_a_defence_that_is_listed_twice_is_a_problem(tree: Path) -> None:
    assert problems([mutant(), mutant()], tree) == ["t.toml: a sum is right: is there twice"]


@pytest.mark.parametrize(
    "source",
    [
        "[[mutant]\n",
        "[other]\n",
        ENTRY.replace('new = "a - b"\n', ""),
        ENTRY + 'why = "x"\n',
        ENTRY.replace('"a + b"', "7"),
        ENTRY.replace('"a + b"', '""'),
        ENTRY.replace('["tests/test_sums.py::test_two_and_two"]', "[]"),
    ],
)
def test_a_table_that_cannot_be_read_stops_with_its_name(source: str) -> None:
    with pytest.raises(TableMalformed, match=r"t\.toml"):
        read_table(source, "t.toml")


def test_a_mutant_is_dead_when_each_of_its_tests_fails_and_alive_otherwise(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ("tests/test_sums.py::test_two_and_two", "tests/test_sums.py::test_nothing")
    assert run([mutant()], tree) == 0
    assert "killed sums.py: a sum is right\n1 of 1" in capsys.readouterr().out
    assert run([mutant(tests=both)], tree) == 1
    said = capsys.readouterr().out
    assert "ALIVE  sums.py" in said and "test_nothing" in said
    assert (tree / "sums.py").read_text().count("a + b") == 1, "the tree itself is never touched"


def test_a_test_that_fails_without_a_mutant_proves_nothing(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([mutant(tests=("tests/test_sums.py::test_wrong",))], tree) == 1
    said = capsys.readouterr().out
    assert "without any change these fail" in said and "0 of 1" in said


def test_a_module_that_no_longer_imports_is_no_failed_test() -> None:
    report = (
        '<testsuites><testsuite><testcase classname="" name="tests.test_sums"><error/></testcase>'
        '<testcase classname="tests.t.A" name="test_b[x]"><failure/></testcase>'
        '<testcase classname="tests.t" name="test_c"><skipped/></testcase></testsuite></testsuites>'
    )
    assert failed(report) == ({"tests.t.A::test_b"}, {"::tests.test_sums", "tests.t.A::test_b"})
    assert as_junit("tests/t.py::A::test_b") == "tests.t.A::test_b"


def test_words_choose_by_file_table_or_sentence() -> None:
    assert chosen([mutant()], ["sums"]) == chosen([mutant()], ["x", "is right"]) == [mutant()]
    assert chosen([mutant()], ["other"]) == []
