"""Which address an app sees as its caller's, and how often it was that of its peer.

An app is shown an address only if the pod can do so (`sidecar.source_check` has proven it) and only
one that is known to be the caller's own; else it sees the pod's, as without all this.
"""

from collections.abc import Iterable
from typing import Final

from sidecar.source_address import Source, stand_in

SHOWN: Final = "shown"
UNPROVEN: Final = "unproven"
"""The self-test has failed, or not run yet."""
NOT_DIRECT: Final = "not_direct"
"""Something has rewritten the address on the way, so that it says nothing of the peer."""
UNSUITABLE: Final = "unsuitable"
"""No address that another pod or host could have: link-local, or one that stands for others."""
NOT_BOUND: Final = "not_bound"
"""The kernel refused: the local route is gone, or every port of that address is taken."""


class Sources:
    """`wanted` is what the pod asks for; `own` are the pod's addresses."""

    def __init__(self, wanted: bool = False, own: Iterable[str] = ()) -> None:
        self.wanted, self._own = wanted, frozenset(own)
        self.why_not: dict[int, str] = {}
        """By IP version, for those that were tried and do not work."""
        self._proven: frozenset[int] = frozenset()
        self.counts: dict[str, int] = {}
        """Connections to the app by result. Those that were never to be shown are not counted."""

    @property
    def proven(self) -> frozenset[int]:
        """The IP versions for which a test has shown that the app sees what it should."""
        return self._proven

    def tested(self, version: int, why_not: str) -> None:
        """What the self-test has found: "" if an app sees its peer's address."""
        if why_not:
            self._proven -= {version}
            self.why_not[version] = why_not
        else:
            self._proven |= {version}
            self.why_not.pop(version, None)

    def seen(self, ip: str, port: int = 0, *, checked: bool = True) -> Source | None:
        """How the app comes to see `ip`, and `port` if it is free; None for the pod's own address.

        `checked`: whether whoever called has proven to be at that address.
        """
        if not self.wanted or ip in self._own:
            return None
        if (6 if ":" in ip else 4) not in self._proven:
            return self._not(UNPROVEN)
        if not checked:
            return self._not(NOT_DIRECT)
        source = stand_in(ip)
        if source is None:
            return self._not(UNSUITABLE)
        return source._replace(port=port) if port else source

    def _not(self, result: str) -> Source | None:
        self.count(result)
        return None

    def count(self, result: str) -> None:
        self.counts[result] = self.counts.get(result, 0) + 1
