"""Where a link goes: from what the app dialled to one route, and to the next one if that fails.

    original destination -> known, or asked of the registry -> an endpoint chosen -> a route

What a route is, is decided in `route`; which endpoint, in `choose`. Here is what a link remembers of it
and what it does when the answer was wrong.
"""

from typing import Final

from sidecar.dataplane.plane import Plane
from sidecar.dataplane.routing.choose import choose
from sidecar.dataplane.routing.route import Route, to_address, to_endpoint, to_self
from sidecar.directory import EXTERNAL, Found, Gone, Service, Workload
from sidecar.errors import (
    AlpnMismatch,
    EndpointUnreachable,
    HandshakeFailed,
    IdentityMismatch,
    NoEndpoints,
    PeerUntrusted,
    RegistryUnavailable,
    SidecarError,
)
from sidecar.report import LinkRecord

MAX_ATTEMPTS: Final = 3
_SOMEBODY_ELSE = (IdentityMismatch, HandshakeFailed, AlpnMismatch, PeerUntrusted)
"""What happens where another pod, or one without a sidecar, has the address now."""


class Seeker:
    """The part of a link that looks for its destination. The link says what it does with a route
    (`_take`), with none (`_fail`), and whether it still wants one (`_over`)."""

    __slots__ = (
        "_asked",
        "_asked_anew",
        "_dialled_port",
        "_plane",
        "_service",
        "_tried",
        "record",
    )

    _asked: str
    """The name that stands behind the app's local port, if that is how the link began."""
    _dialled_port: int
    """The port that the app asked for: of a pod, of a Service, or outside."""

    def __init__(self, plane: Plane, record: LinkRecord) -> None:
        self._plane, self.record = plane, record
        self._service: Service | None = None
        self._tried: list[str] = []
        self._asked_anew = False

    def _take(self, route: Route) -> None:
        raise NotImplementedError

    def _fail(self, error: SidecarError, close: str = "refused") -> None:
        raise NotImplementedError

    def _over(self) -> bool:
        raise NotImplementedError

    def _resolve(self, key: str, port: int) -> None:
        plane = self._plane
        self._dialled_port = port
        if key in plane.own.ips:
            return self._take(to_self(key, port, plane.own))
        found = plane.directory.known(key)
        if found is not None:
            return self._found(found, port)
        if self.record.original_ip and not plane.in_cluster(key):
            return self._found(EXTERNAL, port)
        return plane.directory.ask(key, lambda found: self._answered(key, port, found))

    def _answered(self, key: str, port: int, found: Found | None) -> None:
        if self._over():
            return
        if found is None:
            self._fail(RegistryUnavailable(f"the registry did not say in time who is at {key}"))
        else:
            self._found(found, port)

    def _found(self, found: Found, port: int) -> None:
        if isinstance(found, Service):
            self._service = found
            self.record.service = found.key
            return self._next_endpoint()
        if isinstance(found, Gone):
            return self._fail(EndpointUnreachable(f"{found.pod}, whose address this was, is gone"))
        ip = self.record.original_ip
        if not ip and isinstance(found, Workload) and found.ips:
            ip = found.ips[0]
        if not ip:  # an upstream: to connect to "" would be to connect to ourselves
            return self._fail(
                NoEndpoints(f"the registry knows no {self._asked}, or no address of it")
            )
        return self._take(to_address(found, ip, port, allow_external=self._plane.allow_external))

    @property
    def _version(self) -> int:
        """The IP version that the app dialled; 0 if it was a name."""
        ip = self.record.original_ip
        return 0 if not ip else 6 if ":" in ip else 4

    def _next_endpoint(self, last_error: SidecarError | None = None) -> None:
        plane, service, port = self._plane, self._service, self._dialled_port
        assert service is not None
        chosen = choose(
            service,
            port,
            plane.own,
            now=plane.now(),
            memory=plane.choices,
            ejections=plane.ejections,
            open_links=lambda ip, port: plane.open_links.get((ip, port), 0),
            random=plane.random,
            tried=self._tried,
            version=self._version,
        )
        if chosen is None and last_error is not None:
            return self._fail(last_error)
        if chosen is None:
            lacks = "no endpoint to dial at" if port in service.ports else "no"
            return self._fail(NoEndpoints(f"{service.key} has {lacks} port {port}"))
        return self._take(to_endpoint(chosen, plane.own, allow_external=plane.allow_external))

    def _try_elsewhere(self, error: SidecarError) -> None:
        """Before ACCEPT: another endpoint of the Service, if there is one that was not tried."""
        record = self.record
        if self._service is None or record.attempts >= MAX_ATTEMPTS:
            return self._fail(error)
        self._tried.append(record.destination_ip)
        return self._next_endpoint(error)

    def _dial_failed(self, error: SidecarError) -> None:
        """Nobody took the connection, or not the one who must be there. In the latter case what we
        know may be old (addresses are used again), so the registry is asked anew."""
        self._eject()
        if not isinstance(error, _SOMEBODY_ELSE):
            return self._try_elsewhere(error)
        key = self.record.original_ip or self._asked
        if self._service is not None:
            self._plane.directory.ask_anew(key, lambda _: None)
            return self._try_elsewhere(error)
        if self._asked_anew:
            return self._fail(error)
        self._asked_anew = True
        old = self._plane.directory.known(key)
        return self._plane.directory.ask_anew(key, lambda found: self._told_anew(old, found, error))

    def _told_anew(self, old: Found | None, found: Found | None, error: SidecarError) -> None:
        if self._over():
            return
        if found is None or found == old:
            self._fail(error)
        else:
            self._found(found, self._dialled_port)

    def _eject(self) -> None:
        record = self.record
        self._plane.ejections.failed(
            record.destination_ip, record.destination_port, self._plane.now()
        )
