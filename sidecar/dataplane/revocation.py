"""What a new policy, a new ban list or a new word of the registry does to what is open already.

A link was let in by the rules of its first moment; one that outlived them would make a revocation a
matter of patience. Only the receiving end judges policy; a change of `external` ends links of our own
app. New tunnels to the banned are refused by `plane.verify` before this.
"""

from certs.trust.bans import Bans
from policy.judge import Denial, judge
from sidecar.authorise import refusal
from sidecar.dataplane.plane import LiveLink, Plane
from sidecar.dataplane.tunnels.inbound import InboundTunnels
from sidecar.directory import Found, Service, Workload
from sidecar.errors import ExternalDenied, SidecarError
from sidecar.wire.opening import CUT_BY_BAN

_OUTSIDE = frozenset({"external", "unmeshed_peer", "host_network"})


def reauthorise(plane: Plane) -> int:
    """Cut what may no longer be, by `plane.policy` and `plane.allow_external`; returns how many."""
    cut = 0
    for link in list(plane.live):
        error = objection(plane, link)
        if error is not None:
            plane.poller.call(link.deny, error)
            cut += 1
    return cut


def objection(plane: Plane, link: LiveLink) -> SidecarError | None:
    """Why this link may no longer be, by what is in force now; None: it may."""
    record = link.record
    if record.direction == "outbound":
        if (
            record.security == "plaintext"
            and record.reason in _OUTSIDE
            and not plane.allow_external
        ):
            where = record.destination_pod or record.destination_ip
            return ExternalDenied(f"{where} is outside the mesh ({record.reason})")
        return None
    peer = link.peer.identity if link.peer is not None else None
    verdict = judge(peer, record.source_ip, record.destination_port, plane.policy)
    return refusal(verdict) if isinstance(verdict, Denial) else None


def cut_banned(plane: Plane, tunnels: InboundTunnels, bans: Bans) -> int:
    """End every link, idle tunnel and peer's tunnel whose far end `bans` covers, now.

    Returns how many links were cut.
    """
    cut = 0
    for link in list(plane.live):
        if link.peer is not None and bans.covers(link.peer) is not None:
            plane.poller.call(link.cut, CUT_BY_BAN, "banned")
            cut += 1
    plane.pool.drop_where(lambda tunnel: bans.covers(tunnel.peer) is not None)
    for tunnel in list(tunnels):
        if bans.covers(tunnel.peer) is not None:
            tunnel.close()
    return cut


def cut_all(plane: Plane, tunnels: InboundTunnels) -> int:
    """End every link, idle tunnel and peer's tunnel: our own leaf proves nothing any more.

    Links that no tunnel carries prove nobody and go on. Returns how many links were cut.
    """
    cut = 0
    for link in list(plane.live):
        if link.peer is not None:
            plane.poller.call(link.cut, CUT_BY_BAN, "banned")
            cut += 1
    plane.pool.drop_all()
    for tunnel in list(tunnels):
        tunnel.close()
    return cut


def addresses_left(key: str, old: Found | None, new: Found) -> frozenset[str]:
    """The pod IPs that stood behind `key` and do so no more. A pod that is merely not ready stays among
    its Service's endpoints."""
    if isinstance(old, Service) and isinstance(new, Service):
        return _ips(old) - _ips(new)
    if isinstance(old, Workload) and not (isinstance(new, Workload) and new.uid == old.uid):
        return frozenset({key, *old.ips})
    return frozenset()


def leave_the_gone(plane: Plane, key: str, new: Found) -> int:
    """Call it before `plane.directory` says `new`. Returns how many idle tunnels it has closed. One too
    many costs a handshake; links that run are left alone: the pod may only have changed its labels."""
    left = addresses_left(key, plane.directory.known(key), new)
    if not left:
        return 0
    return plane.pool.drop_where(lambda tunnel: tunnel.peer_ip in left)


def _ips(service: Service) -> frozenset[str]:
    return frozenset(endpoint.ip for endpoint in service.endpoints)
