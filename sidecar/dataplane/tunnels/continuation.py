"""The other way to outlive a leaf, for a tunnel in which no proof can be heard.

A proof waits behind the bytes before it. Where the app behind a proxy takes none, that proxy reads
none of the tunnel, and the proof would come too late. So in the last part of a leaf's life the dialler
makes a new tunnel to the same peer, by the full handshake with which each side judges the other's
newest leaf, and asks over it that the old one be believed by the leaves of the new:

    CONTINUE   which one: the dialler's port, and what only its two ends know  ->
                                                                               <-  CONTINUED  a code

What only the two ends know is a digest of the Finished message of the old tunnel's handshake (RFC 8446,
section 4.4.4): it is different for each TLS connection, and whoever sits between two of them has two.
"""

from collections.abc import Callable
from hmac import compare_digest
from typing import Final

from certs.trust.identity import WorkloadIdentity
from certs.trust.renewal import ProofRefused, check_same_workload
from sidecar.dataplane.loop.connect import CONNECT_TIMEOUT_S
from sidecar.dataplane.loop.deadlines import Deadline
from sidecar.dataplane.plane import LiveLink, Plane
from sidecar.dataplane.revocation import objection
from sidecar.dataplane.tunnels.dial import Dial
from sidecar.dataplane.tunnels.place import contradicted
from sidecar.dataplane.tunnels.tunnel import Tunnel
from sidecar.errors import ProtocolViolation, SidecarError
from sidecar.wire.frames import CONTINUE, CONTINUED, encode
from sidecar.wire.renewal import (
    BELIEVED,
    NOT_NOW,
    OTHER_WORKLOAD,
    decode_continue,
    decode_outcome,
    encode_continue,
    encode_outcome,
)
from sidecar.wire.session import Role

LAST_PART_S: Final = 300.0
"""So long before its end a tunnel that no proof has renewed is continued, or a third of its peer's
leaf's life: until then there is time for the proof."""
MOST_AT_ONCE: Final = 32
"""Tunnels that are continued by one new one: its budget of frames is twice that."""
WORTH_IT_S: Final = 1.0
"""Two handshakes by the same leaves end within a moment of each other, as the clocks are read."""
ANSWER_WITHIN_S: Final = 5.0
SOONEST_S: Final = 0.25
_LOOKED_EVERY_S: Final = 5.0

Key = tuple[str, int, WorkloadIdentity]
Moved = Callable[[Tunnel, Tunnel], None]
"""Have the first be believed by the leaves of the second."""


class Continuations:
    """Those of all tunnels of a plane, as dialler and as acceptor. `moved` does what both come to."""

    def __init__(self, plane: Plane, moved: Moved) -> None:
        self._plane, self._moved = plane, moved
        self._asking: dict[Key, _Asking] = {}
        self._not_before: dict[Key, float] = {}
        self._soon = False
        self._known: dict[tuple[str, int], list[Tunnel]] = {}
        """By where they come from. To two ports of ours a dialler may come from one port of its own."""
        self._known_at = -1.0

    # --- the dialler ------------------------------------------------------------------------

    def look(self) -> None:
        """Called every few seconds: continue what would end soon, peer by peer."""
        plane, now = self._plane, self._plane.now()
        ending: dict[Key, list[Tunnel]] = {}
        shortest_s = float("inf")
        for link in plane.live:
            tunnel = link.tunnel
            if tunnel is None or not tunnel.renewable or tunnel.session.role is Role.ACCEPTOR:
                continue
            life_s = (tunnel.peer.not_after - tunnel.peer.not_before).total_seconds()
            shortest_s = min(shortest_s, life_s)
            if tunnel.expires_at - now < min(LAST_PART_S, life_s / 3):
                key = (tunnel.peer_ip, tunnel.peer_port, tunnel.peer.identity)
                ending.setdefault(key, []).append(tunnel)
        self._not_before = {k: at for k, at in self._not_before.items() if at > now}
        for key, tunnels in ending.items():
            if key not in self._asking and key not in self._not_before:
                self._ask(key, tunnels)
        if shortest_s / 16 < _LOOKED_EVERY_S and not self._soon:
            self._soon = True
            plane.poller.call_later(max(SOONEST_S, shortest_s / 16), self._look_soon)

    def _look_soon(self) -> None:
        self._soon = False
        self.look()

    def broken(self, error: Exception) -> None:
        """One look failed; there will be another."""

    def _ask(self, key: Key, tunnels: list[Tunnel]) -> None:
        plane = self._plane
        trust = plane.usable_trust()
        if trust is None:
            return
        left_s = min(tunnel.expires_at for tunnel in tunnels) - plane.now()
        self._not_before[key] = plane.now() + max(SOONEST_S, left_s / 8)
        self._asking[key] = asking = _Asking(plane, key, tunnels, self._moved, self._over)
        asking.dial = Dial(plane, trust, *key, asking.dialled, CONNECT_TIMEOUT_S)
        asking.dial.start()

    def _over(self, key: Key, left: list[Tunnel]) -> None:
        """One new tunnel has done what it could; what it left is for another one, at once."""
        self._asking.pop(key, None)
        if left:
            self._ask(key, left)

    def answered(self, fresh: Tunnel, payload: bytes) -> None:
        """CONTINUED came. Raises ProtocolViolation."""
        asking = fresh.user
        if not isinstance(asking, _Asking):
            raise ProtocolViolation("CONTINUED that nobody asked for")
        asking.answered(decode_outcome(payload))

    # --- the acceptor -----------------------------------------------------------------------

    def asked(self, fresh: Tunnel, payload: bytes) -> None:
        """CONTINUE came. Raises ProtocolViolation."""
        port, channel = decode_continue(payload)
        plane = self._plane
        if not plane.renewal_rate.take(fresh.peer_ip, plane.now()):
            plane.count_turned_away("renewals_per_source")
            return self._say(fresh, NOT_NOW)
        old = self._find(fresh.peer_ip, port, channel)
        if old is None:
            return self._say(fresh, OTHER_WORKLOAD)
        if not may_continue(plane, old, fresh) or contradicted(plane, fresh.peer, fresh.peer_ip):
            return self._say(fresh, OTHER_WORKLOAD)
        link: LiveLink = old.link  # type: ignore[assignment]
        error = objection(plane, link)
        if error is not None:
            self._say(fresh, OTHER_WORKLOAD)
            return link.deny(error)
        self._moved(old, fresh)
        return self._say(fresh, BELIEVED)

    def _say(self, fresh: Tunnel, code: int) -> None:
        fresh.write(encode(CONTINUED, encode_outcome(code)))

    def _find(self, ip: str, port: int, channel: bytes) -> Tunnel | None:
        """The inbound tunnel with a link that comes from there and has this channel. Looked up in a list
        of a second's age at most: its making is what would cost."""
        plane = self._plane
        if plane.now() - self._known_at > 1.0:
            self._known_at, self._known = plane.now(), {}
            for link in plane.live:
                tunnel = link.tunnel
                if tunnel is not None and tunnel.session.role is Role.ACCEPTOR:
                    having = self._known.setdefault((tunnel.peer_ip, tunnel.peer_port), [])
                    if len(having) < MOST_AT_ONCE:
                        having.append(tunnel)
        for found in self._known.get((ip, port), ()):
            if not found.renewable or found.link is None or (own := found.channel) is None:
                continue
            if compare_digest(own, channel):
                return found
        return None


