"""Which entry of docs/threat-model.md is proved by which test: `python -m tests.threats`.

Tests carry `@pytest.mark.attack_row(8)` or `@pytest.mark.fault_row("half-open")`. This module reads
the marks from the source of the tests, without importing them, and the entries from the headings of
the document. A mark that names no entry is an error (status 1): it would prove nothing. An entry
without a test is not; it is listed as such.
"""

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_HEADING = re.compile(
    r"^### (?:Attack (?P<attack>[0-9]+)|Fault (?P<fault>[a-z0-9]+(?:-[a-z0-9]+)*)): (?P<title>.+)$"
)
_ALMOST = re.compile(r"^#+ (Attack|Fault)\b")
_SAME = re.compile(r"\bSame as (?P<name>Attack [0-9]+|Fault [a-z0-9-]+)\.")
_KINDS = {"attack_row": "Attack", "fault_row": "Fault"}


class DocumentMalformed(SystemExit):
    """docs/threat-model.md cannot be read: a heading of the wrong form, or two of one name."""


@dataclass(frozen=True)
class Entry:
    """One attack or fault. `name` is `Attack 8` or `Fault half-open`."""

    name: str
    title: str
    same_as: str | None = None
    """The entry whose tests prove this one too."""


@dataclass(frozen=True)
class Mark:
    """One mark in the tests: the entry it names (None: unreadable), and the test it is on."""

    name: str | None
    test: str
    place: str
    """`path:line`."""


def read_entries(document: str) -> dict[str, Entry]:
    """Every entry of the threat model by its name, in the document's order.

    Raises DocumentMalformed.
    """
    entries: dict[str, Entry] = {}
    last = ""
    for number, line in enumerate(document.splitlines(), 1):
        if (found := _HEADING.match(line)) is not None:
            last = f"Attack {found['attack']}" if found["attack"] else f"Fault {found['fault']}"
            if last in entries:
                raise DocumentMalformed(f"docs/threat-model.md:{number}: {last} is there twice")
            entries[last] = Entry(last, found["title"])
        elif _ALMOST.match(line) and line not in ("## Attacks", "## Faults"):
            raise DocumentMalformed(f"docs/threat-model.md:{number}: cannot read heading: {line}")
        elif (same := _SAME.search(line)) is not None and last:
            entries[last] = Entry(last, entries[last].title, same["name"])
    for entry in entries.values():
        if entry.same_as is not None and entry.same_as not in entries:
            raise DocumentMalformed(f"docs/threat-model.md: {entry.name}: no {entry.same_as}")
    return entries


def read_marks(source: str, path: str) -> list[Mark]:
    """Every mark in one test file.

    A mark counts for the test or the class that it decorates. Anywhere else (`pytestmark`, a table
    of parameters) it counts for the whole file.
    """
    tree = ast.parse(source, path)
    constants: dict[str, list[object]] = {
        target.id: [statement.value.value]
        for statement in tree.body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    return list(_marks(tree, path, path, constants))


def _marks(node: ast.AST, path: str, test: str, names: dict[str, list[object]]) -> Iterator[Mark]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        test = f"{path}::{node.name}" if test == path else f"{test}::{node.name}"
    if isinstance(node, ast.ListComp | ast.GeneratorExp):
        names = {**names, **_bound(node.generators)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        kind = _KINDS.get(node.func.attr)
        if kind is not None:
            place = f"{path}:{node.lineno}"
            rows = [row for argument in node.args for row in _rows(argument, names)]
            for row in rows or [None]:
                yield Mark(None if row is None else f"{kind} {row}", test, place)
    for child in ast.iter_child_nodes(node):
        yield from _marks(child, path, test, names)


def _rows(argument: ast.expr, names: dict[str, list[object]]) -> Sequence[object]:
    """The values that a mark's argument may have; none if only running the code could tell."""
    if isinstance(argument, ast.Constant):
        return [argument.value]
    if isinstance(argument, ast.Name):
        return names.get(argument.id, [])
    return []


def _bound(generators: Sequence[ast.comprehension]) -> dict[str, list[object]]:
    """Loop variables over literals, as in `[attack_row(n) for n in (8, 9)]`."""
    bound: dict[str, list[object]] = {}
    for generator in generators:
        values = generator.iter
        if isinstance(generator.target, ast.Name) and isinstance(values, ast.Tuple | ast.List):
            constants = [item.value for item in values.elts if isinstance(item, ast.Constant)]
            if len(constants) == len(values.elts):
                bound[generator.target.id] = list(constants)
    return bound


def problems(entries: dict[str, Entry], marks: Sequence[Mark]) -> list[str]:
    """One line for each mark that proves nothing, naming the place and the remedy."""
    lines = []
    for mark in marks:
        if mark.name is None:
            lines.append(
                f"{mark.place}: a mark's row must be a literal, a constant of its file,"
                " or a loop over literals"
            )
        elif mark.name not in entries:
            kind = mark.name.split(" ", 1)[0]
            known = [name.split(" ", 1)[1] for name in entries if name.startswith(kind)]
            lines.append(
                f"{mark.place}: no entry {mark.name!r} in docs/threat-model.md;"
                f" {kind} is one of: {', '.join(known)}"
            )
    return lines


def report(entries: dict[str, Entry], marks: Sequence[Mark]) -> str:
    """Every entry with its tests, and how many have one."""
    lines, proved = [], {"Attack": 0, "Fault": 0}
    for entry in entries.values():
        wanted = {entry.name, entry.same_as}
        tests = sorted({mark.test for mark in marks if mark.name in wanted})
        proved[entry.name.split(" ", 1)[0]] += bool(tests)
        lines.append(f"{entry.name}: {entry.title}")
        lines += [f"    {test}" for test in tests] or ["    no test yet"]
    counts = [
        f"{count} of {sum(name.startswith(kind) for name in entries)} {kind.lower()}s"
        for kind, count in proved.items()
    ]
    return "\n".join([*lines, "", f"{' and '.join(counts)} have a test"])


def repository() -> tuple[dict[str, Entry], list[Mark]]:
    """The entries and marks of this repository."""
    document = (_ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    marks = [
        mark
        for path in sorted((_ROOT / "tests").rglob("*.py"))
        for mark in read_marks(path.read_text(encoding="utf-8"), path.relative_to(_ROOT).as_posix())
    ]
    return read_entries(document), marks


def main() -> int:
    """Print the report; status 1 if a mark names an entry that is not there."""
    entries, marks = repository()
    print(report(entries, marks))
    wrong = problems(entries, marks)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
