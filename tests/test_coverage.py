"""What `make coverage` leaves out, it leaves out for a reason that stands beside it."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONFIG: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["coverage"]
_PRAGMA = re.compile(r"#\s*pragma:\s*no\s*cover(.*)", re.I)
_REASON = re.compile(r" - \w+(?: \S+){2,}")


def left_out(line: str) -> bool:
    return any(re.search(pattern, line) for pattern in CONFIG["report"]["exclude_lines"])


def measured() -> list[Path]:
    return [path for folder in CONFIG["run"]["source"] for path in (ROOT / folder).rglob("*.py")]


def test_it_measures_what_judges_and_carries_and_takes_no_line_less_than_all() -> None:
    assert CONFIG["run"]["source"] == ["sidecar/dataplane", "sidecar/wire", "certs/trust", "policy"]
    assert CONFIG["report"]["fail_under"] == 100
    assert all((ROOT / folder).is_dir() for folder in CONFIG["run"]["source"])


def test_every_line_that_is_not_run_says_why() -> None:
    silent = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in measured()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if (found := _PRAGMA.search(line)) and not _REASON.fullmatch(found[1])
    ]
    assert not silent, silent


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("    raise Gone()  # pragma: no cover - a kernel before 5.1", True),
        ("    raise Gone()  # pragma: no cover", False),
        ("    raise Gone()  # pragma: no cover - ", False),
        ("class Owner(Protocol):", True),
        ("class Known(Sized, Protocol):", True),
        ("class Protocols(Sized):", False),
        ("    def known(self) -> int: ...", True),
        ("        ...", True),
        ("    seen = rows[..., 1]", False),
        ("    return seen[...]", False),
        ("if TYPE_CHECKING:", True),
        ("    raise NotImplementedError", False),
    ],
)
def test_a_line_is_left_out_only_for_a_reason(line: str, expected: bool) -> None:
    assert left_out(line) is expected
