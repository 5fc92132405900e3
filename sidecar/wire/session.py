"""Which frame may come when: the states of one tunnel, as a table.

One link at a time: IDLE, then OPENING from OPEN to its answer, then OPEN until both sides have sent
END, then IDLE again. After a REFUSE the acceptor goes through REFUSED, in which it throws away what
the dialler had sent before it read the refusal. Both sides use the same table, each for what it
receives; what we send ourselves is our own code's duty and asserted by `Session` too.
"""

import enum

from sidecar.errors import ProtocolViolation
from sidecar.wire.frames import (
    ACCEPT,
    CHALLENGE,
    CONTINUE,
    CONTINUED,
    DATA,
    END,
    GOAWAY,
    KIND_NAMES,
    OPEN,
    PING,
    PONG,
    PROOF,
    REFUSE,
    RENEW,
    RENEWED,
    RESET,
)


class Role(enum.Enum):
    __hash__ = object.__hash__  # that of Enum is a Python call for each look into the table
    DIALLER = "dialler"
    ACCEPTOR = "acceptor"


class Phase(enum.Enum):
    __hash__ = object.__hash__
    IDLE = "idle"
    OPENING = "opening"
    OPEN = "open"
    REFUSED = "refused"


_ALWAYS = frozenset({PING, PONG, GOAWAY, RENEW, CHALLENGE, PROOF, RENEWED})
"""Those of a renewal have an order of their own (sidecar.wire.renewal), beside any link."""
RECEIVABLE = {
    (Role.DIALLER, Phase.IDLE): _ALWAYS | {CONTINUED},
    (Role.DIALLER, Phase.OPENING): _ALWAYS | {ACCEPT, REFUSE, RESET},
    (Role.DIALLER, Phase.OPEN): _ALWAYS | {DATA, END, RESET},
    (Role.ACCEPTOR, Phase.IDLE): _ALWAYS | {OPEN, CONTINUE},
    (Role.ACCEPTOR, Phase.OPENING): _ALWAYS | {DATA, END, RESET},
    (Role.ACCEPTOR, Phase.OPEN): _ALWAYS | {DATA, END, RESET},
    (Role.ACCEPTOR, Phase.REFUSED): _ALWAYS | {DATA, END, RESET, OPEN},
}


class Session:
    """The state of one tunnel. Every method raises ProtocolViolation on a frame out of state.

    `data_allowed` is kept ready for the hot path: whether DATA may arrive now.
    """

    __slots__ = ("data_allowed", "far_ended", "near_ended", "phase", "role")

    def __init__(self, role: Role) -> None:
        self.role = role
        self.phase = Phase.IDLE
        self.near_ended = self.far_ended = self.data_allowed = False

    def received(self, kind: int) -> None:
        """Check a frame that came, and move on. DATA is checked by `data_allowed` alone."""
        if kind not in RECEIVABLE[self.role, self.phase]:
            raise ProtocolViolation(f"{KIND_NAMES[kind]} while {self.phase.value}")
        if kind == OPEN:
            self._to(Phase.OPENING)
        elif kind == ACCEPT:
            self._accepted()
        elif kind == REFUSE:
            self._to(Phase.IDLE)
        elif kind == END:
            if self.far_ended:
                raise ProtocolViolation("END twice")
            self.far_ended, self.data_allowed = True, False
            self._rest_if_over()

    def sent(self, kind: int) -> None:
        """Note a frame that we send; a frame out of state is our own bug."""
        if kind == OPEN:
            assert self.role is Role.DIALLER and self.phase is Phase.IDLE
            self._to(Phase.OPENING)
        elif kind == ACCEPT:
            assert self.role is Role.ACCEPTOR and self.phase is Phase.OPENING
            self._accepted()
        elif kind == REFUSE:
            assert self.role is Role.ACCEPTOR and self.phase is Phase.OPENING
            self._to(Phase.REFUSED)
        elif kind == END:
            assert self.phase in (Phase.OPENING, Phase.OPEN) and not self.near_ended
            self.near_ended = True
            self._rest_if_over()

    def _to(self, phase: Phase) -> None:
        self.phase = phase
        self.near_ended = self.far_ended = False
        self.data_allowed = DATA in RECEIVABLE[self.role, phase]

    def _accepted(self) -> None:
        """OPENING to OPEN keeps what has ended already: a dialler may send END before ACCEPT."""
        self.phase = Phase.OPEN
        self.data_allowed = not self.far_ended
        self._rest_if_over()

    def _rest_if_over(self) -> None:
        if self.phase is Phase.OPEN and self.near_ended and self.far_ended:
            self._to(Phase.IDLE)
