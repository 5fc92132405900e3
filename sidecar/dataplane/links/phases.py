"""The phases of a link, on either side, as one table.

    outbound   RESOLVING -> CONNECTING -> OPENING -> OPEN -> ENDED
    inbound    JUDGING -> CONNECTING -> OPEN -> ENDED

A dialler goes back from CONNECTING or OPENING to try another endpoint: until ACCEPT the app behind the
first one has seen nothing. Nothing leaves ENDED: whatever comes late finds a link that is over.
"""

import enum

from sidecar.errors import Bug


class Phase(enum.Enum):
    __hash__ = object.__hash__  # that of Enum is a Python call for each look into the table
    RESOLVING = "resolving"
    """Dialler: the registry is asked where the link goes."""
    JUDGING = "judging"
    """Acceptor: who the peer is is known; whether it may is not."""
    CONNECTING = "connecting"
    """A tunnel to the peer, or a connection to the app or to an address outside, is on its way."""
    OPENING = "opening"
    """Dialler: OPEN is sent, and not answered yet."""
    OPEN = "open"
    """Bytes move."""
    ENDED = "ended"


TRANSITIONS = {
    Phase.RESOLVING: frozenset({Phase.CONNECTING, Phase.ENDED}),
    Phase.JUDGING: frozenset({Phase.CONNECTING, Phase.ENDED}),
    Phase.CONNECTING: frozenset({Phase.RESOLVING, Phase.OPENING, Phase.OPEN, Phase.ENDED}),
    Phase.OPENING: frozenset({Phase.RESOLVING, Phase.CONNECTING, Phase.OPEN, Phase.ENDED}),
    Phase.OPEN: frozenset({Phase.ENDED}),
    Phase.ENDED: frozenset[Phase](),
}


def advance(now: Phase, then: Phase) -> Phase:
    """Returns `then`; raises Bug if no link goes there from `now`."""
    if then not in TRANSITIONS[now]:
        raise Bug(f"a link cannot go from {now.value} to {then.value}")
    return then
