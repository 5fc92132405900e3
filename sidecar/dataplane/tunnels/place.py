"""Whether a peer speaks from where its leaf's pod is, by the registry's word on addresses.

A leaf is one pod's: its serial carries a digest of the pod's UID, and it names the pod's addresses.
Whoever has carried it off speaks from an address that is another pod's, or in the name of a pod that is
no more (docs/threat-model.md, attack 63). Asked for each link, so that a pod's deletion reaches tunnels
that are open. Only what the registry says contradicts a leaf: while it says nothing, the leaf counts.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

from certs.trust.bans import is_of_pod
from certs.trust.facts import LeafFacts
from sidecar.dataplane.plane import Plane
from sidecar.dataplane.tunnels.tunnel import Tunnel
from sidecar.directory import External, Found, Gone, Service, Workload
from sidecar.errors import LeafElsewhere

SILENCE_S: Final = 1.0
"""How long a link waits for the registry's first word about its peer's address."""
WAIT_S: Final = 2.0
"""How long for another word, where the present one contradicts: a new pod may not be known yet, or an
address have changed hands a moment ago."""
_POLL_S: Final = 0.1
_AGAIN_S: Final = 0.5

Placed = Callable[[LeafElsewhere | None], None]


def contradiction(leaf: LeafFacts, ip: str, found: Found | None, *, tagged: bool, own: bool) -> str:
    """Why a leaf cannot be of the peer at `ip` ("": it can, or nobody says otherwise), where the
    registry says `found` of that address. `own`: the address stands in the leaf, so its pod must be
    there. `tagged`: the CA writes the pod into the serial; else the identity is compared. Pure.

    What rewrites sources (a node, a gateway) has an address that is no pod's own: it proves nothing.
    """
    if isinstance(found, Workload) and not found.host_network:
        same = is_of_pod(leaf.serial, found.uid) if tagged else found.identity == leaf.identity
        return "" if same else f"{ip} is {found.pod}'s, and the leaf another pod's"
    if isinstance(found, Gone) and (own or found.pod):
        return f"nobody has {ip} any more"
    if own and isinstance(found, External | Service):
        return f"no pod has {ip}, which stands in the leaf"
    return ""


def places(leaf: LeafFacts, ip: str) -> list[tuple[str, bool]]:
    """The addresses to be asked about, and whether each stands in the leaf. Pure."""
    if ip in leaf.ips or not leaf.ips:
        return [(ip, ip in leaf.ips)]
    return [(ip, False), (min(leaf.ips), True)]


def contradicted(plane: Plane, leaf: LeafFacts, peer_ip: str) -> str:
    """What the registry has said so far against this leaf at that address; "": nothing."""
    found = (
        contradiction(leaf, ip, plane.directory.known(ip), tagged=plane.serials_name_pods, own=own)
        for ip, own in places(leaf, peer_ip)
    )
    return next(filter(None, found), "")


def fits(plane: Plane, tunnel: Tunnel) -> bool:
    """Whether everything is known about a peer's place, and nothing contradicts its leaf. As for nearly
    every link: only the first one from an address has to ask."""
    known, leaf = plane.directory.known, tunnel.peer
    return all(
        (found := known(ip)) is not None
        and not contradiction(leaf, ip, found, tagged=plane.serials_name_pods, own=own)
        for ip, own in places(leaf, tunnel.peer_ip)
    )


class PlaceQuestion:
    """Asks the registry about a peer's place until it fits or time is up; then `done` is called once."""

    __slots__ = (
        "_again_at",
        "_done",
        "_over",
        "_places",
        "_plane",
        "_tunnel",
        "_unheard",
        "_until",
    )

    def __init__(self, plane: Plane, tunnel: Tunnel, done: Placed) -> None:
        self._plane, self._tunnel, self._done = plane, tunnel, done
        self._places = places(tunnel.peer, tunnel.peer_ip)
        self._until = plane.now() + WAIT_S
        self._again_at = plane.now() + _AGAIN_S
        self._unheard: set[str] = set()
        """Addresses whose first word is waited for."""
        self._over = False

    def start(self) -> None:
        """`done` may be called before this returns."""
        known = self._plane.directory.known
        self._unheard = {ip for ip, _ in self._places if known(ip) is None}
        why = self._why()
        if not why and not self._unheard:
            return self._end(None)
        for ip in sorted(self._unheard):
            self._plane.directory.ask(ip, partial(self._heard, ip))
        if why:
            self._ask_anew()
        if self._over:
            return None
        self._plane.poller.call_later(SILENCE_S, self._silent)
        self._plane.poller.call_later(_POLL_S, self._poll)
        return None

    def _why(self) -> str:
        """What contradicts the leaf by what is known now."""
        return contradicted(self._plane, self._tunnel.peer, self._tunnel.peer_ip)

    def _heard(self, ip: str, _found: Found | None) -> None:
        self._unheard.discard(ip)
        self._plane.poller.call(self._look)

    def _silent(self) -> None:
        self._unheard.clear()
        self._look()

    def _ask_anew(self) -> None:
        self._again_at = self._plane.now() + _AGAIN_S
        for ip, _ in self._places:
            self._plane.directory.ask_anew(ip, self._heard_anew)

    def _heard_anew(self, _found: Found | None) -> None:
        self._plane.poller.call(self._look)

    def _look(self) -> None:
        if self._over or self._unheard:
            return None
        why = self._why()
        if not why:
            return self._end(None)
        if self._plane.now() >= self._until:
            return self._end(LeafElsewhere(f"{self._tunnel.peer.identity}: {why}"))
        return None

    def _poll(self) -> None:
        if self._over:
            return
        self._look()
        if not self._over:
            if self._plane.now() >= self._again_at:
                self._ask_anew()
            self._plane.poller.call_later(_POLL_S, self._poll)

    def broken(self, error: Exception) -> None:
        """Its own code, or that of whoever waits for the answer, failed."""
        self._over = True
        self._plane.poller.tell(self._done, error)

    def _end(self, error: LeafElsewhere | None) -> None:
        self._over = True
        self._done(error)
