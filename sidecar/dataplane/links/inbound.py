"""The far end of a link: a peer's tunnel, its OPEN, and the app behind.

    OPEN -> right port -> authorised -> app connected -> ACCEPT -> splice

Who the peer is comes from its checked leaf alone, never from what OPEN says.
"""

import socket
from functools import partial
from typing import Final

from certs.trust.facts import LeafFacts
from policy.judge import Permit
from sidecar.authorise import authorise
from sidecar.dataplane.links.caller import source_of_tunnel
from sidecar.dataplane.links.held import Held
from sidecar.dataplane.links.http_splice import HttpSplice
from sidecar.dataplane.links.phases import Phase, advance
from sidecar.dataplane.links.splice import TunnelSplice
from sidecar.dataplane.loop.connect import APP_TIMEOUT_S, Connect
from sidecar.dataplane.plane import Plane
from sidecar.dataplane.records import (
    describe_peer,
    error_of_cut,
    explain,
    is_silent,
    new_record,
    no_app,
    permitted,
)
from sidecar.dataplane.tunnels.inbound import InboundTunnel, InboundTunnels
from sidecar.dataplane.tunnels.place import PlaceQuestion, fits
from sidecar.dataplane.tunnels.tunnel import Tunnel
from sidecar.errors import (
    Bug,
    Denied,
    LeafElsewhere,
    NotReady,
    Overloaded,
    OwnPort,
    PeerBanned,
    PeerLost,
    SidecarError,
)
from sidecar.wire.frames import ACCEPT, REFUSE, RESET
from sidecar.wire.opening import (
    BAD_PORT,
    BUSY,
    CUT_BY_POLICY,
    DENIED,
    DRAINING,
    LIMIT,
    UNREACHABLE,
    Opening,
    encode_accept,
    encode_code,
)

SETTLE_S: Final = 5.0
"""How long a peer's link waits for the registry's first word on what is in force here."""
REFUSED_WITHIN_S: Final = 1.0
"""A dialler's OPEN comes with the end of its handshake."""
_SETTLE_POLL_S: Final = 0.05


