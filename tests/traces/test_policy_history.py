"""Which policies were made, changed and deleted, as looks from time to time tell it."""

import json
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces import policy_history
from traces.policy_history import TABLES, Version, changes, note, watched

OPEN = json.dumps({"allow": [{"from": [{"namespace": "shop"}]}]})
SHUT = json.dumps({"allow": []})


def version(name: str = "db", spec: str = OPEN, generation: int = 1, uid: str = "u1") -> Version:
    return Version("prod", name, uid, generation, spec, "Current")


def store() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:")
    db.executescript(TABLES)
    return db


def told(db: sqlite3.Connection, since: int = 0, until: int = 10**9) -> list[tuple[str, str, int]]:
    return [(one.kind, one.policy, one.by_ns) for one in changes(db, since, until)]


def test_what_the_first_look_saw_was_there_before() -> None:
    db = store()
    assert watched(db) is None and told(db) == []
    note(db, [version()], 100)
    note(db, [version()], 130)
    assert told(db) == []
    assert watched(db) == (100, 130)


def test_a_policy_made_changed_and_deleted_is_told_with_what_it_said() -> None:
    db = store()
    note(db, [], 100)
    note(db, [version()], 130)
    note(db, [version(spec=SHUT, generation=2)], 160)
    note(db, [], 190)
    found = changes(db, 0, 10**9)
    assert [(one.kind, one.after_ns, one.by_ns) for one in found] == [
        ("created", 0, 130),
        ("changed", 130, 160),
        ("deleted", 160, 190),
    ]
    made, changed, deleted = (one.diff for one in found)
    assert all(line.startswith("+") for line in made.splitlines()[3:])
    assert "namespace: shop" in made
    assert "+allow: []" in changed and "-allow:" in changed
    assert deleted.splitlines()[3:] == ["-allow: []"]
    assert told(db, 150, 180) == [("changed", "prod/db", 160)]
    assert told(db, 190, 190) == []


def test_a_policy_deleted_while_nobody_looked_is_known_by_the_next_look() -> None:
    db = store()
    note(db, [version(), version("cache", uid="u2")], 100)
    note(db, [version("cache", uid="u2")], 900)
    assert told(db) == [("deleted", "prod/db", 900)]
    assert changes(db, 0, 10**9)[0].after_ns == 100


def test_what_was_unreadable_is_said_to_let_nobody_in() -> None:
    db = store()
    note(db, [version()], 100)
    note(db, [Version("prod", "db", "u1", 0, "", "Closed")], 130)
    [change] = changes(db, 0, 10**9)
    assert "+# cannot be read: lets nobody in" in change.diff


def test_the_number_of_forms_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_history, "MAX_VERSIONS", 5)
    db = store()
    for number in range(30):
        note(db, [version(generation=number)], 100 + number)
    assert db.execute("SELECT count(*) FROM policies").fetchone()[0] == 6
    note(db, [version(generation=29)], 200 + policy_history.KEEP_NS)
    assert db.execute("SELECT count(*) FROM policies").fetchone()[0] == 1


_looks = st.lists(
    st.frozensets(st.tuples(st.sampled_from("ab"), st.integers(1, 3)), max_size=2), max_size=8
)


@given(_looks)
def test_played_back_the_changes_lead_from_the_first_look_to_the_last(
    looks: list[frozenset[tuple[str, int]]],
) -> None:
    db, states = store(), []
    for number, look in enumerate(looks):
        state = dict(sorted(look))  # one form of each name
        states.append(state)
        note(db, [version(n, json.dumps({"g": g}), g, n) for n, g in state.items()], 100 + number)
    if not states:
        return
    state = dict(states[0])
    for one in changes(db, 0, 10**9):
        name = one.policy.removeprefix("prod/")
        if one.kind == "deleted":
            del state[name]
        else:
            assert (name in state) == (one.kind == "changed")
            state[name] = one.generation
    assert state == states[-1]
