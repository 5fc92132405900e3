"""Endpoints that failed sit out of the choice for a while. Pure: time is an argument.

When its time is over an endpoint is tried by one link, not by all: where a pod has vanished without a
word each try costs a whole connect time-out.
"""

from typing import Final, NamedTuple

EJECT_FIRST_S: Final = 1.0
EJECT_LONGEST_S: Final = 60.0
PROBE_S: Final = 2.0
"""How long the one link that tries an endpoint again keeps the others away; it has failed by then."""


class Ejection(NamedTuple):
    until: float
    """Monotonic end."""
    failures: int
    """In a row, so far."""


class Ejections:
    """Per (IP, port): each failure in a row makes it sit out twice as long; one success forgives all."""

    def __init__(self) -> None:
        self._ejected: dict[tuple[str, int], Ejection] = {}

    def __bool__(self) -> bool:
        return bool(self._ejected)

    def failed(self, ip: str, port: int, now: float) -> None:
        """A connect or handshake failed, another identity answered, or the app was not there."""
        known = self._ejected.get((ip, port))
        failures = known.failures if known is not None else 0
        sit_out = min(EJECT_LONGEST_S, EJECT_FIRST_S * 2.0 ** min(failures, 16))
        self._ejected[ip, port] = Ejection(now + sit_out, failures + 1)

    def worked(self, ip: str, port: int) -> None:
        if self._ejected:
            self._ejected.pop((ip, port), None)

    def tried(self, ip: str, port: int, now: float) -> None:
        """A link was sent to the endpoint: if it failed before, nobody else goes there until then."""
        known = self._ejected.get((ip, port))
        if known is not None:
            self._ejected[ip, port] = Ejection(max(known.until, now + PROBE_S), known.failures)

    def out(self, ip: str, port: int, now: float) -> bool:
        known = self._ejected.get((ip, port))
        return known is not None and known.until > now

    def listed(self, now: float) -> list[tuple[str, int, float, int]]:
        """Who sits out now: IP, port, seconds left, failures in a row."""
        return [
            (ip, port, one.until - now, one.failures)
            for (ip, port), one in sorted(self._ejected.items())
            if one.until > now
        ]

    def forget_before(self, now: float) -> None:
        """Drop those whose time has long passed, so that the table stays small."""
        old = [key for key, one in self._ejected.items() if one.until + EJECT_LONGEST_S < now]
        for key in old:
            del self._ejected[key]
