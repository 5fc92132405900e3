"""`make mutants`: break each defence in a copy of the tree, and see its tests fail.

    make mutants                      every defence
    make mutants ARGS="traces report" those whose file, table or sentence has one of these words
    make mutants ARGS=--list          what there is, without running anything

First the named tests run on the unchanged copy: a test that fails there proves nothing. Status 1 if a
mutant lives (its tests pass without the defence), if a test fails without one, or if the table does not
fit the tree.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.mutants.table import ROOT, Mutant, problems, repository

_LIMIT_S = 300.0
"""Of one run of tests. pytest-timeout ends a test that hangs long before."""
_TAIL = 15


def copy_tree(root: Path, to: Path) -> None:
    """What git knows of or would add, as it stands in the folder now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        check=True,
        capture_output=True,
    ).stdout
    for name in filter(None, listed.decode().split("\0")):
        source = root / name
        if source.is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, to / name)
    for venv in (".venv", ".helm"):
        if (root / venv).is_dir():
            (to / venv).symlink_to(root / venv)


def failed(report: str) -> tuple[set[str], set[str]]:
    """Of a JUnit report: names (`tests.x.test_y::test_z`, no parameters) of tests that failed in their
    own body, and of those that ran at all."""
    wrong, ran = set[str](), set[str]()
    for case in ET.fromstring(report).iter("testcase"):
        name = f"{case.get('classname')}::{str(case.get('name')).partition('[')[0]}"
        if case.find("skipped") is None:
            ran.add(name)
        if case.find("failure") is not None:
            wrong.add(name)
    return wrong, ran


def as_junit(test: str) -> str:
    """`tests/x/test_y.py::Class::test_z` as a JUnit report names it."""
    path, *names = test.split("::")
    module = path.removesuffix(".py").replace("/", ".")
    return "::".join([".".join([module, *names[:-1]]), names[-1]])


class Copy:
    """A copy of the tree in which defences are broken."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, tests: Iterable[str]) -> tuple[set[str], set[str], str]:
        """As `failed`, and the end of what pytest printed."""
        report = self.folder / ".mutants.xml"
        report.unlink(missing_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider"]
        try:
            done = subprocess.run(
                [*command, f"--junitxml={report}", *sorted(set(tests))],
                cwd=self.folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=_LIMIT_S,
            )
        except subprocess.TimeoutExpired:
            return set(), set(), f"no end within {_LIMIT_S:.0f} s"
        said = "\n".join((done.stdout + done.stderr).splitlines()[-_TAIL:])
        if not report.exists():
            return set(), set(), said
        return *failed(report.read_text(encoding="utf-8")), said

    def breaks(self, mutant: Mutant) -> list[str]:
        """Break the defence, run its tests, mend it; the tests that did not fail."""
        path = self.folder / mutant.file
        whole = path.read_text(encoding="utf-8")
        path.write_text(whole.replace(mutant.old, mutant.new), encoding="utf-8")
        try:
            wrong, _, said = self.run(mutant.tests)
        finally:
            path.write_text(whole, encoding="utf-8")
        alive = [test for test in mutant.tests if as_junit(test) not in wrong]
        return [*alive, said] if alive else []


def chosen(mutants: Sequence[Mutant], words: Sequence[str]) -> list[Mutant]:
    return [
        one
        for one in mutants
        if not words or any(word in f"{one.file} {one.place} {one.defence}" for word in words)
    ]


def run(mutants: Sequence[Mutant], root: Path = ROOT) -> int:
    """Print a line per mutant; status 1 if one lives or cannot be judged."""
    with tempfile.TemporaryDirectory(prefix="podlink-mutants-") as name:
        copy = Copy(Path(name))
        copy_tree(root, copy.folder)
        tests = {test for one in mutants for test in one.tests}
        wrong, ran, said = copy.run(tests)
        unfit = sorted(t for t in tests if as_junit(t) in wrong or as_junit(t) not in ran)
        if unfit:
            print("without any change these fail, or do not run here:", *unfit, said, sep="\n")
        alive = 0
        for one in mutants:
            left = ["not judged"] if set(one.tests) & set(unfit) else copy.breaks(one)
            alive += bool(left)
            print(f"{'ALIVE ' if left else 'killed'} {one.file}: {one.defence}", flush=True)
            for line in left:
                print(f"       {line}", flush=True)
    print(f"{len(mutants) - alive} of {len(mutants)} mutants are killed")
    return 1 if alive or unfit else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--list", action="store_true", help="print the defences, run nothing")
    parser.add_argument("words", nargs="*", help="only defences with one of these words")
    asked = parser.parse_args(arguments)
    mutants = repository()
    if wrong := problems(mutants):
        print(*wrong, sep="\n", file=sys.stderr)
        return 1
    wanted = chosen(mutants, asked.words)
    if asked.list:
        for one in wanted:
            print(f"{one.file}: {one.defence}", *(f"    {test}" for test in one.tests), sep="\n")
        return 0
    if not wanted:
        print(f"no defence has any of: {' '.join(asked.words)}", file=sys.stderr)
        return 1
    return run(wanted)


if __name__ == "__main__":
    raise SystemExit(main())
