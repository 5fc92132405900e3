"""What the sidecar knows of who is where: plain values, and the questions the data plane may ask.

`sidecar.discovery` fills it from the registry; the data plane only reads. An address is a pod, a
Service, or external, or what it is depends on the port; `None` means that nobody has said yet.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from certs.trust.identity import WorkloadIdentity
from kit.ports import NO_PORTS, PortSet


@dataclass(frozen=True, slots=True)
class Workload:
    """One pod, by its spec. `identity` is what its leaf must say; None for an unmeshed pod."""

    uid: str
    namespace: str
    name: str
    identity: WorkloadIdentity | None
    ips: tuple[str, ...]
    node: str = ""
    zone: str = ""
    tunnel_only: bool = False
    """`mode: localhost`: nothing redirects its ports, so tunnels go to its inbound port."""
    skip_inbound: PortSet = NO_PORTS
    """Ports its capture leaves alone: they are reached in plaintext."""
    skip_outbound: PortSet = NO_PORTS
    http_ports: PortSet = NO_PORTS
    """Ports that its annotation says speak HTTP."""
    terminating: bool = False
    host_network: bool = False
    """On its node's network: an address that many share and that proves nobody's identity. Without a
    name it is the node's address itself."""

    @property
    def pod(self) -> str:
        return f"{self.namespace}/{self.name}" if self.name else ""

    def takes_tunnel(self, port: int) -> bool:
        """Whether a link to this port of the pod must go through a tunnel."""
        return self.identity is not None and port not in self.skip_inbound


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address behind a Service; `workload` is None for an address that is no known pod."""

    ip: str
    ports: Mapping[int, int]
    """Port of the Service to port of this endpoint."""
    workload: Workload | None
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    for_zones: frozenset[str] = frozenset()
    """Zones that its slice hints should use it."""


@dataclass(frozen=True, slots=True)
class Service:
    namespace: str
    name: str
    cluster_ips: tuple[str, ...]
    ports: frozenset[int]
    endpoints: tuple[Endpoint, ...]
    affinity_timeout_s: int = 0
    """0: no affinity."""
    balance: str = ""
    """`round-robin` or `source-hash`; empty for the least open links of two."""
    traffic_distribution: str = ""
    publish_not_ready: bool = False
    local_only: bool = False
    """`internalTrafficPolicy: Local`: endpoints of the same node or none."""
    http_ports: frozenset[int] = frozenset()
    """Those of `ports` that it says speak HTTP (`appProtocol`)."""

    @property
    def key(self) -> str:
        return f"{self.name}.{self.namespace}"


@dataclass(frozen=True, slots=True)
class External:
    """Neither a pod nor a Service of the cluster."""


@dataclass(frozen=True, slots=True)
class Gone:
    """An address of pods that is nobody's now: it may be the next pod's before anybody tells us, so it
    is not external and nothing is sent there."""

    pod: str
    """The meshed pod whose it was a moment ago; "" if that is not known."""


@dataclass(frozen=True, slots=True)
class ByPort:
    """An address some of whose ports may lead elsewhere: a node's, a load balancer's, an external IP.
    Ask for `port_key` before anything is sent there."""

    otherwise: "Workload | External"
    """What is at the other ports."""


@dataclass(frozen=True, slots=True)
class ToService:
    """One port of such an address leads to the port of a Service."""

    key: str
    """"name.namespace", to be asked for."""
    port: int
    only_node: str = ""
    """Endpoints of this node alone may be chosen."""


@dataclass(frozen=True, slots=True)
class ToPod:
    """One port of such an address leads to the port of a pod."""

    pod: Workload
    port: int


EXTERNAL = External()
Found = Workload | Service | External | Gone | ByPort | ToService | ToPod
Answer = Callable[[Found | None], None]
"""Called once with what was found, or None if nobody could say in time."""


def port_key(ip: str, port: int) -> str:
    """The key of one port of an address that is `ByPort`."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def is_port_key(key: str) -> bool:
    return ":" in key and (key[0] == "[" or key.count(":") == 1)


def is_no_pod(found: Found | None) -> bool:
    """Whether an address is known to be no pod's own: a node's (what comes through a node port), one of
    a load balancer, or one outside the cluster."""
    return isinstance(found, External | ByPort) or (
        isinstance(found, Workload) and found.host_network
    )


class Directory(Protocol):
    def known(self, key: str) -> Found | None:
        """What is known of an IP or name now, without asking; None if nothing is."""

    def ask(self, key: str, answer: Answer, *, for_record: bool = False) -> None:
        """Ask the registry; `answer` is called from the event loop, in time or with None.

        `for_record`: no link waits for it. Whoever connects to us chooses such keys, so they take no
        room from what the app asks for: with many on their way there is no answer, at once.
        """

    def ask_anew(self, key: str, answer: Answer) -> None:
        """Ask the registry whatever is known already: what was found there is not what it had said."""


@dataclass(frozen=True, slots=True)
class Own:
    """What a sidecar knows of its own pod."""

    namespace: str
    name: str
    uid: str
    ips: frozenset[str]
    node: str = ""
    zone: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def pod(self) -> str:
        return f"{self.namespace}/{self.name}"
