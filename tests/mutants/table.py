"""The defences of `*.toml` beside this file, and whether they still fit the tree.

A mutant is

    [[mutant]]
    defence = "a report that was signed in the future is refused"   # a sentence, unique
    file = "traces/report.py"
    old = "the text that is there, exactly once"
    new = "what stands there without the defence"
    tests = ["tests/traces/test_report.py::test_a_report_signed_in_the_future_is_refused"]

`tests` are names without parameters: of each, at least one case must fail. An `old` that is gone or
ambiguous and a test that is not there are errors: whoever moves a defence moves its entry.
"""

import ast
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
_FIELDS = frozenset({"defence", "file", "old", "new", "tests"})


class TableMalformed(SystemExit):
    """An entry cannot be read; the text names its file and what is wrong."""


@dataclass(frozen=True)
class Mutant:
    """One defence, and how to break it."""

    defence: str
    file: str
    """From the root of the repository."""
    old: str
    new: str
    tests: tuple[str, ...]
    """`path::name`, or `path::Class::name`."""
    place: str
    """The table it stands in, for messages."""


def read_table(source: str, place: str) -> list[Mutant]:
    """The entries of one file. Raises TableMalformed."""
    try:
        said = tomllib.loads(source)
    except tomllib.TOMLDecodeError as e:
        raise TableMalformed(f"{place}: {e}") from e
    if set(said) - {"mutant"}:
        raise TableMalformed(f"{place}: only [[mutant]] tables belong here")
    return [_entry(raw, place) for raw in said.get("mutant", [])]


def _entry(raw: object, place: str) -> Mutant:
    if not isinstance(raw, dict) or set(raw) != _FIELDS:
        raise TableMalformed(f"{place}: an entry has exactly {', '.join(sorted(_FIELDS))}: {raw}")
    tests = raw["tests"]
    texts = [raw[name] for name in ("defence", "file", "old", "new")]
    if not isinstance(tests, list) or not tests or not all(isinstance(t, str) for t in tests):
        raise TableMalformed(f"{place}: {raw['defence']}: `tests` is a list of names, not empty")
    if not all(isinstance(text, str) for text in texts) or not raw["old"] or not raw["defence"]:
        raise TableMalformed(f"{place}: {raw['defence']}: every field but `tests` is a text")
    defence, file, old, new = map(str, texts)
    return Mutant(defence, file, old, new, tuple(tests), place)


def repository(root: Path = ROOT) -> list[Mutant]:
    """Every entry of this repository, in the order of the files. Raises TableMalformed."""
    return [
        mutant
        for path in sorted((root / "tests" / "mutants").glob("*.toml"))
        for mutant in read_table(path.read_text(encoding="utf-8"), path.name)
    ]


def problems(mutants: Sequence[Mutant], root: Path = ROOT) -> list[str]:
    """One line for each entry that does not fit the tree, naming what to do."""
    lines, seen = [], set[str]()
    for one in mutants:
        where = f"{one.place}: {one.defence}"
        if one.defence in seen:
            lines.append(f"{where}: is there twice")
        seen.add(one.defence)
        if one.old == one.new:
            lines.append(f"{where}: `new` is `old`: nothing would be broken")
        path = root / one.file
        if not path.is_file():
            lines.append(f"{where}: no file {one.file}")
        elif (count := path.read_text(encoding="utf-8").count(one.old)) != 1:
            lines.append(f"{where}: `old` stands {count} times in {one.file}, not once")
        lines += [f"{where}: no test {test}" for test in one.tests if not _exists(test, root)]
    return lines


def _exists(test: str, root: Path) -> bool:
    path, *names = test.split("::")
    if not names or not (root / path).is_file():
        return False
    body: Iterable[ast.stmt] = ast.parse((root / path).read_text(encoding="utf-8")).body
    for name in names:
        kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        found = [one for one in body if isinstance(one, kinds) and one.name == name]
        if not found:
            return False
        body = found[-1].body
    return True
