"""The rotation of a root, without a cluster: every decision is a table."""

import datetime as dt
import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.rotation import (
    LEGAL,
    MAX_NAMES,
    Action,
    Move,
    Phase,
    Rotation,
    RotationMalformed,
    RotationOrder,
    RotationRefused,
    Seen,
    Timing,
    decide,
    gates,
    is_due,
)

NOW = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
TIMING = Timing()
AFTER_ALL = HOUR + TIMING.stale + dt.timedelta(seconds=60)
BEGUN = Rotation(Phase.PUBLISHING, NOW, "somebody")
SIGNING = replace(BEGUN, phase=Phase.SIGNING, leaves_end=NOW + AFTER_ALL)
RETURNING = replace(SIGNING, phase=Phase.RETURNING)


def order(action: Action, **more: Any) -> RotationOrder:
    return RotationOrder("1", action, **more)


def at(minutes: float, **more: Any) -> Seen:
    return Seen(NOW + dt.timedelta(minutes=minutes), **more)


def test_without_an_order_or_a_schedule_nothing_begins() -> None:
    assert decide(None, at(0), TIMING) == Move(False)


def test_an_order_or_the_schedule_begins_and_only_the_schedule_goes_on_by_itself() -> None:
    by_hand = decide(None, at(0), TIMING, order("start", by="me"))
    assert (by_hand.moves, by_hand.to) == (True, Phase.PUBLISHING)
    assert by_hand.rotation == replace(BEGUN, by="me")
    by_schedule = decide(None, at(0), TIMING, None, "schedule")
    assert by_schedule.rotation == replace(BEGUN, by="schedule", automatic=True)


@pytest.mark.fault_row("rotation-laggard")
@pytest.mark.parametrize(
    ("seen", "gate"),
    [
        (at(5, unacknowledged=("shop/api-1",)), "unacknowledged"),
        (at(5, unpublished=("shop",)), "unpublished"),
        (at(5, behind=("podlink-ca-2",)), "behind"),
        (at(1), "settling"),
    ],
)
def test_the_signer_is_not_switched_while_a_gate_is_shut(seen: Seen, gate: str) -> None:
    automatic = replace(BEGUN, automatic=True)
    assert [g.name for g in gates(automatic, seen, TIMING)] == [gate]
    assert not decide(automatic, seen, TIMING).moves
    answer = decide(BEGUN, seen, TIMING, order("advance"))
    assert not answer.moves
    assert answer.said.startswith("not yet: ")
    opened = decide(automatic, at(5), TIMING)
    assert (opened.moves, opened.to) == (True, Phase.SIGNING), "the positive control"


@pytest.mark.fault_row("rotation-laggard")
def test_only_those_who_are_named_are_left_behind() -> None:
    seen = at(5, unacknowledged=("shop/api-1", "shop/api-2"))
    one = decide(BEGUN, seen, TIMING, order("advance", force=frozenset({"shop/api-1"})))
    assert not one.moves
    assert "shop/api-2" in one.said and "shop/api-1" not in one.said
    assert one.rotation is not None and one.rotation.forced == {"shop/api-1"}
    both = decide(one.rotation, seen, TIMING, order("advance", force=frozenset({"shop/api-2"})))
    assert both.to is Phase.SIGNING
    assert both.rotation is not None and not both.rotation.forced, "the next step forgives nobody"
    with pytest.raises(RotationRefused, match="nothing waits for shop/api-9"):
        decide(BEGUN, seen, TIMING, order("advance", force=frozenset({"shop/api-9"})))


def test_a_rotation_by_hand_waits_for_its_order_though_all_gates_are_open() -> None:
    assert not decide(BEGUN, at(60), TIMING).moves
    assert decide(BEGUN, at(60), TIMING, order("advance")).to is Phase.SIGNING


@pytest.mark.parametrize("rotation", [SIGNING, RETURNING])
def test_the_root_that_goes_stays_until_the_last_leaf_under_it_has_ended(
    rotation: Rotation,
) -> None:
    automatic = replace(rotation, automatic=True)
    early = Seen(NOW + AFTER_ALL - dt.timedelta(seconds=1), old_leaves=("shop/api-1",))
    assert not decide(automatic, early, TIMING).moves
    (gate,) = gates(automatic, early, TIMING)
    assert (gate.name, gate.names) == ("old_leaves", ("shop/api-1",))
    done = decide(automatic, Seen(NOW + AFTER_ALL), TIMING)
    assert (done.moves, done.to, done.rotation) == (True, None, None)


def test_leaves_that_a_ca_signs_which_has_not_heard_yet_are_waited_for() -> None:
    moved = decide(replace(BEGUN, automatic=True), at(5), TIMING)
    assert moved.rotation is not None and moved.rotation.leaves_end is not None
    assert moved.rotation.leaves_end >= at(5).now + TIMING.longest_leaf + TIMING.stale


