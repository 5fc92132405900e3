"""Cuts what is open to a banned peer. New tunnels to it are refused by `plane.verify` before this."""

from certs.trust.bans import Bans
from sidecar.dataplane.arrival import Arrivals
from sidecar.dataplane.context import Plane
from sidecar.wire.opening import CUT_BY_BAN


def cut_banned(plane: Plane, arrivals: Arrivals, bans: Bans) -> int:
    """End every link, idle tunnel and peer's tunnel whose far end `bans` covers, now.

    Returns how many links were cut.
    """
    cut = 0
    for link in list(plane.live):
        if link.peer is not None and bans.covers(link.peer) is not None:
            link.cut(CUT_BY_BAN, "banned")
            cut += 1
    plane.pool.drop_where(lambda tunnel: bans.covers(tunnel.peer) is not None)
    for tunnel in list(arrivals.tunnels):
        if bans.covers(tunnel.peer) is not None:
            tunnel.close()
    return cut
