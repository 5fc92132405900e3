"""Where a link goes, and how: through a tunnel, in plaintext, or nowhere. Pure.

The one place that decides for plaintext outward: only to what is not meshed (an external address, a
pod without a sidecar, a port that its pod's capture leaves out) and to the pod itself. A destination
known to be meshed gets a tunnel or nothing.
"""

from typing import NamedTuple

from sidecar.dataplane.routing.choose import Choice
from sidecar.directory import EXTERNAL, External, Own, Workload
from sidecar.errors import ExternalDenied
from sidecar.report import PlaintextReason, Security


class Tunnelled(NamedTuple):
    ip: str
    port: int
    choice: str
    pod: Workload
    """Whose identity must answer there."""


class Plaintext(NamedTuple):
    ip: str
    port: int
    choice: str
    security: Security
    reason: PlaintextReason
    """Why there is no tunnel (docs/reasons.md)."""
    pod: str = ""
    """`namespace/name`, if it is a pod."""


class Refused(NamedTuple):
    ip: str
    port: int
    choice: str
    error: ExternalDenied


Route = Tunnelled | Plaintext | Refused


def to_self(ip: str, port: int, own: Own) -> Plaintext:
    """The pod itself: the bytes stay on loopback, so there is no network to protect them from."""
    return Plaintext(ip, port, "self", "self", "self", own.pod)


def to_address(
    found: Workload | External, ip: str, port: int, *, allow_external: bool, choice: str = ""
) -> Route:
    """An address that the app dialled, or that was chosen for it: `choice` says why."""
    if isinstance(found, External):
        route = Plaintext(ip, port, choice or "external", "plaintext", "external")
        return _outside(route, allow_external)
    choice = choice or "pod-ip"
    if found.takes_tunnel(port):
        return Tunnelled(ip, port, choice, found)
    if found.identity is not None:
        return Plaintext(ip, port, choice, "plaintext", "skip_port", found.pod)
    reason: PlaintextReason = "host_network" if found.host_network else "unmeshed_peer"
    return _outside(Plaintext(ip, port, choice, "plaintext", reason, found.pod), allow_external)


def to_endpoint(chosen: Choice, own: Own, *, allow_external: bool) -> Route:
    """The endpoint that was chosen for a Service; an address that is no known pod is external."""
    ip = chosen.endpoint.ip
    if ip in own.ips:
        return to_self(ip, chosen.port, own)
    found = chosen.endpoint.workload or EXTERNAL
    return to_address(found, ip, chosen.port, allow_external=allow_external, choice=chosen.why)


def _outside(route: Plaintext, allow_external: bool) -> Plaintext | Refused:
    if allow_external:
        return route
    error = ExternalDenied(f"{route.pod or route.ip} is outside the mesh ({route.reason})")
    return Refused(route.ip, route.port, route.choice, error)
