"""A tunnel for a link: an idle one of the pool, or a new one.

An idle tunnel that nobody has used for a moment may lead to nobody by now, and a link whose bytes
went into it could not be moved: an ACCEPT may have been what was lost. So such a tunnel is asked first
(PING), which costs a round trip, and the link goes elsewhere if no answer comes.
"""

from collections.abc import Callable
from typing import Final

from certs.trust.identity import WorkloadIdentity
from sidecar.dataplane.loop.connect import Connect
from sidecar.dataplane.loop.deadlines import Deadline
from sidecar.dataplane.plane import Plane
from sidecar.dataplane.routing.destination import Seeker
from sidecar.dataplane.tunnels.dial import Dial
from sidecar.dataplane.tunnels.pool import Key
from sidecar.dataplane.tunnels.tunnel import Tunnel
from sidecar.errors import NotReady, ProtocolViolation, SidecarError
from sidecar.report import LinkRecord
from sidecar.wire.frames import PONG

FRESH_S: Final = 2.0
"""A tunnel that was in use so lately is taken without asking."""
PONG_WITHIN_S: Final = 1.0
"""Twice what the kernel takes to repeat a lost packet inside a cluster. A peer that is merely busy costs
the link a new tunnel, not its life."""
CERTIFICATE_WAIT_S: Final = 10.0
_CERTIFICATE_POLL_S: Final = 0.05


class Obtainer(Seeker):
    """The part of a link that comes by a tunnel to `_key`; what it does with one is `_open`."""

    __slots__ = ("_identity", "_key", "_peer_port", "_step", "_wait_until")

    _identity: WorkloadIdentity
    """Who must be at the destination; set once it is known to be meshed."""
    _peer_port: int
    """The port dialled at the peer."""
    _key: Key
    """Under what the pool keeps tunnels to the destination."""

    def __init__(self, plane: Plane, record: LinkRecord) -> None:
        super().__init__(plane, record)
        self._step: Connect | Dial | _Asked | None = None
        self._wait_until = 0.0

    def _open(self, tunnel: Tunnel) -> None:
        raise NotImplementedError

    def _take_or_dial(self) -> None:
        pool, key = self._plane.pool, self._key
        if pool.crowded(key):
            return pool.wait(key, self._my_turn)
        return self._my_turn()

    def _my_turn(self) -> None:
        plane, record = self._plane, self.record
        if self._over():
            return plane.pool.pass_on(self._key)
        record.attempts += 1
        tunnel = plane.pool.take(self._key)
        record.pooled = tunnel is not None
        if tunnel is None:
            return self._dial()
        if plane.now() - tunnel.idle_since < FRESH_S:
            return self._open(tunnel)
        self._step = _Asked(plane, tunnel, self._asked_whether_it_lives)
        return None

    def _asked_whether_it_lives(self, tunnel: Tunnel, lives: bool) -> None:
        self._step = None
        if lives:
            return self._open(tunnel)
        self.record.pooled = False
        return self._dial()

    def _dial(self) -> None:
        plane, record = self._plane, self.record
        trust = plane.usable_trust()
        if trust is None:
            return self._wait_for_certificate()
        record.source_identity = trust.identity
        plane.pool.dial_began(self._key)
        dial = Dial(
            plane, trust, record.destination_ip, self._peer_port, self._identity, self._dialled
        )
        if dial.pending:
            self._step = dial
        return None

    def _wait_for_certificate(self) -> None:
        """Hold the connection until our first certificate comes; expired ones are never used."""
        now = self._plane.now()
        if not self._wait_until:
            self._wait_until = now + CERTIFICATE_WAIT_S
            self._plane.pool.pass_on(self._key)  # whoever waits behind us would wait for ever
        if now >= self._wait_until:
            self._plane.pool.pass_on(self._key)
            return self._fail(NotReady("no valid certificate of our own: is the CA reachable?"))
        self._plane.poller.call_later(_CERTIFICATE_POLL_S, self._dial_again)
        return None

    def _dial_again(self) -> None:
        if not self._over():
            self._dial()
        else:
            self._plane.pool.pass_on(self._key)

    def _dialled(self, tunnel: Tunnel | None, error: SidecarError | None) -> None:
        self._step = None
        self._plane.pool.dial_ended(self._key)
        if tunnel is None:
            assert error is not None
            return self._dial_failed(error)
        self._open(tunnel)
        return tunnel.start()

    def _step_is_over(self) -> None:
        """Give up whatever is under way: the link has ended."""
        step, self._step = self._step, None
        if step is None:
            return
        step.abandon()
        if isinstance(step, Dial):
            self._plane.pool.dial_ended(self._key)
        elif isinstance(step, _Asked):
            self._plane.pool.pass_on(self._key)


class _Asked:
    """An idle tunnel, asked whether its far proxy lives. `done(tunnel, lives)` is called once."""

    __slots__ = ("_deadline", "_done", "_plane", "_tunnel")

    def __init__(self, plane: Plane, tunnel: Tunnel, done: Callable[[Tunnel, bool], None]) -> None:
        self._plane, self._tunnel, self._done = plane, tunnel, done
        tunnel.user = self
        if not tunnel.pinged:  # else the pool has asked already
            tunnel.ping()
        self._deadline = Deadline(plane.poller, PONG_WITHIN_S, self._too_late)

    def abandon(self) -> None:
        self._deadline.cancel()
        self._tunnel.close()

    def tunnel_data(self, piece: memoryview) -> None:
        raise ProtocolViolation("DATA on an idle tunnel")

    def tunnel_control(self, kind: int, payload: bytes) -> None:
        if kind == PONG:
            self._deadline.cancel()
            lives = self._tunnel.reusable
            if not lives:  # it has said GOAWAY meanwhile
                self._tunnel.close()
            self._done(self._tunnel, lives)

    def tunnel_writable(self) -> None:
        """Nothing more is written before the answer."""

    def tunnel_lost(self, error: SidecarError) -> None:
        self._deadline.cancel()
        self._done(self._tunnel, False)

    def _too_late(self) -> None:
        """Nobody is there: then nobody is at the other end of its siblings either."""
        key = self._tunnel.key
        self._tunnel.close()
        self._plane.pool.drop_where(lambda idle: idle.key == key)
        self._done(self._tunnel, False)
