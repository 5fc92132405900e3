"""Finds waits in tests that a slow machine would not keep: `python -m tests.waits` (in `make check`).

A literal number of seconds in `asyncio.timeout` or `asyncio.wait_for`, as `timeout=` of any call, or as
the limit of a whole test, is somebody's guess of how fast a machine is. What must come is waited for
with `PATIENCE_S` (tests/patience.py). Less than a second is taken for a wait that is meant to end: what
must not come.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.patience import PATIENCE_S

_TESTS = Path(__file__).parent
_WHOLE_TEST_S = 300.0
"""pyproject's limit: a mark with less would end a test that is only slow."""
_EXEMPT = frozenset({_TESTS / "kubernetes", _TESTS / "e2e" / "apps.py", _TESTS / "mutants"})
"""A real cluster brings its own times, kubectl's and the kubelet's; an app of the mesh may lose
patience."""


def findings(source: str) -> Iterator[tuple[int, str]]:
    """Line and what is wrong there, for the source of a test file."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name == "asyncio.timeout" and node.args:
            limit = _number(node.args[0])
        elif name == "asyncio.wait_for":
            given = [*node.args[1:2], *(k.value for k in node.keywords if k.arg == "timeout")]
            limit = _number(given[0]) if given else None
        elif name == "pytest.mark.timeout" and node.args:
            limit = _number(node.args[0])
            if limit is not None and limit < _WHOLE_TEST_S:
                yield node.lineno, f"a mark of less than {_WHOLE_TEST_S:g} s: leave it out"
            continue
        else:
            given = [keyword.value for keyword in node.keywords if keyword.arg == "timeout"]
            limit = _number(given[0]) if given else None
        if limit is not None and 1 <= limit < PATIENCE_S:
            yield node.lineno, f"{name} with {limit:g} s: PATIENCE_S of tests/patience.py"


def _number(node: ast.expr) -> float | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return float(node.value)
    return None


def main() -> int:
    """Print what there is; 1 if there is anything."""
    found = [
        f"{path.relative_to(_TESTS.parent)}:{line}: {what}"
        for path in sorted(_TESTS.rglob("*.py"))
        if not _EXEMPT & {path, *path.parents}
        for line, what in findings(path.read_text())
    ]
    print("\n".join(found), file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
