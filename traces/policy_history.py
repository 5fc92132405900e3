"""What LinkPolicies said, and when that changed: one row for each form of each policy that a look saw.

A look compares what is in force with the rows that are not over: so what was deleted is known, whoever
deleted it and whether or not anybody was looking just then.
"""

import difflib
import json
import sqlite3
from collections.abc import Iterable
from typing import Final, NamedTuple

MAX_VERSIONS: Final = 20_000
"""Of all policies; beyond it the forms that ended first are forgotten."""
KEEP_NS: Final = 400 * 86_400 * 10**9
_MAX_DIFF_LINES: Final = 400

TABLES: Final = """
CREATE TABLE IF NOT EXISTS policies (
    id INTEGER PRIMARY KEY,
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    uid TEXT NOT NULL,
    generation INTEGER NOT NULL,
    spec TEXT NOT NULL,                 -- JSON of the form in force; empty: unreadable, lets nobody in
    state TEXT NOT NULL,                -- Current, Audited, LastGood or Closed
    first_ns INTEGER NOT NULL,          -- the first and the last look that saw it
    last_ns INTEGER NOT NULL,
    gone_ns INTEGER                     -- the first look that did not; NULL: in force
);
CREATE INDEX IF NOT EXISTS policies_by_end ON policies (gone_ns);
CREATE TABLE IF NOT EXISTS policy_looks (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    first_ns INTEGER NOT NULL,
    last_ns INTEGER NOT NULL
);
"""


class Version(NamedTuple):
    """One form of one LinkPolicy."""

    namespace: str
    name: str
    uid: str
    generation: int
    spec: str
    state: str


class Change(NamedTuple):
    """A policy was made, changed or deleted between two looks."""

    policy: str
    """`namespace/name`."""
    kind: str
    """`created`, `changed` or `deleted`."""
    after_ns: int
    """The last look before it; 0 if there was none."""
    by_ns: int
    """The look that saw it."""
    generation: int
    state: str
    diff: str
    """Of the spec as YAML, in unified form."""


def note(db: sqlite3.Connection, versions: Iterable[Version], now_ns: int) -> None:
    """A look saw these, and nothing else. Inside the writer's transaction."""
    seen = set(versions)
    standing = {
        Version(*row[1:7]): row[0]
        for row in db.execute(
            "SELECT id, namespace, name, uid, generation, spec, state FROM policies "
            "WHERE gone_ns IS NULL"
        )
    }
    db.executemany(
        "UPDATE policies SET gone_ns = ? WHERE id = ?",
        [(now_ns, number) for version, number in standing.items() if version not in seen],
    )
    db.execute("UPDATE policies SET last_ns = ? WHERE gone_ns IS NULL", (now_ns,))
    db.executemany(
        "INSERT INTO policies (namespace, name, uid, generation, spec, state, first_ns, last_ns) "
        "VALUES (?,?,?,?,?,?,?,?)",
        [(*version, now_ns, now_ns) for version in sorted(seen - standing.keys())],
    )
    db.execute(
        "INSERT INTO policy_looks VALUES (1, ?, ?) ON CONFLICT (id) DO UPDATE SET last_ns = ?",
        (now_ns, now_ns, now_ns),
    )
    db.execute(
        "DELETE FROM policies WHERE gone_ns < ? OR id IN (SELECT id FROM policies WHERE gone_ns "
        "IS NOT NULL ORDER BY gone_ns DESC LIMIT -1 OFFSET ?)",
        (now_ns - KEEP_NS, MAX_VERSIONS),
    )


def watched(db: sqlite3.Connection) -> tuple[int, int] | None:
    """When the first and the last look were; None: nobody ever looked."""
    row = db.execute("SELECT first_ns, last_ns FROM policy_looks").fetchone()
    return None if row is None else (int(row[0]), int(row[1]))


def changes(db: sqlite3.Connection, since_ns: int, until_ns: int) -> list[Change]:
    """What was made, changed or deleted in [since, until), in order. What the very first look saw was
    there before: nobody knows since when."""
    looks = watched(db)
    if looks is None:
        return []
    rows = db.execute(
        "SELECT namespace, name, generation, spec, state, first_ns, last_ns, gone_ns FROM policies "
        "WHERE first_ns < ? ORDER BY namespace, name, first_ns, id",
        (until_ns,),
    ).fetchall()
    found: list[Change] = []
    for index, row in enumerate(rows):
        namespace, name, generation, spec, state, first_ns, _, gone_ns = row
        policy = f"{namespace}/{name}"
        before = (
            rows[index - 1] if index and tuple(rows[index - 1][:2]) == (namespace, name) else None
        )
        if before is not None and before[7] is not None and before[7] == first_ns:
            kind, old, after_ns = "changed", before[3], before[6]
        else:
            kind, old, after_ns = "created", "", 0
        if first_ns >= since_ns and first_ns > looks[0]:
            text = diff(old, spec, empty=kind == "created")
            found.append(Change(policy, kind, after_ns, first_ns, generation, state, text))
        after = rows[index + 1] if index + 1 < len(rows) else None
        replaced = (
            after is not None and tuple(after[:2]) == (namespace, name) and after[5] == gone_ns
        )
        if gone_ns is not None and since_ns <= gone_ns < until_ns and not replaced:
            text = diff(spec, "", gone=True)
            found.append(Change(policy, "deleted", row[6], gone_ns, generation, state, text))
    found.sort(key=lambda one: (one.by_ns, one.policy))
    return found


def diff(old: str, new: str, *, empty: bool = False, gone: bool = False) -> str:
    """Two specs as YAML, compared line by line."""
    lines = list(
        difflib.unified_diff(
            [] if empty else _lines(old),
            [] if gone else _lines(new),
            "before",
            "after",
            lineterm="",
        )
    )
    cut = lines[:_MAX_DIFF_LINES]
    return "\n".join(cut + [f"... {len(lines) - len(cut)} more lines"] * (len(lines) > len(cut)))


def _lines(spec: str) -> list[str]:
    import yaml

    if not spec:
        return ["# cannot be read: lets nobody in"]
    text: str = yaml.safe_dump(json.loads(spec), sort_keys=True)
    return text.splitlines()
