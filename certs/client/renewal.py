"""When to ask for the next certificate. Pure: durations in seconds in and out, no clock, no I/O.

At half the life, give or take a tenth of it, so that pods which started together do not come back
together; after a failure with growing pauses that stay short against the life. Never sooner than
FLOOR_S: a leaf of seconds, or one that came late, must not make a hot loop; and never so late that
a short leaf starves.
"""

import random
from collections.abc import Callable

FLOOR_S = 1.0
_LONGEST_PAUSE_S = 30.0
Draw = Callable[[float, float], float]
"""Draws a number between two; `random.uniform` unless a test wants to know it."""


def renew_after_s(lifetime_s: float, draw: Draw = random.uniform) -> float:
    """How long after asking to ask again, for a leaf that lives `lifetime_s` from then on."""
    return max(FLOOR_S, lifetime_s * draw(0.45, 0.55))


def ask_for_addresses_after_s(lifetime_s: float, leaves_without: int) -> float:
    """How soon to ask again after the `leaves_without`-th leaf in a row that names no address.

    A pod may be quicker than the kubelet's report of its addresses, and peers refuse a leaf without
    them; so at first soon, then ever later (a pod on its node's network never gets one).
    """
    return min(renew_after_s(lifetime_s), FLOOR_S * 2.0 ** min(leaves_without, 16))


def longest_pause_s(lifetime_s: float) -> float:
    """The cap on the pause between failed tries: a tenth of the life, at most half a minute."""
    return max(FLOOR_S, min(_LONGEST_PAUSE_S, lifetime_s / 10))


def pause_s(drawn_s: float) -> float:
    """The pause to make when the back-off says `drawn_s`: never so short that tries turn hot."""
    return max(FLOOR_S / 4, drawn_s)
