"""docs/reasons.md and the code agree, in both directions."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from sidecar import errors
from sidecar.errors import LocalError, PeerError, SidecarError
from sidecar.report import PlaintextReason
from sidecar.wire.opening import REFUSALS, RESETS

ROOT = Path(__file__).resolve().parents[2]
DOC = (ROOT / "docs" / "reasons.md").read_text()
ROW = re.compile(r"^\| `([a-z_]+)` \| ([^|]+) \|", re.M)
BASES = (SidecarError, PeerError, LocalError)


def rows(heading: str) -> list[tuple[str, str]]:
    section = DOC.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    found = ROW.findall(section)
    assert found
    assert len(found) == section.count("\n| `"), "a row is not of the expected form"
    return found


def leaves(of: type[SidecarError] = SidecarError) -> Iterator[type[SidecarError]]:
    for kind in of.__subclasses__():
        if kind.__module__ == errors.__name__:
            if kind not in BASES:
                yield kind
            yield from leaves(kind)


def _texts(value: ast.expr) -> Iterator[str]:
    if isinstance(value, ast.IfExp):
        yield from _texts(value.body)
        yield from _texts(value.orelse)
    elif isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value


def test_the_table_lists_every_reason_of_a_link_and_who_is_to_blame() -> None:
    expected = {kind.reason: _blame(kind) for kind in leaves()}
    expected |= dict.fromkeys(get_args(PlaintextReason), "none")
    assert dict(rows("Links")) == expected


def _blame(kind: type[SidecarError]) -> str:
    return (
        "peer"
        if issubclass(kind, PeerError)
        else "local"
        if issubclass(kind, LocalError)
        else "bug"
    )


def test_every_error_has_a_reason_of_its_own() -> None:
    reasons = [kind.reason for kind in leaves()]
    assert len(set(reasons)) == len(reasons)
    assert SidecarError.reason not in reasons


def test_the_words_of_refusals_and_resets_are_those_of_the_wire() -> None:
    expected = [(word, "REFUSE") for word in REFUSALS.values()]
    expected += [(word, "RESET") for word in RESETS.values()]
    assert rows("How a link was refused or reset by the peer") == expected


def test_every_word_for_an_end_is_in_the_table() -> None:
    said = set(RESETS.values())
    for path in (ROOT / "sidecar" / "dataplane").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name, texts = getattr(node.func, "attr", ""), [t for a in node.args for t in _texts(a)]
            if name in ("_finish", "_end", "_report", "cut"):
                said |= set(texts)
            said |= {t for k in node.keywords if k.arg == "close" for t in _texts(k.value)}
        said |= {
            text
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef) and node.name in ("_fail", "_end")
            for default in node.args.defaults
            for text in _texts(default)
        }
    assert {word for word, _ in rows("How a link ended")} == said