def may_continue(plane: Plane, old: Tunnel, fresh: Tunnel) -> bool:
    """Whether the far ends of both are one workload, and the new one's leaf ends no sooner."""
    if old.peer.sha256 == fresh.peer.sha256:
        return True
    try:
        check_same_workload(old.peer, fresh.peer, names_pods=plane.leaves_name_pods)
    except ProofRefused:
        return False
    return True


class _Asking:
    """A new tunnel to a peer, over which some old ones are continued one after the other."""

    def __init__(
        self,
        plane: Plane,
        key: Key,
        tunnels: list[Tunnel],
        moved: Moved,
        over: Callable[[Key, list[Tunnel]], None],
    ) -> None:
        self._plane, self._key = plane, key
        self._tunnels, self._left = tunnels[:MOST_AT_ONCE], tunnels[MOST_AT_ONCE:]
        self._moved, self._over = moved, over
        self._fresh: Tunnel | None = None
        self._old: Tunnel | None = None
        self._deadline: Deadline | None = None
        self.dial: Dial | None = None

    def dialled(self, tunnel: Tunnel | None, error: SidecarError | None) -> None:
        """The handshake has ended. Without a tunnel the next look tries again."""
        self.dial = None
        if tunnel is None:
            return self._over(self._key, [])
        self._fresh = tunnel
        tunnel.user = self
        self._next()
        if not tunnel.closed:
            tunnel.start()
        return None

    def _next(self) -> None:
        fresh = self._fresh
        assert fresh is not None
        while fresh.renewable and self._tunnels:
            old = self._tunnels.pop()
            channel = old.channel
            if old.closed or old.link is None or channel is None:
                continue
            if fresh.expires_at <= old.expires_at + WORTH_IT_S or not may_continue(
                self._plane, old, fresh
            ):
                continue  # there is no later leaf, on one side or the other
            self._old = old
            self._deadline = Deadline(self._plane.poller, ANSWER_WITHIN_S, self._too_late)
            fresh.write(encode(CONTINUE, encode_continue(old.near_port, channel)))
            return
        ip, port, identity = self._key
        self._plane.pool.give((ip, port, str(identity)), fresh)
        self._over(self._key, self._left)

    def answered(self, code: int) -> None:
        """What the peer says of the one that we have asked for."""
        old, self._old = self._old, None
        if old is None or self._deadline is None or self._fresh is None:
            raise ProtocolViolation("CONTINUED that nobody asked for")
        self._deadline.cancel()
        if code == BELIEVED and not old.closed and old.link is not None:
            self._moved(old, self._fresh)
        self._next()

    def broken(self, error: Exception) -> None:
        """Its own code failed: the tunnels end with their leaves."""
        self._end()

    def _too_late(self) -> None:
        self._end()

    def _end(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if self._fresh is not None:
            self._fresh.close()
        self._over(self._key, [])

    # --- TunnelUser -------------------------------------------------------------------------

    def tunnel_data(self, piece: memoryview) -> None:
        raise ProtocolViolation("DATA on an idle tunnel")

    def tunnel_control(self, kind: int, payload: bytes) -> None:
        """GOAWAY: it is minded by the tunnel, and what is under way may still be answered."""

    def tunnel_writable(self) -> None:
        """Nothing waits to be written."""

    def tunnel_lost(self, error: SidecarError) -> None:
        self._end()
