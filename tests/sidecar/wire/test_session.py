"""The states of a tunnel, read off the table."""

import itertools
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import ProtocolViolation
from sidecar.wire.frames import ACCEPT, DATA, END, KIND_NAMES, OPEN, PING, REFUSE
from sidecar.wire.session import RECEIVABLE, Phase, Role, Session


def accepted(role: Role) -> Session:
    session = Session(role)
    first, answer = (session.sent, session.received)
    if role is Role.ACCEPTOR:
        first, answer = answer, first
    first(OPEN)
    answer(ACCEPT)
    return session


def test_no_data_may_arrive_before_a_link_is_accepted_on_the_diallers_side() -> None:
    for phase in (Phase.IDLE, Phase.OPENING):
        assert DATA not in RECEIVABLE[Role.DIALLER, phase]


def test_no_data_may_arrive_at_an_acceptor_before_open() -> None:
    assert DATA not in RECEIVABLE[Role.ACCEPTOR, Phase.IDLE]


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("near_first", [True, False])
def test_a_tunnel_rests_once_both_sides_have_ended(role: Role, near_first: bool) -> None:
    session = accepted(role)
    ends = [partial(session.sent, END), partial(session.received, END)]
    for end in ends if near_first else ends[::-1]:
        assert session.phase is Phase.OPEN
        end()
    assert session.phase is Phase.IDLE
    assert not session.data_allowed


def test_an_end_before_accept_counts_after_it() -> None:
    session = Session(Role.ACCEPTOR)
    session.received(OPEN)
    session.received(END)
    session.sent(ACCEPT)
    assert not session.data_allowed
    session.sent(END)
    assert session.phase is Phase.IDLE


def test_after_a_refusal_the_tunnel_takes_another_open() -> None:
    session = Session(Role.ACCEPTOR)
    session.received(OPEN)
    session.sent(REFUSE)
    assert session.data_allowed, "what was under way is thrown away, not an error"
    session.received(END)
    session.received(OPEN)
    assert session.phase is Phase.OPENING


@pytest.mark.attack_row(21)
@pytest.mark.parametrize(
    ("role", "phase", "kind"),
    [
        (role, phase, kind)
        for (role, phase), allowed in RECEIVABLE.items()
        for kind in KIND_NAMES
        if kind not in allowed and kind != DATA
    ],
)
def test_a_frame_out_of_state_is_refused(role: Role, phase: Phase, kind: int) -> None:
    session = Session(role)
    session._to(phase)
    with pytest.raises(ProtocolViolation):
        session.received(kind)


def test_a_second_end_is_refused() -> None:
    session = accepted(Role.ACCEPTOR)
    session.received(END)
    with pytest.raises(ProtocolViolation, match="END twice"):
        session.received(END)


@given(st.sampled_from(Role), st.lists(st.sampled_from(sorted(KIND_NAMES)), max_size=12))
def test_whatever_comes_is_taken_or_refused_and_ping_always_taken(
    role: Role, kinds: list[int]
) -> None:
    session = Session(role)
    for kind in itertools.chain(kinds, [PING]):
        if kind == DATA:
            continue
        try:
            session.received(kind)
        except ProtocolViolation:
            assert kind != PING
