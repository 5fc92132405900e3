"""What all links of one sidecar share. Filled by `sidecar.app`; the data plane only reads it."""

import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from random import Random, SystemRandom
from typing import Final, Protocol

from certs.trust.facts import LeafFacts
from certs.trust.renewal import Claim, OwnLeaf
from kit.buckets import Buckets
from kit.clock import monotonic, unix_ns, unix_s
from kit.contract import INBOUND_PORT, OWN_PORTS
from kit.ports import NO_PORTS, PortSet
from policy.rules import PolicySet
from sidecar.dataplane.limits import Limits
from sidecar.dataplane.loop.poller import Poller
from sidecar.dataplane.routing.choose import Memory
from sidecar.dataplane.routing.ejections import Ejections
from sidecar.dataplane.sources import Sources
from sidecar.dataplane.tunnels.handshake import Verify
from sidecar.dataplane.tunnels.pool import Pool
from sidecar.dataplane.tunnels.tunnel import NO_RENEWALS, Renews, Tunnel
from sidecar.directory import Directory, Own, Workload
from sidecar.errors import NotReady, SidecarError
from sidecar.listening import LoopbackListeners
from sidecar.metrics.handshakes import HandshakeMeter
from sidecar.report import LinkRecord, Report, Watcher
from sidecar.sockets import loopback_of, reset

Prove = Callable[[Claim], bytes]
"""Makes the signature of a proof by our newest leaf's key."""
JudgeProof = Callable[[Sequence[bytes], bytes, Claim], LeafFacts]
"""Judges a peer's chain (DER, leaf first) and signature for a claim (`certs.trust.possession`)."""


@dataclass(frozen=True, slots=True)
class Trust:
    """Who we are and whom we trust, of one certificate generation; replaced whole at rotation."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    identity: str
    expires_at: float
    """Monotonic end of our own leaf."""
    leaf: bytes = bytes(32)
    """SHA-256 of its DER."""
    chain: tuple[bytes, ...] = ()
    """DER, the leaf first: what a proof shows."""
    prove: Prove | None = None
    """Signs with the leaf's key; None: this leaf is proved in handshakes only."""
    own: OwnLeaf = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "own", OwnLeaf(self.leaf, self.expires_at))


_TELL_EVERY_S: Final = 60.0
_log = logging.getLogger(__name__)
BURST_S: Final = 4.0
"""How long a source may be silent and then do at once what it had not done."""


def buckets(rate: float) -> Buckets:
    """A rate by source (sidecar.dataplane.limits), and its burst."""
    return Buckets(rate, rate * BURST_S)


class LiveLink(Protocol):
    """A link that has not ended, on either side."""

    record: LinkRecord

    @property
    def moved(self) -> tuple[int, int]:
        """Bytes so far: source to destination, and back."""

    @property
    def peer(self) -> LeafFacts | None:
        """Who is at the other end of its tunnel; None for plaintext or before one."""

    @property
    def tunnel(self) -> Tunnel | None:
        """What carries it; None for plaintext or before there is one."""

    @property
    def tunnel_expires_at(self) -> float | None:
        """Monotonic end of the tunnel that carries it; None for plaintext or before one."""

    def look(self, now: float) -> None:
        """Called every few seconds: end what has waited too long."""

    def cut(self, code: int, close: str) -> None:
        """End it now; `code` is for the peer (sidecar.wire.opening.RESETS), `close` for the record."""

    def deny(self, error: SidecarError) -> None:
        """End it now, since `error` says that it may no longer be; the record says so."""


