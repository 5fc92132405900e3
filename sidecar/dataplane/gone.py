"""Which pods have gone, by a new word of the registry: no idle tunnel there gets another link."""

from sidecar.dataplane.context import Plane
from sidecar.directory import Found, Service, Workload


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
