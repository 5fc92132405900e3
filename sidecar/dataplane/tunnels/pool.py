"""Idle tunnels, kept for the next link to the same peer.

A full mutual handshake costs about a millisecond of CPU for both ends, a link over an idle tunnel a
tenth of that: the pool decides the cost of a connection. The most recently used tunnel goes first,
so that the rest can age out. An idle tunnel keeps reading: a dead one is noticed before it is used.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sidecar.dataplane.loop.poller import Poller
from sidecar.dataplane.tunnels.tunnel import Tunnel
from sidecar.errors import ProtocolViolation, SidecarError
from sidecar.wire.frames import GOAWAY

SWEEP_EVERY_S: Final = 5.0
REPLACE_BEFORE_S: Final = 30.0
"""A tunnel with less than this left to live takes no new link."""

PING_AFTER_S: Final = 10.0
"""An idle tunnel is asked once whether its far proxy lives."""
PONG_WITHIN_S: Final = 15.0
_STOOD_STILL_S: Final = 1.0
"""A sweep later than this says more of us than of any peer: nobody is blamed in it."""

Key = tuple[str, int, str]
"""Pod IP, the port dialled, and who must be there (a SPIFFE ID as text: it hashes at once)."""


@dataclass(frozen=True, slots=True)
class PoolLimits:
    idle_per_peer: int = 128
    idle_in_all: int = 2048
    idle_s: float = 60.0
    """Shorter than an acceptor waits, so that the dialler is the one who closes."""
    dials_per_peer: int = 32
    """Handshakes under way to one peer. More links wait for a tunnel to come free or a handshake to
    end: a thousand at once would cost both ends a second of CPU and meet the peer's limits."""


