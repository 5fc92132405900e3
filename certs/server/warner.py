"""Warns of ends that come near, as Events and log lines: roots at 60, 30 and 7 days, and pods that do
not renew. The metrics say the same in numbers.
"""

import asyncio
import datetime as dt
import logging
from collections.abc import Iterable

from cryptography import x509

from certs.records import Entry
from certs.server.events import Events
from certs.server.keeper import KeyKeeper
from certs.server.rotate import Rotator
from kit.clock import Clock

LOOK_EVERY_S = 30.0
ROOT_DAYS = (60, 30, 7)
_NAMED = 10
_log = logging.getLogger(__name__)


def root_warning(ends: dt.datetime, now: dt.datetime) -> str | None:
    """What to say of a certificate that signs and ends then; None while there is time."""
    left = ends - now
    if left <= dt.timedelta(0):
        return "has ended: nothing can be signed under it"
    for days in sorted(ROOT_DAYS):
        if left <= dt.timedelta(days=days):
            return f"ends within {days} days, at {ends.isoformat()}"
    return None


def overdue(entries: Iterable[Entry], now: dt.datetime) -> list[str]:
    """The pods past four fifths of their leaf's life, whose renewal is due at half of it."""
    return sorted(
        entry.pod
        for entry in entries
        if entry.issuer and now >= entry.issued_at + (entry.not_after - entry.issued_at) * 0.8
    )


class Warner:
    def __init__(self, keeper: KeyKeeper, rotator: Rotator, events: Events, clock: Clock) -> None:
        self._keeper, self._rotator, self._events, self._clock = keeper, rotator, events, clock

    async def run(self) -> None:
        """Look every LOOK_EVERY_S until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        now = self._clock()
        authority = self._keeper.authority
        certs = [*map(x509.load_der_x509_certificate, authority.bundle.roots), authority.issuer]
        for cert in dict.fromkeys(certs):
            if (text := root_warning(cert.not_valid_after_utc, now)) is not None:
                name = cert.subject.rfc4514_string()
                await self._events.warn(
                    "RootEndsSoon", f"{name} {text}; podlink rotate root --start"
                )
        late = overdue(self._rotator.living_leaves().values(), now)
        if late:
            more = f" and {len(late) - _NAMED} more" if len(late) > _NAMED else ""
            await self._events.warn(
                "RenewalsOverdue", f"do not renew: {', '.join(late[:_NAMED])}{more}"
            )
