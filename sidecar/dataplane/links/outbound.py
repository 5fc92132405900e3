"""The near end of a link: from the app's connect() to the peer's ACCEPT.

    accepted -> resolved -> chosen -> authorised -> tunnel (idle or new) -> OPEN -> ACCEPT -> splice
                                                 -> plaintext, only to what is not meshed

A destination known to be meshed is never reached in plaintext, whatever is down. Before ACCEPT a
link may move to another endpoint, replaying the bytes it holds: the app behind the first never saw
them. After ACCEPT it never moves.
"""

import contextlib
import socket
from typing import Final

from certs.trust.facts import LeafFacts
from kit.contract import CANARIES, OWN_PORTS, canary_answer
from sidecar.dataplane.links.http_splice import HttpSplice
from sidecar.dataplane.links.phases import Phase, advance
from sidecar.dataplane.links.splice import RawSplice, TunnelSplice
from sidecar.dataplane.loop.connect import (
    ALONE_TIMEOUT_S,
    APP_TIMEOUT_S,
    CONNECT_TIMEOUT_S,
    Connect,
)
from sidecar.dataplane.plane import Plane
from sidecar.dataplane.records import error_of_cut
from sidecar.dataplane.routing.destination import Ask, Destination, Failed, Step, somebody_else
from sidecar.dataplane.routing.route import Plaintext, Refused, Route, Tunnelled
from sidecar.dataplane.tunnels.acquire import Acquire, Target
from sidecar.dataplane.tunnels.tunnel import Tunnel
from sidecar.directory import Found
from sidecar.errors import (
    AppUnreachable,
    Bug,
    Denied,
    HandshakeTimeout,
    NotReady,
    Overloaded,
    OwnPort,
    PeerBanned,
    PeerLost,
    PeerOverloaded,
    ProtocolViolation,
    SidecarError,
)
from sidecar.report import LinkRecord
from sidecar.sockets import connect_error, original_dst, reset, watch_for_dead_peer
from sidecar.wire.frames import ACCEPT, DATA, HEADER, OPEN, REFUSE, RESET, encode
from sidecar.wire.opening import (
    APP_RESET,
    BUSY,
    CUT_BY_POLICY,
    DENIED,
    LIMIT,
    REFUSALS,
    RESETS,
    Opening,
    decode_accept,
    decode_code,
    encode_code,
)

CANARY_IPS: Final = frozenset(ip for ip, _ in CANARIES.values())
CANARY_PORT: Final = CANARIES[4][1]
HOLD_BYTES: Final = 4 * 16384 - HEADER
"""What may travel with OPEN and is kept for a replay until ACCEPT."""
ACCEPT_TIMEOUT_S: Final = 15.0
"""How long a link waits for ACCEPT or REFUSE without asking whether the far proxy lives."""
PONG_WITHIN_S: Final = 10.0
"""How long that proxy has to say so; while it does, the link waits on for its app."""
APP_WAIT_S: Final = APP_TIMEOUT_S + ACCEPT_TIMEOUT_S
"""Longer than an acceptor waits for its app, so that it is the acceptor who tells why."""
SUSPECT_AFTER_S: Final = 3.0
"""A peer that is gone says nothing, and an app that accepts no sooner is too busy for more."""