class InboundLink:
    """One link on its acceptor's side.

    JUDGING: policy is asked, or waited for. CONNECTING: `_connect` goes to the app, and the tunnel's
    frames are held. OPEN: `_splice` moves bytes.
    """

    __slots__ = (
        "_connect",
        "_keeper",
        "_permit",
        "_places",
        "_plane",
        "_splice",
        "phase",
        "record",
        "tunnel",
    )

    _places: list[str]
    """Where the app may listen and was not tried yet."""

    def __init__(self, keeper: InboundTunnel, tunnel: Tunnel) -> None:
        self._keeper, self._plane, self.tunnel = keeper, keeper.plane, tunnel
        self.phase = Phase.JUDGING
        self._connect: Connect | None = None
        self._splice: TunnelSplice | None = None
        self._permit: Permit | None = None
        self.record = new_record(self._plane, (tunnel.peer_ip, tunnel.peer_port), keeper.to)

    def refuse_over_limit(self, opening: Opening, limit: str) -> None:
        """OPEN came from a peer that has reached a limit of its own here."""
        self._begin(opening)
        self._refuse(LIMIT, Overloaded(f"limit reached by the peer: {limit}"), "")

    def open(self, opening: Opening) -> None:
        """OPEN came."""
        plane, record = self._plane, self.record
        limit = plane.full()
        self._begin(opening)
        if plane.draining:
            return self._refuse(DRAINING, PeerLost("this pod is going away"), "failed")
        if limit:
            plane.count_turned_away(limit)
            return self._refuse(BUSY, Overloaded(f"limit reached: {limit}"), "")
        if not self._right_port(opening.port):
            return self._refuse(
                BAD_PORT,
                OwnPort(
                    f"OPEN for port {opening.port} on a connection to port {record.original_port}"
                ),
                "denied",
            )
        record.destination_port = opening.port
        if plane.unsettled:
            self._hold()
            return self._wait_to_judge(opening.port, plane.now() + SETTLE_S)
        return self._check_place(opening.port)

    def _begin(self, opening: Opening) -> None:
        tunnel, record = self.tunnel, self.record
        record.trace_id, record.parent_span_id = opening.trace_id, opening.span_id
        record.service, record.endpoint_choice = opening.claimed_service, opening.claimed_choice
        record.pooled = tunnel.links > 0
        describe_peer(record, tunnel)
        tunnel.links += 1
        tunnel.link = self
        self._plane.live.add(self)

    def _wait_to_judge(self, port: int, until: float) -> None:
        """We have just started: what is in force here will be known in a moment."""
        plane = self._plane
        if self.phase is not Phase.JUDGING:
            return None  # the dialler did not wait
        if not plane.unsettled:
            return self._check_place(port)
        if plane.now() >= until:
            return self._refuse(BUSY, NotReady("the registry has not said what is in force"), "")
        plane.poller.call_later(_SETTLE_POLL_S, self._wait_to_judge, port, until)
        return None

    def _check_place(self, port: int) -> None:
        """The peer must speak from where its leaf's pod is, as far as anybody knows."""
        if fits(self._plane, self.tunnel):
            return self._judge(port)
        question = PlaceQuestion(self._plane, self.tunnel, partial(self._placed, port))
        question.start()
        if self.phase is Phase.JUDGING:  # it waits for an answer
            self._hold()
        return None

    def _placed(self, port: int, error: LeafElsewhere | None) -> None:
        if self.phase is not Phase.JUDGING:
            return None  # the dialler did not wait
        if error is not None:
            return self._refuse(DENIED, error, "denied")
        return self._judge(port)

    def _judge(self, port: int) -> None:
        plane, tunnel, record = self._plane, self.tunnel, self.record
        try:
            self._permit = permit = authorise(
                tunnel.peer.identity, tunnel.peer_ip, port, plane.policy
            )
        except Denied as e:
            record.policy, record.rule = e.policy, e.rule
            return self._refuse(DENIED, e, "denied")
        record.policy, record.rule = permit.policy, permit.rule
        return self._connect_app(permit)

    def _right_port(self, port: int) -> bool:
        """A captured connection goes to the very port it was dialled for, so that NetworkPolicies
        keep their meaning; none of our own ports is ever an app's."""
        if port in self._plane.own_ports:
            return False
        return self._plane.tunnel_only or port == self.record.original_port

    def _connect_app(self, permit: Permit) -> None:
        """To the address that was dialled, then to others where it may listen alone."""
        self.phase = advance(self.phase, Phase.CONNECTING)
        self._places = self._plane.app_ips(self._keeper.to[0], permit.port)
        self._try_app(self._places.pop(0))

    def _try_app(self, ip: str) -> None:
        assert self._permit is not None
        port, source = self._permit.port, source_of_tunnel(self._plane, self.tunnel, ip)
        self._await(Connect(self._plane, ip, port, APP_TIMEOUT_S, self._app_answered, source))

    def _app_answered(self, sock: socket.socket | None, error: SidecarError | None) -> None:
        self._connect = None
        if sock is not None:
            return self._accept(sock)
        if self._places and not is_silent(error):
            return self._try_app(self._places.pop(0))
        port = self.record.destination_port
        unreachable = no_app(port, error, on_loopback=port in self._plane.loopback_listeners())
        return self._refuse(UNREACHABLE, unreachable, "failed")

    def _await(self, connect: Connect) -> None:
        self._connect = connect
        connect.start()
        if connect.pending:
            self._hold()

    def _hold(self) -> None:
        """Until the app has answered, the tunnel's frames are kept."""
        if not isinstance(self.tunnel.user, Held):  # what it keeps already must not be lost
            self.tunnel.user = Held(self.lost_before_accept)

    def _accept(self, app: socket.socket) -> None:
        assert self._permit is not None
        plane, tunnel, record = self._plane, self.tunnel, self.record
        held = tunnel.user if isinstance(tunnel.user, Held) else None
        self.phase = advance(self.phase, Phase.OPEN)
        if not record.destination_ip:
            record.destination_ip = app.getpeername()[0]
        record.security = "mtls"
        permitted(record, self._permit)
        # Before the app sees a byte: a dialler that reads our close without it may try elsewhere.
        tunnel.send(ACCEPT, encode_accept(record.trace_id, record.span_id))
        watch = plane.watch if self._permit.port in plane.http_ports else None
        splice = (
            TunnelSplice(plane.poller, app, tunnel, self._ended)
            if watch is None
            else HttpSplice(plane.poller, app, tunnel, self._ended, watch(record))
        )
        self._splice = splice
        tunnel.user = splice
        splice.start()
        if held is not None:
            splice.deliver(held.data, held.control)

    def _ended(self, splice: TunnelSplice, close: str, error: SidecarError | None) -> None:
        record = self.record
        if error is not None:
            record.reason, record.error = error.reason, str(error)
        self._splice = None  # it refers to this link: leave nothing to the garbage collector
        self._keeper.rest()
        self._report(splice.to_near, splice.from_near, close)

    def lost_before_accept(self, error: SidecarError) -> None:
        """The tunnel broke, or the dialler reset the link, while the app's socket connected."""
        self._give_up(error, "lost" if isinstance(error, PeerLost) else "protocol_error")

    def _give_up(self, error: SidecarError, close: str) -> None:
        self._stop_connecting()
        self.record.reason, self.record.error = error.reason, str(error)
        self._keeper.close()
        self._report(0, 0, close)

    def _stop_connecting(self) -> None:
        connect, self._connect = self._connect, None
        if connect is not None:
            connect.abandon()

    def _refuse(self, code: int, error: SidecarError, verdict: str) -> None:
        self.record.verdict = "denied" if verdict == "denied" else "failed"
        explain(self.record, error)
        self.tunnel.send(REFUSE, encode_code(code))
        self._keeper.rest()
        self._report(0, 0, "refused")
        plane = self._plane
        if verdict == "denied" and not plane.refused_opens.take(self.tunnel.peer_ip, plane.now()):
            plane.count_turned_away("refused_opens")
            self._keeper.close()

    # --- LiveLink ---------------------------------------------------------------------------

    @property
    def moved(self) -> tuple[int, int]:
        return (self._splice.to_near, self._splice.from_near) if self._splice else (0, 0)

    @property
    def peer(self) -> LeafFacts | None:
        return self.tunnel.peer

    @property
    def tunnel_expires_at(self) -> float | None:
        return self.tunnel.expires_at

    def look(self, now: float) -> None:
        """Nothing here waits without a deadline of its own."""

    def cut(self, code: int, close: str) -> None:
        if self._splice is not None:
            return self._splice.cut(code)
        error = error_of_cut(code)
        self.record.verdict = "denied" if isinstance(error, PeerBanned) else "failed"
        self.tunnel.send(RESET, encode_code(code))
        return self._give_up(error, close)

    def deny(self, error: SidecarError) -> None:
        if self._splice is None:  # the app has not heard of it yet: the dialler reads a refusal
            self._stop_connecting()
            return self._refuse(DENIED, error, "denied")
        self.record.verdict = "denied"
        explain(self.record, error)
        return self._splice.cut(CUT_BY_POLICY)

    def broken(self, error: Exception) -> None:
        """Our own code failed while it served this link (see `loop.poller`): it ends, alone."""
        if self._splice is not None and not self._splice.over:
            self._splice.broken(error)
        elif self.phase is not Phase.ENDED:
            self._splice = None
            self._give_up(Bug.of(error), "bug")

    def _report(self, sent: int, received: int, close: str) -> None:
        self.phase = advance(self.phase, Phase.ENDED)
        self._plane.link_over(self, sent, received, close)


def refuse_over_limit(plane: Plane, tunnel: Tunnel, to: tuple[str, int], limit: str) -> None:
    """Refuse the link that a peer's tunnel came for, and close it: the peer is over a limit of ours.

    The peer learns why, by a refusal of its own; a tunnel that opens no link at once is closed unheard.
    """
    plane.count_turned_away(limit)

    def refuse(keeper: InboundTunnel, tunnel: Tunnel, payload: bytes) -> None:
        link = InboundLink(keeper, tunnel)
        plane.poller.call(link.refuse_over_limit, Opening.decode(payload), limit)
        keeper.close()

    keeper = InboundTunnel(plane, InboundTunnels(), tunnel, to, refuse)
    plane.poller.call_later(REFUSED_WITHIN_S, keeper.close)
    keeper.start()


def open_link(keeper: InboundTunnel, tunnel: Tunnel, payload: bytes) -> None:
    """A peer's OPEN has come; raises ProtocolViolation if it is malformed."""
    opening = Opening.decode(payload)
    keeper.plane.poller.call(InboundLink(keeper, tunnel).open, opening)
