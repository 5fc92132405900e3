"""Looks over all links and idle tunnels every few seconds, so that no link needs a timer of its own.

Says of a long link that it is open, cuts a link whose certificates have ended, and closes peers'
tunnels that lie idle.
"""

import asyncio
import copy
import gc
from typing import Final

from sidecar.dataplane.links.arrival import Arrivals
from sidecar.dataplane.plane import LiveLink, Plane
from sidecar.resident import return_free_heap
from sidecar.wire.opening import CUT_AT_EXPIRY

EVERY_S: Final = 5.0
TOLD_AFTER_NS: Final = 60 * 1_000_000_000
ACCEPTOR_IDLE_S: Final = 90.0
"""Longer than a dialler keeps one, so that it is the dialler who closes (see `pool`)."""


BURST: Final = 64
"""So many links and tunnels at once leave enough behind for it to be worth milliseconds of work."""
_STOOD_STILL_S: Final = 1.0


class Sweep:
    def __init__(self, plane: Plane, arrivals: Arrivals) -> None:
        self._plane, self._arrivals = plane, arrivals
        self._told: set[LiveLink] = set()
        self._due = plane.now() + EVERY_S
        self._most = 0
        """The most links and tunnels at once since memory was last given back."""
        self._timer: asyncio.TimerHandle = plane.poller.call_later(EVERY_S, self._round)

    def close(self) -> None:
        self._timer.cancel()

    def _round(self) -> None:
        # First the next round: one link that cannot be cut must not keep the others alive.
        self._timer = self._plane.poller.call_later(EVERY_S, self._round)
        self.look()

    def _give_back(self) -> None:
        """Most of a burst of links is over: return what they had used, which malloc keeps otherwise."""
        plane = self._plane
        now = len(plane.live) + len(plane.pool) + len(self._arrivals.tunnels)
        self._most = max(self._most, now)
        if self._most >= BURST and now <= self._most // 2:
            self._most = now
            gc.collect()
            return_free_heap()

    def broken(self, error: Exception) -> None:
        """A round failed; the next one is due already."""

    def look(self) -> None:
        """One round, now."""
        plane = self._plane
        now, now_ns = plane.now(), plane.unix_ns()
        # After a standstill of ours what has come in lies unread: nobody is blamed in this round.
        late, self._due = now - self._due > _STOOD_STILL_S, now + EVERY_S
        for link in list(plane.live):
            if not late:
                plane.poller.call(link.look, now)
            ends = link.tunnel_expires_at
            if ends is not None and ends <= now:
                plane.poller.call(link.cut, CUT_AT_EXPIRY, "expired")
            elif link not in self._told and now_ns - link.record.start_ns > TOLD_AFTER_NS:
                self._told.add(link)
                told = copy.copy(link.record)
                told.still_open = True
                told.bytes_sent, told.bytes_received = link.moved
                told.end_ns = now_ns
                plane.poller.call(plane.report, told)
        plane.poller.call(plane.renewals.look)
        self._thin_out()
        for tunnel in list(self._arrivals.tunnels):
            tunnel.look()
            if tunnel.expires_at <= now or (
                tunnel.idle and tunnel.idle_since + ACCEPTOR_IDLE_S < now
            ):
                tunnel.close()
        self._told &= plane.live
        self._give_back()
        plane.ejections.forget_before(now)

    def _thin_out(self) -> None:
        """Close the longest idle tunnels of a peer that keeps more than it needs."""
        plane, tunnels = self._plane, self._arrivals.tunnels
        most = plane.limits.idle_tunnels_per_peer
        for ip in tunnels.crowds(most):
            idle = [each for each in list(tunnels) if each.peer_ip == ip and each.idle]
            idle.sort(key=lambda each: each.idle_since)
            for tunnel in idle[: max(0, len(idle) - most)]:
                plane.count_turned_away("idle_tunnels_per_peer")
                tunnel.close()