class OutboundLink:
    """One link on its dialler's side. It keeps itself alive through the loop's callbacks.

    RESOLVING: the registry is asked where it goes. CONNECTING: `_work` brings a tunnel or a plaintext
    connection. OPENING: `_tunnel` carries our OPEN. OPEN: `_splice` moves bytes.
    """

    __slots__ = (
        "_answer_by",
        "_carries_http",
        "_destination",
        "_held",
        "_near",
        "_plane",
        "_splice",
        "_target",
        "_tunnel",
        "_wait_until",
        "_work",
        "phase",
        "record",
    )

    _destination: Destination
    _target: Target
    """The far end of the tunnel; set once the destination is known to be meshed."""
    _carries_http: bool
    """The destination, or the Service asked for, says that HTTP is spoken there."""

    def __init__(self, plane: Plane, near: socket.socket, source_ip: str, source_port: int) -> None:
        self._plane = plane
        self.record = record = LinkRecord("outbound")
        self.phase = Phase.RESOLVING
        self._near: socket.socket | None = near
        """The app's connection; the splice's once there is one."""
        self._held = b""
        """What the app has said so far, kept for a replay until ACCEPT."""
        self._work: Connect | Acquire | None = None
        self._tunnel: Tunnel | None = None
        self._splice: TunnelSplice | RawSplice | None = None
        self._answer_by = self._wait_until = 0.0
        plane.new_ids(record)
        record.start_ns = plane.unix_ns()
        record.source_ip, record.source_port = source_ip, source_port
        record.source_pod = plane.own.pod
        if plane.trust is not None:
            record.source_identity = plane.trust.identity
        plane.live.add(self)

    # --- where to ---------------------------------------------------------------------------

    def start_redirected(self) -> None:
        """The connection was captured: where it was going is in SO_ORIGINAL_DST."""
        assert self._near is not None
        ip, port = original_dst(self._near)
        self.record.original_ip, self.record.original_port = ip, port
        if port == CANARY_PORT and ip in CANARY_IPS:
            return self._answer_canary()
        if port in OWN_PORTS:
            return self._refuse(
                OwnPort(f"the app dialled {ip} port {port}, which is podlink's own")
            )
        self._destination = Destination(ip, port, captured=True)
        return self._go(self._destination.resolve(self._plane))

    def _answer_canary(self) -> None:
        """Whoever dials the canary wants to know whether capture is in place; it is no link."""
        near, plane = self._near, self._plane
        assert near is not None
        self.phase = advance(self.phase, Phase.ENDED)
        plane.live.discard(self)
        with contextlib.suppress(OSError):
            near.send(canary_answer(plane.own.uid))
        near.close()

    def start_upstream(self, key: str, port: int) -> None:
        """The app dialled a local port that stands for `key` (a Service or pod name) and `port`."""
        self.record.original_port = port
        self._destination = Destination(key, port, captured=False)
        self._go(self._destination.resolve(self._plane))

    def _go(self, step: Step, error: SidecarError | None = None) -> None:
        """Do what the destination says; `error` is what made it choose again."""
        if self.phase is not Phase.RESOLVING:
            self.phase = advance(self.phase, Phase.RESOLVING)
        if isinstance(step, Ask):
            return self._ask(step, error)
        if (service := self._destination.service) is not None:
            self.record.service = service.key  # also where it leads nowhere
        if isinstance(step, Failed):
            return self._fail(step.error)
        return self._take(step)

    def _ask(self, ask: Ask, error: SidecarError | None) -> None:
        plane = self._plane
        asked = plane.directory.ask_anew if ask.anew else plane.directory.ask
        asked(ask.key, lambda found: plane.poller.call(self._answered, found, error))

    def _answered(self, found: Found | None, error: SidecarError | None) -> None:
        if self.phase is Phase.RESOLVING:  # else it was cut meanwhile
            self._go(self._destination.answered(self._plane, found, error), error)

    def _take(self, route: Route) -> None:
        record = self.record
        record.destination_ip, record.destination_port, record.endpoint_choice = route[:3]
        # An earlier attempt may have gone elsewhere.
        record.destination_identity = record.destination_pod = record.reason = ""
        record.security = "none"
        if isinstance(route, Refused):
            return self._refuse(route.error)
        self.phase = advance(self.phase, Phase.CONNECTING)
        self._destination.attempts += 1
        record.attempts = self._destination.attempts
        if isinstance(route, Tunnelled):
            return self._through_tunnel(route)
        return self._in_plaintext(route)

    def _try_elsewhere(self, error: SidecarError) -> None:
        """Before ACCEPT: another endpoint of the Service, if there is one that was not tried."""
        ip = self.record.destination_ip
        self._go(self._destination.elsewhere(self._plane, error, ip), error)

    def _dial_failed(self, error: SidecarError) -> None:
        destination, plane = self._destination, self._plane
        if not isinstance(error, Overloaded):  # that says nothing of the endpoint
            self._eject()
        if destination.service is not None and somebody_else(error):
            plane.directory.ask_anew(destination.key, _for_the_next_link)
        step = destination.dial_failed(plane, error, self.record.destination_ip)
        self._go(step, error)

    def _connect_within_s(self, ip: str) -> float:
        another = self._destination.has_another(self._plane, ip)
        return CONNECT_TIMEOUT_S if another else ALONE_TIMEOUT_S

    def _eject(self) -> None:
        plane, record = self._plane, self.record
        plane.ejections.failed(record.destination_ip, record.destination_port, plane.now())

    # --- plaintext --------------------------------------------------------------------------

    def _in_plaintext(self, route: Plaintext) -> None:
        record = self.record
        record.security, record.reason = route.security, route.reason
        record.destination_pod = route.pod
        within_s = self._connect_within_s(route.ip)
        connect = Connect(self._plane, route.ip, route.port, within_s, self._connected)
        self._work = connect
        connect.start()

    def _connected(self, sock: socket.socket | None, error: SidecarError | None) -> None:
        self._work = None
        record = self.record
        if sock is None:
            assert error is not None
            return self._dial_failed(error)
        watch_for_dead_peer(sock)
        self._plane.ejections.worked(record.destination_ip, record.destination_port)
        record.verdict = "allowed"
        near, self._near = self._near, None
        assert near is not None
        self._plane.link_opened(record.destination_ip, record.destination_port)
        self.phase = advance(self.phase, Phase.OPEN)
        self._splice = splice = RawSplice(self._plane.poller, near, sock, self._raw_ended)
        held, self._held = self._held, b""
        return splice.start(held)  # read for a tunnel, which then did not come about

    def _raw_ended(self, splice: RawSplice, close: str, error: SidecarError | None) -> None:
        self._plane.link_closed(self.record.destination_ip, self.record.destination_port)
        self._splice = None
        if error is not None:  # `reason` goes on to say why there was no tunnel
            self.record.error = str(error)
        self._report(splice.from_near, splice.to_near, close)

    # --- through a tunnel -------------------------------------------------------------------

    def _through_tunnel(self, route: Tunnelled) -> None:
        plane, record, pod = self._plane, self.record, route.pod
        assert pod.identity is not None
        service, asked_port = self._destination.service, self._destination.port
        self._carries_http = route.port in pod.http_ports or (
            service is not None and asked_port in service.http_ports
        )
        port = plane.tunnel_port if pod.tunnel_only else route.port
        self._target = Target.of(route.ip, port, pod.identity, self._connect_within_s(route.ip))
        record.destination_pod, record.destination_identity = pod.pod, self._target.key[2]
        return self._read_first()

    def _read_first(self) -> None:
        """Take what the app has said already, so that it travels with OPEN. Nothing waits for it:
        a server that speaks first has a silent client."""
        if not self._held:
            assert self._near is not None
            try:
                self._held = self._near.recv(HOLD_BYTES)
            except BlockingIOError:
                pass
            except OSError:
                return self._fail(PeerLost("the app reset the connection"), close="reset")
        self._work = acquire = Acquire(self._plane, self._target, self._acquired)
        return acquire.start()

    def _acquired(self, tunnel: Tunnel | None, error: SidecarError | None) -> None:
        acquire, plane, record = self._work, self._plane, self.record
        assert isinstance(acquire, Acquire)
        self._work = None
        record.pooled = acquire.pooled
        if plane.trust is not None:
            record.source_identity = plane.trust.identity
        if tunnel is not None:
            return self._open(tunnel)
        assert error is not None
        if isinstance(error, NotReady):  # of our own: no other endpoint would help
            return self._fail(error)
        return self._dial_failed(error)

    def _open(self, tunnel: Tunnel) -> None:
        record = self.record
        self.phase = advance(self.phase, Phase.OPENING)
        self._tunnel = tunnel
        tunnel.user = tunnel.link = self
        opening = Opening(
            record.destination_port,
            record.trace_id,
            record.span_id,
            record.service,
            record.endpoint_choice,
        )
        frames = encode(OPEN, opening.encode())
        if self._held:
            frames += encode(DATA, self._held)
        tunnel.session.sent(OPEN)
        tunnel.write(frames)
        now = self._plane.now()
        self._answer_by, self._wait_until = now + ACCEPT_TIMEOUT_S, now + APP_WAIT_S

    def tunnel_data(self, piece: memoryview) -> None:
        raise ProtocolViolation("DATA before ACCEPT")  # pragma: no cover - the session refuses it

    def tunnel_writable(self) -> None:
        """Nothing more is written before ACCEPT."""

    def tunnel_control(self, kind: int, payload: bytes) -> None:
        if kind == ACCEPT:
            self._accepted(payload)
        elif kind == REFUSE:
            self._refused(decode_code(payload))
        elif kind == RESET:
            close = RESETS.get(decode_code(payload), "reset")
            self._fail(PeerLost(f"the peer ended the link before it accepted it: {close}"), close)

    def tunnel_lost(self, error: SidecarError) -> None:
        """Before ACCEPT. After the peer's close by TLS all that it said has been read, and it was no
        ACCEPT: its app saw nothing, so the link may be tried again. After anything else, a FIN too,
        only if nothing of the app's was sent: an ACCEPT may have been held back on the way."""
        self._tunnel = None
        self._plane.pool.pass_on(self._target.key)
        orderly = isinstance(error, PeerLost) and error.orderly
        if orderly or (isinstance(error, PeerLost) and not self._held):
            if self.record.pooled:
                return self._dial_anew()
            self._eject()
            return self._try_elsewhere(error)
        return self._fail(error)

    def _dial_anew(self) -> None:
        """The tunnel was one of the pool, and that may be all that was wrong with it."""
        self.phase = advance(self.phase, Phase.CONNECTING)
        self._work = acquire = Acquire(self._plane, self._target, self._acquired)
        acquire.dial()

    def look(self, now: float) -> None:
        """A tunnel that lay idle may lead to nobody by now: new links avoid an endpoint that keeps one
        waiting. What waits itself moves on only if nothing of the app's was sent (see `tunnel_lost`)."""
        tunnel = self._tunnel
        if isinstance(self._splice, RawSplice):
            return self._splice.look()
        if tunnel is None:
            return None
        if self._splice is not None:
            return tunnel.look()
        assert self._near is not None
        self._plane.poller.watch_hang_up(self._near.fileno(), self._near_hung_up)
        if now > self._wait_until - APP_WAIT_S + SUSPECT_AFTER_S:
            self._eject()
        suspect_ms = int(1000 * SUSPECT_AFTER_S)
        unanswered = tunnel.is_unanswered(suspect_ms)
        may_wait = not unanswered and not tunnel.pinged and now < self._wait_until
        if now > self._answer_by and may_wait:
            # Its app may have a full queue, and the proxy waits as the kernel would.
            self._answer_by = now + PONG_WITHIN_S
            return tunnel.ping()
        if now > self._answer_by or unanswered:
            error = HandshakeTimeout("the peer neither accepted nor refused the link")
            if self._held:
                return self._fail(error)
            tunnel.close()
            self._tunnel = None
            self._plane.pool.pass_on(self._target.key)
            self._try_elsewhere(error)
        return None

    def _near_hung_up(self) -> None:
        """The app's connection was reset, or broke, while the link waited to be accepted."""
        if self._near is not None and self.phase is Phase.OPENING and connect_error(self._near):
            self._fail(PeerLost("the app reset the connection"), close="reset")

    def _accepted(self, payload: bytes) -> None:
        tunnel, near, record = self._tunnel, self._near, self.record
        assert tunnel is not None and near is not None
        decode_accept(payload)
        self.phase = advance(self.phase, Phase.OPEN)
        self._near = None
        record.verdict, record.security = "allowed", "mtls"
        self._describe_peer(tunnel)
        tunnel.links += 1
        plane = self._plane
        plane.ejections.worked(record.destination_ip, record.destination_port)
        plane.link_opened(record.destination_ip, record.destination_port)
        splice: TunnelSplice
        if plane.watch is not None and self._carries_http:
            splice = HttpSplice(
                plane.poller, near, tunnel, self._tunnel_ended, plane.watch(record), outbound=True
            )
            splice.sent_before(self._held)
        else:
            splice = TunnelSplice(plane.poller, near, tunnel, self._tunnel_ended)
        splice.from_near = len(self._held)
        self._splice, self._held = splice, b""
        tunnel.user = splice
        splice.start()

    def _refused(self, code: int) -> None:
        tunnel = self._tunnel
        assert tunnel is not None
        self._describe_peer(tunnel)
        self._tunnel = None
        self._plane.pool.give(self._target.key, tunnel)
        if code == DENIED:
            return self._refuse(Denied("the peer's policy refused the link"))
        self._eject()
        if code == BUSY:
            return self._try_elsewhere(PeerOverloaded("the peer takes no more links now"))
        if code == LIMIT:
            return self._try_elsewhere(
                PeerOverloaded(
                    "this pod has as many connections to the peer as the peer allows one pod"
                )
            )
        reason = REFUSALS.get(code, "refused")
        return self._try_elsewhere(AppUnreachable(f"the peer refused the link: {reason}"))

    def _tunnel_ended(self, splice: TunnelSplice, close: str, error: SidecarError | None) -> None:
        record, plane = self.record, self._plane
        plane.link_closed(record.destination_ip, record.destination_port)
        if error is not None:
            record.reason, record.error = error.reason, str(error)
        self._splice = None  # it refers to this link: leave nothing to the garbage collector
        plane.pool.give(self._target.key, splice.tunnel)
        self._report(splice.from_near, splice.to_near, close)

    def _describe_peer(self, tunnel: Tunnel) -> None:
        record, peer = self.record, tunnel.peer
        record.peer_serial, record.peer_sha256 = peer.serial, peer.sha256
        record.peer_not_after = int(peer.not_after.timestamp())
        record.destination_identity = tunnel.peer_name
        record.direct = tunnel.direct
        record.tls_cipher, record.alpn = tunnel.cipher, tunnel.alpn

    # --- the end ----------------------------------------------------------------------------

    def cut(self, code: int, close: str) -> None:
        """End the link now, whatever its state: policy, expiry or shutdown asks for it."""
        if isinstance(self._splice, TunnelSplice):
            self._splice.cut(code)
        elif self._splice is not None:
            self._splice.cut(close)
        else:
            error = error_of_cut(code)
            self.record.verdict = "denied" if isinstance(error, PeerBanned) else "failed"
            self._end(error, close)

    def deny(self, error: SidecarError) -> None:
        """End the link: `error` says that it may no longer be."""
        self.record.verdict = "denied"
        if self._splice is None:
            return self._end(error, "policy")
        self.record.reason, self.record.error = error.reason, str(error)
        return self.cut(CUT_BY_POLICY, "policy")

    @property
    def peer(self) -> LeafFacts | None:
        return self._tunnel.peer if self._tunnel is not None else None

    @property
    def tunnel(self) -> Tunnel | None:
        return self._tunnel

    @property
    def tunnel_expires_at(self) -> float | None:
        """Monotonic end of the tunnel that carries the link; None for plaintext or before one."""
        return self._tunnel.expires_at if self._tunnel is not None else None

    @property
    def moved(self) -> tuple[int, int]:
        """Bytes so far: source to destination, and back."""
        return (self._splice.from_near, self._splice.to_near) if self._splice else (0, 0)

    def _refuse(self, error: SidecarError) -> None:
        self.record.verdict = "denied"
        self._end(error, "refused")

    def _fail(self, error: SidecarError, close: str = "refused") -> None:
        self.record.verdict = "failed"
        self._end(error, close)

    def broken(self, error: Exception) -> None:
        """Our own code failed while it served this link (see `loop.poller`): it ends, alone."""
        if self._splice is not None and not self._splice.over:
            self._splice.broken(error)
        elif self.phase is not Phase.ENDED:
            self._splice = None
            self.record.verdict = "failed"
            self._end(Bug.of(error), "bug")

    def _end(self, error: SidecarError, close: str) -> None:
        record = self.record
        record.reason, record.error = error.reason, str(error)
        work, self._work = self._work, None
        if work is not None:
            work.abandon()
        if self._tunnel is not None:
            if not self._tunnel.closed:
                self._tunnel.send(RESET, encode_code(APP_RESET))
            self._tunnel.close()
            self._tunnel = None
            self._plane.pool.pass_on(self._target.key)
        if self._near is not None:
            self._plane.poller.forget(self._near.fileno())
            reset(self._near)
            self._near = None
        self._report(0, 0, close)

    def _report(self, sent: int, received: int, close: str) -> None:
        self.phase = advance(self.phase, Phase.ENDED)
        self._plane.link_over(self, sent, received, close)


def _for_the_next_link(found: Found | None) -> None:
    """The directory keeps the answer; the link that asked goes on without it."""
