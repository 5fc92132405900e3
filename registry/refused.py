"""What of the cluster's objects is left out because it does not fit: counted, and told once."""

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from kit.checked import Refused
from kit.limited_log import LimitedLog
from registry.endpoints import Dropped

_QUIET = frozenset({"stale_target"})  # each pod's end passes through it
_MAX_LOGGED = 5
_log = logging.getLogger(__name__)


class HasRefused(Protocol):
    @property
    def refused(self) -> tuple[Refused, ...]: ...


class RefusedFields:
    """Counts what is left out now, and logs what is left out anew. A tenant may change an object as
    often as it likes: the lines are limited.
    """

    def __init__(self) -> None:
        self.fields: Counter[tuple[str, ...]] = Counter()
        """By (kind, reason), of the objects as they are now."""
        self.endpoints: Counter[tuple[str, ...]] = Counter()
        """Addresses of Services that are not endpoints, by (reason,)."""
        self._dropped: dict[str, list[Dropped]] = {}
        self._limited = LimitedLog(_log)

    def changed(self, kind: str, key: str, old: HasRefused | None, new: HasRefused | None) -> None:
        """An object of `kind`, "namespace/name", as it was and as it is."""
        before = old.refused if old is not None else ()
        now = new.refused if new is not None else ()
        if before == now:
            return
        _shift(self.fields, ((kind, one.reason) for one in before), -1)
        _shift(self.fields, ((kind, one.reason) for one in now), 1)
        if fresh := [one for one in now if one not in before]:
            said = "; ".join(map(str, fresh[:_MAX_LOGGED]))
            self._limited.warning(
                "fields left out", kind=kind, object=key, count=len(fresh), fields=said
            )

    def dropped(self, service: str, dropped: list[Dropped]) -> None:
        """One line per Service whose refused addresses changed, with a few of them."""
        _shift(self.endpoints, ((one.reason,) for one in self._dropped.pop(service, ())), -1)
        _shift(self.endpoints, ((one.reason,) for one in dropped), 1)
        if dropped:
            self._dropped[service] = dropped
        worth = [one for one in dropped if one.reason not in _QUIET]
        if worth:
            shown = ", ".join(f"{one.claimed_ip!r} {one.reason}" for one in worth[:_MAX_LOGGED])
            self._limited.warning(
                "endpoint addresses refused", service=service, count=len(worth), addresses=shown
            )


def _shift(counts: Counter[tuple[str, ...]], of: Iterable[tuple[str, ...]], step: int) -> None:
    for labels in of:
        counts[labels] += step
        if not counts[labels]:
            del counts[labels]
