"""Whether a peer's address is known to be its own, so that the app may be shown it."""

from sidecar.dataplane.plane import Plane
from sidecar.dataplane.tunnels.tunnel import Tunnel
from sidecar.directory import Workload
from sidecar.sockets import loopback_of
from sidecar.source_address import Source


def source_of_tunnel(plane: Plane, tunnel: Tunnel, to: str) -> Source | None:
    """How an app at the address `to` comes to see the peer's; None for the pod's own.

    The address must stand in the peer's leaf. Where leaves name no pods (a SPIFFE agent's), the
    registry must say that a pod of the peer's identity has it.
    At loopback only loopback can call. An app of the other IP version sees the peer's address of that
    version, if its leaf names one.
    Only the first link of a tunnel shows the tunnel's port: the next one is another connection.
    """
    if not (sources := plane.sources).wanted or to == loopback_of(to):
        return None
    ip = tunnel.peer_ip
    checked = tunnel.direct
    if not checked and not plane.leaves_name_pods and not tunnel.peer.ips:
        known = plane.directory.known(ip)
        checked = isinstance(known, Workload) and known.identity == tunnel.peer.identity
    if (":" in ip) != (":" in to):
        others = [one for one in tunnel.peer.ips if (":" in one) == (":" in to)]
        return sources.seen(others[0], checked=checked) if len(others) == 1 else None
    return sources.seen(ip, tunnel.peer_port if tunnel.links == 1 else 0, checked=checked)
