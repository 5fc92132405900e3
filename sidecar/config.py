"""Settings of the proxy, read once at start. Nothing else in `sidecar` reads the environment."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from certs.client.choose import SourceConfig
from certs.settings import trust_domain
from certs.trust.identity import IdentityMalformed, WorkloadIdentity
from kit.contract import (
    ADMIN_SOCKET,
    BUNDLE_PATH,
    NO_HTTP_PORTS,
    OWN_PORTS,
    PROXY_MARK,
    SOURCE_ADDRESSES,
    TOKEN_PATH,
)
from kit.ports import NO_PORTS, PortSet
from kit.settings import ConfigInvalid, Settings
from sidecar.directory import Own
from sidecar.probes.spec import AppProbes

_CLUSTER_CIDRS = "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,100.64.0.0/10,fc00::/7"
_UPSTREAM = re.compile(
    r"(?P<local>[0-9]{1,5})=(?P<host>[a-z0-9]([a-z0-9.-]{0,250}[a-z0-9])?):(?P<port>[0-9]{1,5})",
    re.ASCII,
)
MAX_WORKERS = 16
_LOG_LEVELS = frozenset({"debug", "info", "warning", "error"})
_ALLOW_DENY = frozenset({"allow", "deny"})


@dataclass(frozen=True, slots=True)
class Upstream:
    """`127.0.0.1:<local_port>` in the pod stands for `key` (`name.namespace`) and `port`."""

    local_port: int
    key: str
    port: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SidecarConfig:
    own: Own
    trust_domain: str
    svid_source: SourceConfig
    identity: WorkloadIdentity
    """Who this pod is to be; what it is, its leaf says."""
    ca_address: str
    registry_address: str
    token_path: Path
    bundle_path: Path
    admin_socket: Path
    mode: str
    """`redirect`: connections are captured. `localhost`: only `upstreams` and direct tunnels."""
    shows_source: bool
    """Whether the app is to see its peer's address; never where nothing is captured."""
    upstreams: tuple[Upstream, ...]
    allow_plaintext: bool
    """Insecure. What the pod asks for; who is let in is known once the registry has spoken."""
    allow_external: bool
    cluster_networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
    http_ports: PortSet | None
    loopback_ports: PortSet
    """Ports of the app that leave request spans; None: those that its Services say speak HTTP."""
    watches_requests: bool
    """False: no request leaves a span here, whatever anybody says."""
    mark: int
    """SO_MARK on our own connections; 0 where capture exempts us by UID."""
    probes: AppProbes
    """The app's own probes, which the kubelet asks us to run."""
    log_level: str
    workers: int
    """Processes that carry links."""
    memory_limit: int
    """Bytes; 0: what the cgroup says, if it says anything."""
    drain_linger_s: float
    """How long there must have been no link before we end; 0 where our SIGTERM comes after the app's
    end (native sidecars, KEP-753)."""
    drain_s: float
    """How long running links may go on after SIGTERM."""

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Raises ConfigInvalid naming the setting."""
        mode = settings.choice("PODLINK_MODE", "redirect", frozenset({"redirect", "localhost"}))
        source_address = settings.choice("PODLINK_SOURCE_ADDRESS", "peer", SOURCE_ADDRESSES)
        return cls(
            own=Own(
                namespace=settings.text("POD_NAMESPACE"),
                name=settings.text("POD_NAME"),
                uid=settings.text("POD_UID"),
                ips=frozenset(_ips(settings)),
                node=settings.text("NODE_NAME", " ").strip(),
            ),
            trust_domain=trust_domain(settings),
            svid_source=SourceConfig.from_settings(settings),
            identity=_identity(settings),
            ca_address=settings.text("PODLINK_CA_ADDRESS"),
            registry_address=settings.text("PODLINK_REGISTRY_ADDRESS"),
            token_path=settings.path("PODLINK_TOKEN_PATH", TOKEN_PATH),
            bundle_path=settings.path("PODLINK_BUNDLE_PATH", BUNDLE_PATH),
            admin_socket=settings.path("PODLINK_ADMIN_SOCKET", ADMIN_SOCKET),
            mode=mode,
            shows_source=mode == "redirect" and source_address == "peer",
            upstreams=_upstreams(settings),
            allow_plaintext=settings.choice("PODLINK_PLAINTEXT", "deny", _ALLOW_DENY) == "allow",
            allow_external=settings.choice("PODLINK_EXTERNAL", "allow", _ALLOW_DENY) == "allow",
            cluster_networks=_networks(settings),
            http_ports=_http_ports(settings),
            loopback_ports=_port_set(settings, "PODLINK_EXPOSE_LOOPBACK_PORTS"),
            watches_requests=settings.optional("PODLINK_HTTP_PORTS") != NO_HTTP_PORTS,
            mark=PROXY_MARK
            if settings.choice("PODLINK_EXEMPT_BY", "uid", frozenset({"uid", "mark"})) == "mark"
            else 0,
            probes=AppProbes.from_settings(settings),
            log_level=settings.choice("PODLINK_LOG_LEVEL", "info", _LOG_LEVELS),
            workers=settings.integer("PODLINK_WORKERS", 1, low=1, high=MAX_WORKERS),
            memory_limit=settings.integer("PODLINK_MEMORY_LIMIT", 0, low=0, high=1 << 50),
            drain_linger_s=settings.seconds("PODLINK_DRAIN_LINGER", 0.0),
            drain_s=settings.seconds("PODLINK_SHUTDOWN_GRACE_PERIOD", 25.0),
        )


def _http_ports(settings: Settings) -> PortSet | None:
    raw = settings.optional("PODLINK_HTTP_PORTS")
    if not raw or raw == NO_HTTP_PORTS:
        return None if not raw else NO_PORTS
    return _port_set(settings, "PODLINK_HTTP_PORTS")


def _port_set(settings: Settings, name: str) -> PortSet:
    try:
        return PortSet.parse(settings.optional(name) or "")
    except ValueError as e:
        raise ConfigInvalid(f"{name}: {e}") from e


def _identity(settings: Settings) -> WorkloadIdentity:
    domain, namespace = trust_domain(settings), settings.text("POD_NAMESPACE")
    account = settings.text("POD_SERVICE_ACCOUNT", "default")
    try:
        return WorkloadIdentity(domain, namespace, account)
    except IdentityMalformed as e:
        raise ConfigInvalid(f"POD_NAMESPACE or POD_SERVICE_ACCOUNT: {e}") from e


def _ips(settings: Settings) -> list[str]:
    raw = settings.text("POD_IPS")
    try:
        found = [str(ipaddress.ip_address(ip.strip())) for ip in raw.split(",") if ip.strip()]
    except ValueError as e:
        raise ConfigInvalid(f"POD_IPS: {e}") from e
    if not found:
        raise ConfigInvalid("POD_IPS names no address")
    return found


def _networks(settings: Settings) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    raw = settings.text("PODLINK_CLUSTER_CIDRS", _CLUSTER_CIDRS)
    try:
        found = tuple(ipaddress.ip_network(item.strip()) for item in raw.split(",") if item.strip())
    except ValueError as e:
        raise ConfigInvalid(f"PODLINK_CLUSTER_CIDRS: {e}") from e
    if not found:  # every pod would count as external, and be dialled in plaintext
        raise ConfigInvalid("PODLINK_CLUSTER_CIDRS names no network")
    return found


def _upstreams(settings: Settings) -> tuple[Upstream, ...]:
    """`5432=db.prod:5432, 6379=redis-0.redis.prod:6379`."""
    found: dict[int, Upstream] = {}
    for item in filter(
        None, map(str.strip, (settings.optional("PODLINK_UPSTREAMS") or "").split(","))
    ):
        match = _UPSTREAM.fullmatch(item)
        ports = [int(match[name]) for name in ("local", "port")] if match else []
        if match is None or not all(1 <= port <= 65535 for port in ports):
            raise ConfigInvalid(f"PODLINK_UPSTREAMS: {item!r} is not like 5432=db.prod:5432")
        if "." not in match["host"]:
            raise ConfigInvalid(f"PODLINK_UPSTREAMS: {item!r} needs its namespace: name.namespace")
        if ports[0] in OWN_PORTS:
            raise ConfigInvalid(f"PODLINK_UPSTREAMS: {item!r}: port {ports[0]} is podlink's own")
        if ports[0] in found:
            raise ConfigInvalid(f"PODLINK_UPSTREAMS: local port {ports[0]} is named twice")
        found[ports[0]] = Upstream(ports[0], match["host"].removesuffix(".svc"), ports[1])
    return tuple(found.values())
