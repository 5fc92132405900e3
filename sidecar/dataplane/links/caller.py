"""Whether a peer's address is known to be its own, so that the app may be shown it."""

from sidecar.dataplane.plane import Plane
from sidecar.dataplane.tunnels.tunnel import Tunnel
from sidecar.directory import Workload
from sidecar.source_address import Source


def source_of_tunnel(plane: Plane, tunnel: Tunnel) -> Source | None:
    """How the app comes to see the peer's address; None for the pod's own.

    The address must stand in the peer's leaf. Where leaves name no pods (a SPIFFE agent's), the
    registry must say that a pod of the peer's identity has it.
    Only the first link of a tunnel shows the tunnel's port: the next one is another connection.
    """
    if not (sources := plane.sources).wanted:
        return None
    ip = tunnel.peer_ip
    checked = tunnel.direct
    if not checked and not plane.leaves_name_pods and not tunnel.peer.ips:
        known = plane.directory.known(ip)
        checked = isinstance(known, Workload) and known.identity == tunnel.peer.identity
    return sources.seen(ip, tunnel.peer_port if tunnel.links == 1 else 0, checked=checked)
