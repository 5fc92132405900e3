"""A peer's tunnel on the acceptor's side, and the set of all of them, counted by source address."""

from collections.abc import Callable, Iterator
from typing import Final

from certs.trust.facts import LeafFacts
from sidecar.dataplane.plane import Plane
from sidecar.dataplane.records import describe_peer, new_record
from sidecar.dataplane.tunnels.tunnel import Tunnel
from sidecar.errors import PeerLost, SidecarError
from sidecar.wire.frames import GOAWAY, GOAWAY_FRAME, OPEN

Opened = Callable[["InboundTunnel", Tunnel, bytes], None]
"""Begins a link for an OPEN with this payload; raises ProtocolViolation if it is malformed."""


class InboundTunnels(dict["InboundTunnel", None]):
    """A set in the order of coming that knows how many of its members one address has."""

    def __init__(self) -> None:
        super().__init__()
        self._by_ip: dict[str, int] = {}

    def add(self, tunnel: "InboundTunnel") -> None:
        if tunnel not in self:
            self[tunnel] = None
            self._by_ip[tunnel.peer_ip] = self._by_ip.get(tunnel.peer_ip, 0) + 1

    def discard(self, tunnel: "InboundTunnel") -> None:
        if tunnel in self:
            del self[tunnel]
            left = self._by_ip[tunnel.peer_ip] - 1
            if left:
                self._by_ip[tunnel.peer_ip] = left
            else:
                del self._by_ip[tunnel.peer_ip]

    def of(self, ip: str) -> int:
        """How many come from this address."""
        return self._by_ip.get(ip, 0)

    def crowds(self, more_than: int) -> Iterator[str]:
        """The addresses that have more than so many."""
        return (ip for ip, count in list(self._by_ip.items()) if count > more_than)


MISBEHAVIOUR_COSTS: Final = 50.0
"""Handshakes of its source's budget that a tunnel costs which ended for what no lawful peer sends."""


class InboundTunnel:
    """Minds a peer's tunnel: waits for OPEN, and gives the tunnel to one link after the other."""

    __slots__ = ("_all", "_opened", "_tunnel", "plane", "to")

    def __init__(
        self,
        plane: Plane,
        tunnels: "InboundTunnels",
        tunnel: Tunnel,
        to: tuple[str, int],
        opened: "Opened",
    ) -> None:
        self.plane, self._all, self._tunnel, self._opened = plane, tunnels, tunnel, opened
        self.to = to
        """Where the tunnel's connection was going: the app's address and port."""

    def start(self) -> None:
        self._all.add(self)
        self.rest()
        self._tunnel.start()

    def rest(self) -> None:
        """No link uses the tunnel: the next OPEN comes here."""
        if self._tunnel.closed:
            self._gone()
        else:
            self._tunnel.user, self._tunnel.link = self, None
            self._tunnel.idle_since = self.plane.now()

    def go_away(self) -> None:
        self._tunnel.write(GOAWAY_FRAME)

    def close(self) -> None:
        self._tunnel.close()
        self._gone()

    def describe(self) -> dict[str, object]:
        """For the admin socket."""
        tunnel = self._tunnel
        return {
            "peer": f"{tunnel.peer_ip}:{tunnel.peer_port}",
            "identity": tunnel.peer_name,
            "port": self.to[1],
            "idle": self.idle,
            "links": tunnel.links,
            "ends_in_s": round(tunnel.expires_at - self.plane.now(), 3),
        }

    @property
    def peer_ip(self) -> str:
        return self._tunnel.peer_ip

    def look(self) -> None:
        """Called every few seconds: end it if the peer is gone."""
        self._tunnel.look()

    @property
    def idle(self) -> bool:
        return self._tunnel.user is self

    @property
    def idle_since(self) -> float:
        return self._tunnel.idle_since

    @property
    def peer(self) -> LeafFacts:
        return self._tunnel.peer

    @property
    def expires_at(self) -> float:
        return self._tunnel.expires_at

    def tunnel_data(self, piece: memoryview) -> None:
        """What a dialler had sent before it read our REFUSE: thrown away."""

    def tunnel_writable(self) -> None:
        """Nothing waits to be written."""

    def _gone(self) -> None:
        """Whoever had to be cut off for its frames comes back less often: a flood is no cheaper for
        being spread over many tunnels."""
        plane, tunnel = self.plane, self._tunnel
        if self in self._all and tunnel.misbehaved:
            source = plane.source_of(tunnel.peer_ip)
            plane.handshake_rate.charge(source, plane.now(), MISBEHAVIOUR_COSTS)
        self._all.discard(self)

    def tunnel_lost(self, error: SidecarError) -> None:
        self._gone()
        if not isinstance(error, PeerLost):  # with no link to tell of it, nobody would know
            record = new_record(self.plane, (self._tunnel.peer_ip, self._tunnel.peer_port), self.to)
            describe_peer(record, self._tunnel)
            record.verdict, record.close = "denied", "protocol_error"
            record.reason, record.error = error.reason, str(error)
            record.end_ns = self.plane.unix_ns()
            self.plane.report(record)

    def tunnel_control(self, kind: int, payload: bytes) -> None:
        if kind == OPEN:
            self._opened(self, self._tunnel, payload)
        elif kind == GOAWAY:
            self.close()  # the dialler will not use it again
