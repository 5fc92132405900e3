"""Where one link goes: from what the app dialled to one route, and to the next one if that fails. Pure.

    what was dialled -> known, or asked of the registry -> an endpoint chosen -> a route

An address of a node, a load balancer or an external IP takes up to two questions more: where this port
of it leads, and who is behind the Service that it leads to. Nothing is external before the registry
has said so: no configured range has a say in it.

A Destination answers with a `Step`: a route to take, a question for the registry, or an error. The
link does what the step says and comes back with what happened. What a route is, is decided in
`route`; which endpoint, in `choose`.
"""

from collections.abc import Callable, Mapping
from random import Random
from typing import Final, NamedTuple, Protocol

from sidecar.dataplane.routing.choose import Memory, choose
from sidecar.dataplane.routing.ejections import Ejections
from sidecar.dataplane.routing.route import Route, to_address, to_endpoint, to_self
from sidecar.directory import (
    ByPort,
    Found,
    Gone,
    Own,
    Service,
    ToPod,
    ToService,
    Workload,
    port_key,
)
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

MAX_ATTEMPTS: Final = 3
_SOMEBODY_ELSE = (IdentityMismatch, HandshakeFailed, AlpnMismatch, PeerUntrusted)
"""What happens where another pod, or one without a sidecar, has the address now."""


class Ask(NamedTuple):
    """The registry must say who is at `key`; then call `answered`."""

    key: str
    anew: bool = False
    """Whatever is known already: what was found there is not what the registry had said."""


class Failed(NamedTuple):
    """There is no way to go on."""

    error: SidecarError


Step = Route | Ask | Failed


class Known(Protocol):
    def known(self, key: str) -> Found | None: ...


class View(Protocol):
    """What a destination reads of the plane."""

    @property
    def own(self) -> Own: ...
    @property
    def directory(self) -> Known: ...
    @property
    def ejections(self) -> Ejections: ...
    @property
    def choices(self) -> Memory: ...
    @property
    def random(self) -> Random: ...
    @property
    def now(self) -> Callable[[], float]: ...
    @property
    def allow_external(self) -> bool: ...
    @property
    def open_links(self) -> Mapping[tuple[str, int], int]: ...


def somebody_else(error: SidecarError) -> bool:
    """Whether `error` says that the one who answered is not the one whom the registry had named."""
    return isinstance(error, _SOMEBODY_ELSE)


