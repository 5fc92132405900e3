"""What a program sees of its own certificate: the present one, and a call when it changes."""

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from certs.trust.bans import Bans
from certs.trust.contexts import TlsMaterial
from certs.trust.facts import LeafFacts


@dataclass(frozen=True, slots=True)
class Svid:
    """One leaf with its key and the bundle to judge peers by, all of one moment.

    Immutable: a renewal or a new bundle makes another one.
    """

    material: TlsMaterial
    facts: LeafFacts
    generation: int
    """Grows by one with every Svid of a source: equal means nothing changed."""
    expires_at: dt.datetime
    """The leaf's end by the wall clock (UTC)."""
    deadline: float
    """The leaf's end by this process's monotonic clock, which nobody can set back."""
    bundle_generation: int = 0
    """The CA's number of the bundle in `material`."""
    said_at: dt.datetime | None = None
    """What the issuer's clock showed when it signed, if it said so; and when that was heard, by the
    monotonic clock (which all processes of a machine share)."""
    heard_at: float = 0.0


Subscriber = Callable[[Svid], None]
"""Called in the event loop with each new Svid. Must not block."""


BansSubscriber = Callable[[Bans], None]
"""Called in the event loop with the bans in force, whenever they have changed. Must not block."""


class SvidSource(Protocol):
    @property
    def current(self) -> Svid | None:
        """The Svid to use now; None before the first, and again once it has expired."""

    def subscribe(self, callback: Subscriber) -> None:
        """Call `callback` with every later Svid. An error in it is logged and harms nobody else."""

    @property
    def bans(self) -> Bans:
        """Who is believed no more; the last word of the CA, also while it is away."""

    @property
    def refreshes(self) -> Mapping[str, int]:
        """How often the leaf was renewed (`ok`) and how often that failed (`failed`)."""

    def told_banned(self, by: str) -> None:
        """Somebody of the control plane says that we are banned (`by`: who, for the log). A source that
        hears its issuer's own word believes that instead."""

    def subscribe_bans(self, callback: BansSubscriber) -> None:
        """Call `callback` with every later change of the bans."""

    async def wait_ready(self) -> None:
        """Return once there has been a first Svid."""

    async def run(self) -> None:
        """Keep `current` fresh until cancelled."""