@dataclass(slots=True)
class Plane:
    poller: Poller
    own: Own
    directory: Directory
    verify: Verify
    report: Report
    pool: Pool
    judge_proof: JudgeProof | None = None
    """None: no peer's new leaf is believed but in a handshake."""
    renewals: Renews = NO_RENEWALS
    trust: Trust | None = None
    """None until the first certificate: links wait for it or are refused, never let through."""
    withdrawn: str = ""
    """Why our certificate is not used though it has not ended; empty if it is."""
    policy: PolicySet = field(default_factory=PolicySet)
    allow_external: bool = True
    cluster_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    """Where pods' addresses are expected. A hint, for what limits count a connection to: whether an
    address is external is the registry's word alone."""
    loopback_ports: PortSet = NO_PORTS
    """Ports that the pod opens though the app listens for them on loopback only: what else listens there
    alone (an admin page, a profiler) is not for peers."""
    loopback_listeners: Callable[[], frozenset[int]] = field(default_factory=LoopbackListeners)
    """Ports that somebody in the pod listens for on loopback."""
    http_ports: PortSet = NO_PORTS
    """Ports of the app whose links are watched for requests."""
    watch: Callable[[LinkRecord], Watcher] | None = None
    """Makes the watcher of one link; None watches nothing."""
    mark: int = 0
    """SO_MARK for our own connections; 0 where capture exempts us by UID."""
    sources: Sources = field(default_factory=Sources)
    """Which address an app sees as its caller's."""
    tunnel_port: int = INBOUND_PORT
    """Where peers in `localhost` mode take tunnels."""
    own_ports: frozenset[int] = OWN_PORTS
    """Ports of this pod where we listen ourselves, for tunnels or for the app: no link from outside
    may end there, or a peer would go out again in this pod's name."""
    serials_name_pods: bool = True
    """The CA writes a digest of the pod's UID into the serial, as our own leaf shows: those of an
    earlier version did not, nor does a SPIFFE agent."""
    leaves_name_pods: bool = True
    """A peer's leaf carries its pod's addresses, and must carry the one dialled. False where a SPIFFE
    agent issues: then a pod is known by its identity alone."""
    tunnel_only: bool = False
    """`mode: localhost`: peers dial our inbound port, and OPEN names the app's."""
    now: Callable[[], float] = monotonic
    unix_ns: Callable[[], int] = unix_ns
    unix_s: Callable[[], float] = unix_s
    ejections: Ejections = field(default_factory=Ejections)
    choices: Memory = field(default_factory=Memory)
    random: Random = field(default_factory=SystemRandom)
    ids: Random = field(default_factory=lambda: Random(SystemRandom().getrandbits(256)))  # noqa: S311
    """Source of trace and span ids, which need to be unique, not secret."""
    open_links: dict[tuple[str, int], int] = field(default_factory=dict)
    """How many of our links go to each endpoint now."""
    live: "set[LiveLink]" = field(default_factory=set)
    """Every link that has begun and not ended; `sidecar.dataplane.sweep` looks at them."""
    plaintext: int = 0
    """How many of those are plaintext links of peers without identity."""
    limits: Limits = field(default_factory=Limits)
    shedding: bool = False
    """Memory is short: no new links until it is not."""
    unsettled: bool = False
    """The registry has not said yet what is in force: peers' links wait for it."""
    turned_away: dict[str, int] = field(default_factory=dict)
    """Connections and links closed unheard, by the limit that was reached (docs/limits.md)."""
    refused_opens: Buckets = field(default_factory=lambda: buckets(Limits().refused_opens))
    handshake_rate: Buckets = field(default_factory=lambda: buckets(Limits().handshakes_per_source))
    renewal_rate: Buckets = field(default_factory=lambda: buckets(Limits().renewals_per_source))
    handshakes: HandshakeMeter = field(default_factory=HandshakeMeter)
    _told_at: dict[str, float] = field(default_factory=dict)
    draining: bool = False
    """The pod is going: no new links from peers; the app's own still work."""

    def not_ready(self) -> NotReady:
        """Why `usable_trust` is None."""
        return NotReady(self.withdrawn or "no valid certificate of our own: is the CA reachable?")

    def usable_trust(self) -> Trust | None:
        """Our certificate, unless there is none or it has expired."""
        trust = self.trust
        if trust is None or self.withdrawn:
            return None
        return trust if trust.expires_at > self.now() else None

    def full(self) -> str:
        """The limit that forbids a new link now; empty if none does."""
        if self.shedding:
            return "memory"
        return "links" if len(self.live) >= self.limits.links else ""

    def full_for_plaintext(self) -> str:
        """The same for a link of a peer without identity."""
        if limit := self.full():
            return limit
        return "plaintext_links" if self.plaintext >= self.limits.plaintext_links else ""

    def turn_away(self, sock: socket.socket, limit: str) -> None:
        """Close a connection unheard; the other side sees a reset."""
        self.count_turned_away(limit)
        reset(sock)

    def count_turned_away(self, limit: str) -> None:
        """Count it, and say so in the log, once a minute for each limit."""
        now = self.now()
        if now - self._told_at.get(limit, float("-inf")) > _TELL_EVERY_S:
            self._told_at[limit] = now
            _log.warning("a limit is reached: connections are turned away", extra={"limit": limit})
        self.turned_away[limit] = self.turned_away.get(limit, 0) + 1

    def source_of(self, ip: str) -> str:
        """Whom limits per source count a connection to: its address, but of IPv6 from where no pods
        are expected or known the /64, all of whose addresses one host may have (RFC 4291, section
        2.5.4)."""
        if ":" not in ip or not self.cluster_networks:
            return ip
        if isinstance(self.directory.known(ip), Workload):
            return ip
        address = ip_address(ip)
        if any(address in network for network in self.cluster_networks):
            return ip
        return str(ip_network((ip, 64), strict=False))

    def app_ips(self, ip: str, port: int) -> list[str]:
        """Where the app may listen that was dialled at `ip`, in the order in which to try: there; at the
        pod's address of the other IP version, which a dual-stack name or Service stands for as well; on
        loopback, if the pod opens that port of it."""
        other = [one for one in sorted(self.own.ips) if (":" in one) != (":" in ip)][:1]
        loopback = [loopback_of(ip)] if port in self.loopback_ports else []
        return [ip, *other, *loopback]

    def new_ids(self, record: LinkRecord) -> None:
        """Give a record a trace and a span of its own: never ones that the app or a peer claimed."""
        record.trace_id = self.ids.getrandbits(128).to_bytes(16, "big")
        record.span_id = self.ids.getrandbits(64).to_bytes(8, "big")

    def link_opened(self, ip: str, port: int) -> None:
        self.open_links[ip, port] = self.open_links.get((ip, port), 0) + 1

    def link_closed(self, ip: str, port: int) -> None:
        left = self.open_links.get((ip, port), 1) - 1
        if left:
            self.open_links[ip, port] = left
        else:
            self.open_links.pop((ip, port), None)

    def link_over(self, link: LiveLink, sent: int, received: int, close: str) -> None:
        """A link has ended, its sockets closed: fill in its record and hand it over."""
        self.live.discard(link)
        record = link.record
        record.bytes_sent, record.bytes_received = sent, received
        record.end_ns, record.close = self.unix_ns(), close
        self.report(record)
