"""A connection that reached the pod, until it is known what it is: a peer, or plaintext.

    accepted -> first bytes -> handshake -> InboundTunnel
                            -> plaintext: refused, or let in where pod and policy say so

What the registry says about a source address only steers how the first bytes are waited for, never
whether a link may be.
"""

import socket
from typing import Final

from kit.contract import ALPNS
from sidecar.authorise import authorise
from sidecar.dataplane.links.inbound import open_link, refuse_over_limit
from sidecar.dataplane.links.plaintext import PlaintextLink
from sidecar.dataplane.loop.deadlines import Deadline
from sidecar.dataplane.plane import Plane
from sidecar.dataplane.records import explain, new_record
from sidecar.dataplane.tunnels.handshake import TIMEOUT_S, Handshake
from sidecar.dataplane.tunnels.inbound import InboundTunnel, InboundTunnels
from sidecar.dataplane.tunnels.tunnel import RECORD, Tunnel
from sidecar.directory import Found, Gone, Workload, is_no_pod
from sidecar.errors import (
    Bug,
    Denied,
    HandshakeTimeout,
    OwnPort,
    PlaintextDenied,
    SidecarError,
)
from sidecar.report import LinkRecord
from sidecar.sockets import original_dst, peer_ip, reset
from sidecar.wire.client_hello import FirstBytes, classify
from sidecar.wire.session import Role

_CERTIFICATE_POLL_S: Final = 0.05
_ALPNS: Final = tuple(map(str.encode, ALPNS))


class Arrivals:
    """Takes every connection that reaches the inbound port, and minds the tunnels that come of it."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        self.tunnels = InboundTunnels()
        self._strangers: dict[Arrival, None] = {}
        self._strangers_of: dict[str, dict[Arrival, None]] = {}
        """The same by source. Both in the order in which they came."""

    def accepted(self, sock: socket.socket, raw_ip: str, port: int) -> None:
        ip = peer_ip(raw_ip)
        plane = self.plane
        limits, source = plane.limits, plane.source_of(ip)
        waiting = len(self._strangers_of.get(source, ()))
        if waiting >= limits.strangers_per_source:
            return plane.turn_away(sock, "strangers_per_source")
        if plane.shedding:
            return plane.turn_away(sock, "memory")
        if len(self._strangers) >= limits.strangers:
            self._make_room(waiting + 1)
        arrival = Arrival(self, sock, ip, port, source)
        self._strangers[arrival] = None
        self._strangers_of.setdefault(source, {})[arrival] = None
        return plane.poller.call(arrival.start)

    def _make_room(self, newcomers: int) -> None:
        """The longest waiting stranger goes, of the source that has most if that has more than the
        newcomer's: a handshake takes milliseconds, so who has waited longest is hardly honest."""
        self.plane.count_turned_away("strangers")
        heaviest = max(self._strangers_of.values(), key=len)
        next(iter(heaviest if len(heaviest) > newcomers else self._strangers)).give_way()

    def __contains__(self, arrival: "Arrival") -> bool:
        return arrival in self._strangers

    @property
    def strangers(self) -> int:
        """Connections that have not shown who they are yet."""
        return len(self._strangers)

    def no_stranger_any_more(self, arrival: "Arrival") -> None:
        """The connection has become a tunnel or a plaintext link, or is gone."""
        del self._strangers[arrival]
        of = self._strangers_of[arrival.source]
        del of[arrival]
        if not of:
            del self._strangers_of[arrival.source]

    def go_away(self) -> None:
        """Tell every peer to open no more links here; those that run go on."""
        for tunnel in list(self.tunnels):
            tunnel.go_away()

    def close(self) -> None:
        for tunnel in list(self.tunnels):
            tunnel.close()


