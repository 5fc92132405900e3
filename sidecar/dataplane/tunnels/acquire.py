"""A tunnel for a link: an idle one of the pool, or a new one.

An idle tunnel that nobody has used for a moment may lead to nobody by now, and a link whose bytes
went into it could not be moved: an ACCEPT may have been what was lost. So such a tunnel is asked first
(PING), which costs a round trip, and a new one is dialled if no answer comes.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from certs.trust.identity import WorkloadIdentity
from sidecar.dataplane.loop.deadlines import Deadline
from sidecar.dataplane.plane import Plane
from sidecar.dataplane.tunnels.dial import Dial
from sidecar.dataplane.tunnels.pool import Key
from sidecar.dataplane.tunnels.tunnel import Tunnel
from sidecar.errors import ProtocolViolation, SidecarError
from sidecar.wire.frames import PONG

FRESH_S: Final = 2.0
"""A tunnel that was in use so lately is taken without asking."""
PONG_WITHIN_S: Final = 1.0
"""Twice what the kernel takes to repeat a lost packet inside a cluster. A peer that is merely busy costs
the link a new tunnel, not its life."""
CERTIFICATE_WAIT_S: Final = 10.0
_CERTIFICATE_POLL_S: Final = 0.05


class Target(NamedTuple):
    """The far end that a tunnel must lead to."""

    ip: str
    port: int
    """The port dialled at the peer."""
    identity: WorkloadIdentity
    """Who must be there."""
    key: Key
    """Under what the pool keeps tunnels to it."""
    connect_within_s: float
    """How long a new connection to it may take."""

    @classmethod
    def of(
        cls, ip: str, port: int, identity: WorkloadIdentity, connect_within_s: float
    ) -> "Target":
        return cls(ip, port, identity, (ip, port, str(identity)), connect_within_s)


Acquired = Callable[[Tunnel | None, SidecarError | None], None]


class Acquire:
    """One tunnel on its way. `done(tunnel, None)` or `done(None, error)` is called once, perhaps before
    `start` returns; not after `abandon`. Whoever gets the tunnel calls `pool.give` or `pool.pass_on`
    when it needs it no more."""

    __slots__ = ("_done", "_over", "_plane", "_step", "_target", "_wait_until", "pooled")

    def __init__(self, plane: Plane, target: Target, done: Acquired) -> None:
        self._plane, self._target, self._done = plane, target, done
        self._step: Dial | _Asked | None = None
        self._wait_until = 0.0
        self._over = False
        self.pooled = False
        """The tunnel is one of the pool, not a new one."""

    def start(self) -> None:
        """Take an idle tunnel or dial, when there is room for one more."""
        pool, key = self._plane.pool, self._target.key
        if pool.crowded(key):
            return pool.wait(key, self._my_turn)
        return self._my_turn()

    def dial(self) -> None:
        """A new tunnel, whatever lies in the pool."""
        self.pooled = False
        plane, target = self._plane, self._target
        trust = plane.usable_trust()
        if trust is None:
            return self._wait_for_certificate()
        plane.pool.dial_began(target.key)
        dial = Dial(
            plane,
            trust,
            target.ip,
            target.port,
            target.identity,
            self._dialled,
            target.connect_within_s,
        )
        self._step = dial
        return dial.start()

    def abandon(self) -> None:
        """Give up whatever is under way: the link has ended."""
        self._over = True
        step, self._step = self._step, None
        if step is None:
            return
        step.abandon()
        if isinstance(step, Dial):
            self._plane.pool.dial_ended(self._target.key)
        else:
            self._plane.pool.pass_on(self._target.key)

    def _my_turn(self) -> None:
        plane, key = self._plane, self._target.key
        if self._over:
            return plane.pool.pass_on(key)
        tunnel = plane.pool.take(key)
        if tunnel is None:
            return self.dial()
        self.pooled = True
        if plane.now() - tunnel.idle_since < FRESH_S:
            return self._done(tunnel, None)
        self._step = _Asked(plane, tunnel, self._asked_whether_it_lives)
        return None

    def _asked_whether_it_lives(self, tunnel: Tunnel, lives: bool) -> None:
        self._step = None
        if lives:
            return self._done(tunnel, None)
        return self.dial()

    def _wait_for_certificate(self) -> None:
        """Hold the connection until our first certificate comes; expired ones are never used."""
        plane, key = self._plane, self._target.key
        now = plane.now()
        if not self._wait_until:
            self._wait_until = now + CERTIFICATE_WAIT_S
            plane.pool.pass_on(key)  # whoever waits behind us would wait for ever
        if now >= self._wait_until or plane.withdrawn:
            plane.pool.pass_on(key)
            return self._done(None, plane.not_ready())
        plane.poller.call_later(_CERTIFICATE_POLL_S, self._dial_again)
        return None

    def _dial_again(self) -> None:
        if self._over:
            self._plane.pool.pass_on(self._target.key)
        else:
            self.dial()

    def _dialled(self, tunnel: Tunnel | None, error: SidecarError | None) -> None:
        self._step = None
        self._plane.pool.dial_ended(self._target.key)
        self._done(tunnel, error)
        if tunnel is not None:
            tunnel.start()

    def broken(self, error: Exception) -> None:
        """Its own code failed: whoever waits for the tunnel ends by that."""
        over = self._over
        self.abandon()
        if not over:
            self._plane.poller.tell(self._done, error)


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