def test_an_abort_goes_back_the_way_it_came() -> None:
    early = decide(BEGUN, at(1), TIMING, order("abort"))
    assert (early.moves, early.to) == (True, None)
    late = decide(SIGNING, at(1), TIMING, order("abort"))
    assert (late.moves, late.to) == (True, Phase.RETURNING)
    assert late.rotation is not None and late.rotation.automatic, "it ends by itself"
    with pytest.raises(RotationRefused, match="already"):
        decide(RETURNING, at(1), TIMING, order("abort"))


@pytest.mark.parametrize("action", ["advance", "abort"])
def test_without_a_rotation_there_is_nothing_to_advance_or_abort(action: Action) -> None:
    with pytest.raises(RotationRefused, match="no rotation"):
        decide(None, at(0), TIMING, order(action))


@pytest.mark.parametrize("rotation", [BEGUN, SIGNING, RETURNING])
def test_two_rotations_at_once_are_refused(rotation: Rotation) -> None:
    with pytest.raises(RotationRefused, match="already"):
        decide(rotation, at(0), TIMING, order("start"))


names = st.frozensets(st.sampled_from(["a/1", "b/2", "c/3"]))


@given(
    st.sampled_from([None, BEGUN, SIGNING, RETURNING]),
    st.integers(-10, 200),
    names,
    names,
    st.sampled_from([None, "start", "advance", "abort"]),
    st.booleans(),
)
def test_whatever_is_seen_only_legal_steps_are_taken_and_none_past_a_shut_gate(
    rotation: Rotation | None,
    minutes: int,
    lagging: frozenset[str],
    forced: frozenset[str],
    action: Action | None,
    automatic: bool,
) -> None:
    if rotation is not None:
        rotation = replace(rotation, automatic=automatic)
    seen = at(minutes, unacknowledged=tuple(lagging))
    asked = order(action, force=forced) if action else None
    try:
        move = decide(rotation, seen, TIMING, asked)
    except RotationRefused:
        return
    phase = rotation.phase if rotation else None
    if move.moves:
        assert move.to in LEGAL[phase]
        if move.to is Phase.SIGNING:
            assert lagging <= forced
            assert minutes >= 2
        if phase in (Phase.SIGNING, Phase.RETURNING) and move.to is None:
            assert seen.now >= NOW + AFTER_ALL
    else:
        assert (move.rotation.phase if move.rotation else None) is phase


def test_a_rotation_reads_back_as_it_was_stored() -> None:
    for rotation in (BEGUN, SIGNING, replace(RETURNING, forced=frozenset({"a/1"}), automatic=True)):
        assert Rotation.from_json(rotation.to_json()) == rotation
    asked = order("advance", force=frozenset({"x", "y"}), by="me", automatic=True)
    assert RotationOrder.from_json(asked.to_json()) == asked


@pytest.mark.fault_row("corrupt-state")
@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"phase": "none"}',
        BEGUN.to_json().replace("publishing", "signing"),
        BEGUN.to_json().replace("+00:00", ""),
        BEGUN.to_json()[:-1],
    ],
)
def test_a_rotation_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(RotationMalformed):
        Rotation.from_json(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"id": "1", "action": "drop"}',
        '{"id": "", "action": "start"}',
        '{"id": "1", "action": "start", "at_once": true}',
    ],
)
def test_an_order_with_anything_unknown_in_it_is_not_guessed_at(text: str) -> None:
    with pytest.raises(RotationMalformed):
        RotationOrder.from_json(text)


def test_a_gate_names_fifty_and_counts_the_rest() -> None:
    seen = at(5, unacknowledged=tuple(f"shop/api-{n:03}" for n in range(MAX_NAMES + 7)))
    (gate,) = gates(BEGUN, seen, TIMING)
    assert len(gate.names) == MAX_NAMES + 1
    assert gate.names[-1] == "and 7 more"
    assert gate.text.startswith("57 pods")


def test_the_schedule_looks_at_the_age_and_at_the_end() -> None:
    year, ends = dt.timedelta(days=365), NOW + dt.timedelta(days=3650)
    assert not is_due(NOW, ends, NOW + year - HOUR, year)
    assert is_due(NOW, ends, NOW + year, year)
    assert is_due(NOW, ends, ends - dt.timedelta(days=100), 20 * year)
    assert not is_due(NOW, ends, ends, dt.timedelta(0)), "never asked for"


def test_every_phase_has_a_way_out_and_none_can_be_entered_from_nowhere() -> None:
    reached: set[Phase | None] = {None}
    for _ in Phase:
        reached |= set(itertools.chain.from_iterable(LEGAL[p] for p in reached))
    assert reached == {None, *Phase}
    assert all(None in LEGAL[p] for p in Phase)