class Arrival:
    """A connection of which nobody knows yet who it is."""

    __slots__ = (
        "_arrivals",
        "_deadline",
        "_handshake",
        "_head",
        "_ip",
        "_plane",
        "_port",
        "_sock",
        "_source",
        "_to",
        "source",
    )

    def __init__(
        self, arrivals: Arrivals, sock: socket.socket, ip: str, port: int, source: str
    ) -> None:
        self._arrivals, self._plane, self._sock = arrivals, arrivals.plane, sock
        self._ip, self._port = ip, port
        self.source = source
        """Whom the limits per source count it to."""
        self._to = original_dst(sock)
        self._head = b""
        self._source: Found | None = None
        """Who the registry says is at the source's address; None if it has not said."""
        self._handshake: Handshake | None = None
        self._deadline: Deadline | None = None

    def start(self) -> None:
        to_port = self._to[1]
        if to_port in self._plane.own_ports and not self._plane.tunnel_only:
            return self._turn_away(OwnPort(f"{self._ip} dialled port {to_port}, podlink's own"))
        poller = self._plane.poller
        self._deadline = Deadline(poller, TIMEOUT_S, self._too_late)
        poller.add_reader(self._sock.fileno(), self._readable)
        if self._plane.policy.takes_plaintext(to_port):
            # A stranger that waits for the server to speak first must not be waited for.
            self._plane.directory.ask(
                self._ip,
                lambda found: self._plane.poller.call(self._source_known, found),
                for_record=True,
            )
        return None

    def _source_known(self, found: Found | None) -> None:
        """The registry's word about the source, while the first bytes have not come."""
        self._source = found
        if self._head or self._deadline is None or self._handshake is not None or found is None:
            return
        tunnels = isinstance(found, Gone) or (
            isinstance(found, Workload)
            and found.identity is not None
            and self._to[1] not in found.skip_outbound
        )
        if not tunnels:
            self._readable()  # what lies there already decides; else it is plaintext
            if not self._head and self._deadline is not None:
                self._plaintext()

    def _readable(self) -> None:
        try:
            got = self._sock.recv(RECORD)
        except BlockingIOError:
            return
        except OSError:
            got = b""
        if not got:
            self._stop()
            self._sock.close()  # a port scan or a health check: it asked for nothing
            self._arrivals.no_stranger_any_more(self)
            return
        self._head += got
        first = classify(self._head, _ALPNS)
        if first is FirstBytes.MESH:
            self._shake_hands()
        elif first is not FirstBytes.INCOMPLETE:
            self._plaintext()

    def _too_late(self) -> None:
        self._turn_away(HandshakeTimeout("the connection said nothing that tells who it is"))

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
            self._plane.poller.remove_reader(self._sock.fileno())

    # --- a peer -----------------------------------------------------------------------------

    def _shake_hands(self) -> None:
        plane = self._plane
        if self._deadline is None:
            return None  # it came while we waited for a certificate
        if plane.trust is None:  # the first one is on its way: hold what has come until then
            plane.poller.remove_reader(self._sock.fileno())
            plane.poller.call_later(_CERTIFICATE_POLL_S, self._shake_hands)
            return None
        self._stop()
        trust = plane.usable_trust()
        if not plane.handshake_rate.take(self.source, plane.now()):
            self._arrivals.no_stranger_any_more(self)
            return plane.turn_away(self._sock, "handshakes_per_source")
        if trust is None:
            return self._turn_away(plane.not_ready())
        self._handshake = Handshake(
            plane.poller,
            self._sock,
            trust.server,
            Role.ACCEPTOR,
            verify=plane.verify,
            own=trust.own,
            renewals=plane.renewals,
            now=plane.now,
            wall=plane.unix_s,
            peer_address=(self._ip, self._port),
            done=self._shook_hands,
        )
        return self._handshake.start(self._head)

    def _shook_hands(self, tunnel: Tunnel | None, error: SidecarError | None) -> None:
        self._arrivals.no_stranger_any_more(self)
        handshake, plane = self._handshake, self._plane
        assert handshake is not None
        result = "ok" if error is None else error.reason
        plane.handshakes.ended("destination", result, plane.now() - handshake.began)
        if tunnel is None:
            assert error is not None
            self._report(error)
        elif self._arrivals.tunnels.of(self._ip) >= plane.limits.tunnels_per_peer:
            refuse_over_limit(plane, tunnel, self._to, "tunnels_per_peer")
        else:
            InboundTunnel(plane, self._arrivals.tunnels, tunnel, self._to, open_link).start()

    # --- plaintext --------------------------------------------------------------------------

    def _plaintext(self) -> None:
        self._stop()
        plane, record = self._plane, self._record()
        if self._to[1] in plane.own_ports:  # our inbound port itself: it stands for no app
            return self._turn_away(
                PlaintextDenied(f"plaintext from {self._ip} to podlink's own port {self._to[1]}")
            )
        try:
            permit = authorise(None, self._ip, self._to[1], plane.policy)
        except Denied as e:
            return self._turn_away(e)
        self._arrivals.no_stranger_any_more(self)
        if limit := plane.full_for_plaintext():
            return plane.turn_away(self._sock, limit)
        link = PlaintextLink(plane, self._sock, self._to, permit, record)
        return plane.poller.call(link.start, self._head, self._source)  # it owns its failures now

    # --- the end ----------------------------------------------------------------------------

    def broken(self, error: Exception) -> None:
        """Our own code failed: the connection ends, alone."""
        if self in self._arrivals:
            handshake = self._handshake
            if handshake is not None:
                handshake.abandon()
            self._turn_away(Bug.of(error))

    def give_way(self) -> None:
        """Close without a word, whatever it waits for: somebody else needs the place."""
        if self._handshake is not None:
            self._handshake.abandon()
        else:
            self._stop()
            reset(self._sock)
        self._arrivals.no_stranger_any_more(self)

    def _turn_away(self, error: SidecarError) -> None:
        self._stop()
        reset(self._sock)
        self._arrivals.no_stranger_any_more(self)
        self._report(error)

    def _record(self) -> LinkRecord:
        return new_record(self._plane, (self._ip, self._port), self._to)

    def _report(self, error: SidecarError) -> None:
        record = self._record()
        record.verdict = "failed" if isinstance(error, Bug) else "denied"
        explain(record, error)
        record.end_ns, record.close = self._plane.unix_ns(), "refused"
        if record.source_pod:
            return self._plane.report(record)
        # Whoever reviews this wants a name. It changes nothing for the link, which is over.
        return self._plane.directory.ask(
            self._ip,
            lambda found: self._plane.poller.call(self._name, record, found),
            for_record=True,
        )

    def _name(self, record: LinkRecord, found: Found | None) -> None:
        if isinstance(found, Workload) and found.name:
            record.source_pod = found.pod
        if is_no_pod(found):
            record.error += " (external: the source's address is no pod's own)"
        self._plane.report(record)