class Pool:
    """The dialler's idle tunnels. `sweep` runs on a timer until `close`."""

    def __init__(
        self,
        poller: Poller,
        now: Callable[[], float],
        limits: PoolLimits = PoolLimits(),
    ) -> None:
        self._poller, self._now, self._limits = poller, now, limits
        self._idle: dict[Key, list[Tunnel]] = {}
        self._by_age: OrderedDict[Tunnel, None] = OrderedDict()
        self._dials: dict[Key, int] = {}
        self._waiting: dict[Key, deque[Callable[[], None]]] = {}
        self._due = now() + SWEEP_EVERY_S
        self._timer = poller.call_later(SWEEP_EVERY_S, self._sweep)

    def __len__(self) -> int:
        return len(self._by_age)

    def peers(self) -> dict[Key, dict[str, int]]:
        """For the admin socket: idle tunnels, dials under way and waiting links by peer."""
        return {
            key: {
                "idle": len(self._idle.get(key, ())),
                "dials": self._dials.get(key, 0),
                "waiting": len(self._waiting.get(key, ())),
            }
            for key in {*self._idle, *self._dials, *self._waiting}
        }

    def take(self, key: Key) -> Tunnel | None:
        """The idle tunnel to this peer that was used last, or None."""
        idle = self._idle.get(key)
        while idle:
            tunnel = idle.pop()
            del self._by_age[tunnel]
            if tunnel.reusable and tunnel.expires_at - REPLACE_BEFORE_S > self._now():
                return tunnel
            tunnel.close()
        return None

    def give(self, key: Key, tunnel: Tunnel) -> None:
        """Keep a tunnel whose link has ended, if it may be used again and there is room."""
        if not tunnel.reusable or len(self._idle.get(key, ())) >= self._limits.idle_per_peer:
            tunnel.close()
            return self._wake(key)
        if len(self._by_age) >= self._limits.idle_in_all:
            self._drop(next(iter(self._by_age)))
        idle = self._idle.setdefault(key, [])  # only now: the one dropped may have been its last
        tunnel.key, tunnel.user, tunnel.idle_since = key, _Idle(self, tunnel), self._now()
        tunnel.link = None
        idle.append(tunnel)
        self._by_age[tunnel] = None
        return self._wake(key)

    def crowded(self, key: Key) -> bool:
        """Whether a new link to this peer should `wait`: others do, or enough dials are under way."""
        return key in self._waiting or self._dials.get(key, 0) >= self._limits.dials_per_peer

    def wait(self, key: Key, turn: Callable[[], None]) -> None:
        """Call `turn` when a tunnel to this peer has come free or another dial may begin."""
        self._waiting.setdefault(key, deque()).append(turn)

    def dial_began(self, key: Key) -> None:
        self._dials[key] = self._dials.get(key, 0) + 1

    def dial_ended(self, key: Key) -> None:
        """However it ended; each `dial_began` is followed by one of these."""
        left = self._dials[key] - 1
        if left:
            self._dials[key] = left
        else:
            del self._dials[key]
        self._wake(key)

    def pass_on(self, key: Key) -> None:
        """A link whose turn came needs it no more, or the tunnel it had is gone."""
        self._wake(key)

    def _wake(self, key: Key) -> None:
        waiting = self._waiting.get(key)
        if waiting:
            self._poller.call_soon(waiting.popleft())
            if not waiting:
                del self._waiting[key]

    def drop_all(self) -> None:
        """Close every idle tunnel: on shutdown, or because who we are has changed."""
        for tunnel in list(self._by_age):
            self._drop(tunnel)

    def drop_where(self, unwanted: Callable[[Tunnel], bool]) -> int:
        """Close the idle tunnels that are `unwanted`; returns how many."""
        found = [tunnel for tunnel in self._by_age if unwanted(tunnel)]
        for tunnel in found:
            self._drop(tunnel)
        return len(found)

    def close(self) -> None:
        self._timer.cancel()
        self.drop_all()

    def _drop(self, tunnel: Tunnel) -> None:
        if tunnel in self._by_age:
            del self._by_age[tunnel]
            key: Key = tunnel.key  # type: ignore[assignment]
            self._idle[key].remove(tunnel)
            if not self._idle[key]:
                del self._idle[key]
        tunnel.close()

    def broken(self, error: Exception) -> None:
        """A sweep failed; the next one is due already."""

    def _sweep(self) -> None:
        # First the next one: a tunnel that cannot be closed must not keep the others alive.
        self._timer = self._poller.call_later(SWEEP_EVERY_S, self._sweep)
        now = self._now()
        late, self._due = now - self._due > _STOOD_STILL_S, now + SWEEP_EVERY_S
        for tunnel in list(self._by_age):
            tunnel.allow_again()
            if not late and not self._answers(tunnel, now):
                self._drop(tunnel)
                continue
            too_old = tunnel.idle_since + self._limits.idle_s < now
            if too_old or tunnel.expires_at - REPLACE_BEFORE_S < now:
                self._drop(tunnel)
        for key in [key for key, idle in self._idle.items() if not idle]:
            del self._idle[key]

    def _answers(self, tunnel: Tunnel, now: float) -> bool:
        """Whether the far proxy still lives, as far as we know; asks it from time to time."""
        idle_s = now - tunnel.idle_since
        if tunnel.pinged:
            # Asked at PING_AFTER_S or later; a proxy that hangs must not get the next link.
            return idle_s < PING_AFTER_S + PONG_WITHIN_S
        if PING_AFTER_S <= idle_s < PING_AFTER_S + SWEEP_EVERY_S:
            tunnel.ping()
        return True


class _Idle:
    """Minds a tunnel while no link uses it."""

    __slots__ = ("_pool", "_tunnel")

    def __init__(self, pool: Pool, tunnel: Tunnel) -> None:
        self._pool, self._tunnel = pool, tunnel

    def tunnel_data(self, piece: memoryview) -> None:
        raise ProtocolViolation("DATA on an idle tunnel")

    def tunnel_control(self, kind: int, payload: bytes) -> None:
        if kind == GOAWAY:
            self._pool._drop(self._tunnel)

    def tunnel_writable(self) -> None:
        """Nothing waits to be written."""

    def tunnel_lost(self, error: SidecarError) -> None:
        self._pool._drop(self._tunnel)