class Destination:
    """What one link remembers of where it goes."""

    __slots__ = (
        "_asked_anew",
        "_before",
        "_ip",
        "_only_node",
        "_pod",
        "_tried",
        "attempts",
        "key",
        "port",
        "service",
    )

    def __init__(self, key: str, port: int, *, captured: bool) -> None:
        """`key` is the IP that the app dialled if the connection was `captured`, else the Service or
        pod name that stands behind a local port."""
        self.key = key
        """What the registry is asked: for what was dialled, then for what that leads to."""
        self._ip = key if captured else ""
        self.port = port
        """The port that is asked for: of a pod, of a Service, or outside."""
        self.service: Service | None = None
        """The Service asked for; None for a pod, or an address outside."""
        self.attempts = 0
        """Routes taken so far."""
        self._only_node: str | None = None
        """Of a Service that was not reached by its ClusterIP: the node whose endpoints may be chosen, ""
        for any; None leaves it to the Service."""
        self._pod: Workload | None = None
        """A pod without a sidecar that was dialled by its own address: nobody there tries its others."""
        self._tried: list[str] = []
        self._asked_anew = False
        self._before: Found | None = None
        """What was known before the registry was asked anew."""

    def resolve(self, view: View) -> Step:
        """The first step."""
        key = self.key
        if key in view.own.ips:
            return to_self(key, self.port, view.own)
        return self._look_up(view, key)

    def _look_up(self, view: View, key: str) -> Step:
        self.key = key
        found = view.directory.known(key)
        return Ask(key) if found is None else self._found(view, found)

    def answered(self, view: View, found: Found | None, error: SidecarError | None) -> Step:
        """The registry has answered what `Ask` asked, or has not in time (`found` is None). `error`
        is what had failed before it was asked anew."""
        if error is not None:
            if found is None or found == self._before:
                return Failed(error)
            return self._found(view, found)
        if found is None:
            return Failed(
                RegistryUnavailable(f"the registry did not say in time who is at {self.key}")
            )
        return self._found(view, found)

    def elsewhere(self, view: View, error: SidecarError, ip: str) -> Step:
        """The endpoint at `ip` failed before ACCEPT: another one of the Service that was not tried, or
        of the other IP version. The app's connect has succeeded, so it cannot fall back itself."""
        self._tried.append(ip)
        if self.attempts >= MAX_ATTEMPTS:
            return Failed(error)
        if self.service is not None:
            return self._next_endpoint(view, self.service, error)
        others = self._pod.ips if self._pod is not None and not _silent(error) else ()
        other = next((one for one in others if (":" in one) != (":" in ip)), "")
        if self._pod is None or not other or other in self._tried:
            return Failed(error)
        return to_address(self._pod, other, self.port, allow_external=view.allow_external)

    def dial_failed(self, view: View, error: SidecarError, ip: str) -> Step:
        """Nobody took the connection at `ip`, or not the one who must be there. In the latter case what
        is known of a pod may be old (addresses are used again), so the registry is asked anew."""
        if self.service is not None or not somebody_else(error):
            return self.elsewhere(view, error, ip)
        if self._asked_anew:
            return Failed(error)
        self._asked_anew = True
        self._before = view.directory.known(self.key)
        return Ask(self.key, anew=True)

    def has_another(self, view: View, ip: str) -> bool:
        """Whether another endpoint than that at `ip` could be tried for this link."""
        if self.service is None or self.attempts >= MAX_ATTEMPTS:
            return False
        usable = view.choices.usable(self.service, self.port, self._version)
        return any(e.ip != ip and e.ip not in self._tried for e in usable)

    def _found(self, view: View, found: Found) -> Step:
        if isinstance(found, Service):
            self.service = found
            return self._next_endpoint(view, found)
        if self._only_node is not None:  # it led to a Service, and what was dialled is not external
            return Failed(NoEndpoints(f"there is no Service {self.key} any more"))
        if isinstance(found, ByPort):
            if self._ip and self.key == self._ip:
                return self._look_up(view, port_key(self._ip, self.port))
            found = found.otherwise
        if isinstance(found, ToService):
            self.port, self._only_node = found.port, found.only_node
            return self._look_up(view, found.key)
        if isinstance(found, ToPod):
            return self._to_host_port(view, found)
        if isinstance(found, Gone):
            return Failed(_nobody(found))
        ip = self._ip
        if not ip and isinstance(found, Workload) and found.ips:
            ip = found.ips[0]
        if not ip:  # an upstream: to connect to "" would be to connect to ourselves
            return Failed(NoEndpoints(f"the registry knows no {self.key}, or no address of it"))
        if isinstance(found, Workload) and not found.host_network:
            self._pod = None if found.takes_tunnel(self.port) else found
        return to_address(found, ip, self.port, allow_external=view.allow_external)

    def _to_host_port(self, view: View, found: ToPod) -> Step:
        """The pod's own address of the version that was dialled, if it has one."""
        pod, v6 = found.pod, ":" in self._ip
        ip = next((one for one in pod.ips if (":" in one) == v6), "") or next(iter(pod.ips), "")
        if not ip:
            return Failed(NoEndpoints(f"{pod.pod} has no address"))
        if ip in view.own.ips:
            return to_self(ip, found.port, view.own)
        choice = "host-port"
        return to_address(pod, ip, found.port, allow_external=view.allow_external, choice=choice)

    @property
    def _version(self) -> int:
        """The IP version that the app dialled; 0 if it was a name."""
        return 0 if not self._ip else 6 if ":" in self._ip else 4

    def _next_endpoint(
        self, view: View, service: Service, last_error: SidecarError | None = None
    ) -> Step:
        open_links = view.open_links
        chosen = choose(
            service,
            self.port,
            view.own,
            now=view.now(),
            memory=view.choices,
            ejections=view.ejections,
            open_links=lambda ip, port: open_links.get((ip, port), 0),
            random=view.random,
            tried=self._tried,
            version=self._version,
            only_node=self._only_node,
            other_version=self.attempts == MAX_ATTEMPTS - 1,
            refused=last_error is None or not _silent(last_error),
        )
        if chosen is not None:
            return to_endpoint(chosen, view.own, allow_external=view.allow_external)
        if last_error is not None:
            return Failed(last_error)
        lacks = "no endpoint to dial at" if self.port in service.ports else "no"
        return Failed(NoEndpoints(f"{service.key} has {lacks} port {self.port}"))


def _silent(error: SidecarError) -> bool:
    return isinstance(error, EndpointUnreachable) and error.silent


def _nobody(found: Gone) -> EndpointUnreachable:
    if found.pod:
        return EndpointUnreachable(f"{found.pod}, whose address this was, is gone")
    return EndpointUnreachable("an address of pods, and the registry knows of no pod that has it")
