"""Which endpoint of a Service a link goes to, and why. Pure: time and chance are arguments.

A pod IP that the app dialled never comes here: it is never rebalanced. The order of the questions:

    who may take a link   ready; else serving while they terminate (KEP-1669); the version dialled first
    who is kept           `sessionAffinity: ClientIP`
    who is near           `internalTrafficPolicy`, hints of the slices, `trafficDistribution`
    who of these          least open links of two, in turn, or by the hash of our own address
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import Final, TypeVar

from sidecar.dataplane.routing.ejections import Ejections
from sidecar.directory import Endpoint, Own, Service

_Key = TypeVar("_Key")
_Kept = TypeVar("_Kept")
ROUND_ROBIN: Final = "round-robin"
SOURCE_HASH: Final = "source-hash"
MAX_REMEMBERED: Final = 8192
"""Service ports; what an app has not dialled for longest goes first."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An endpoint and the word for why it was chosen (docs/spans.md, `podlink.endpoint.choice`)."""

    endpoint: Endpoint
    port: int
    why: str


class Memory:
    """What earlier choices leave behind, per Service and port. Lost with the process, so nothing in it
    may be needed: a sidecar that restarts, or another worker, comes to the same affinity by the hash.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], tuple[str, float]] = {}
        self._last: dict[tuple[str, int], str] = {}
        self._ranked: dict[tuple[str, int], tuple[Service, list[Endpoint]]] = {}
        self._usable: dict[tuple[str, int, int], tuple[Service, list[Endpoint]]] = {}

    def usable(self, service: Service, port: int, version: int) -> list[Endpoint]:
        """`eligible`, worked out once for each word of the registry. Not to be changed."""
        key = (service.key, port, version)
        known = self._usable.get(key)
        if known is None or known[0] is not service:
            self._usable[key] = known = service, eligible(service, port, version)
            _bound(self._usable)
        return known[1]

    def kept_ip(self, service: Service, port: int, now: float) -> str | None:
        """Where affinity sent this pod last, unless its time-out is over.

        All links of a pod have one client IP, so one endpoint per Service port is all there is to
        remember. The time-out counts from the last link (Kubernetes "Virtual IPs", Session affinity).
        """
        found = self._kept.get((service.key, port))
        return found[0] if found is not None and found[1] > now else None

    def keep(self, service: Service, port: int, ip: str, now: float) -> None:
        self._kept.pop((service.key, port), None)  # the newest comes last
        self._kept[service.key, port] = (ip, now + service.affinity_timeout_s)
        _bound(self._kept)

    def next_in_turn(self, service: Service, port: int, candidates: list[Endpoint]) -> Endpoint:
        """The one after the last, by address: whoever comes or goes changes no other's turn."""
        last = self._last.pop((service.key, port), "")
        chosen = min(
            (e for e in candidates if e.ip > last),
            key=lambda e: e.ip,
            default=None,
        ) or min(candidates, key=lambda e: e.ip)
        self._last[service.key, port] = chosen.ip
        _bound(self._last)
        return chosen

    def by_hash(
        self, service: Service, port: int, own: Own, candidates: list[Endpoint]
    ) -> Endpoint:
        """By rendezvous hashing of our own address (as IPVS `sh`, but consistent): an endpoint that
        goes moves only what was sent to it (Thaler and Ravishankar, "Using name-based mappings")."""
        known = self._ranked.pop((service.key, port), None)
        if known is None or known[0] is not service:
            source = f"{min(own.ips, default='')} {service.key} {port} ".encode()
            ranked = sorted(service.endpoints, key=lambda e: _score(source, e.ip), reverse=True)
            known = service, ranked
        self._ranked[service.key, port] = known
        _bound(self._ranked)
        among = {e.ip for e in candidates}
        return next(e for e in known[1] if e.ip in among)


def eligible(service: Service, port: int, version: int = 0) -> list[Endpoint]:
    """The endpoints that may take a new link, in the Service's order.

    Ready ones; else ones that still serve while they terminate. A Service that publishes addresses
    which are not ready counts each as ready. `version` is the IP version that was dialled; 0: a name
    was asked for, and the version of the Service's first address counts. Where there is none of that
    version, those of the other.
    """
    with_port = [e for e in service.endpoints if port in e.ports]
    publish = service.publish_not_ready
    usable = [e for e in with_port if (e.ready or publish) and not e.terminating]
    usable = usable or [e for e in with_port if (e.serving or publish) and e.terminating]
    wanted_v6 = _version(service, version) == 6
    return [e for e in usable if (":" in e.ip) == wanted_v6] or usable


def _version(service: Service, version: int) -> int:
    """The IP version to begin with: that which was dialled, else that of the first ClusterIP."""
    return version or (6 if ":" in (service.cluster_ips or ("",))[0] else 4)


def choose(
    service: Service,
    port: int,
    own: Own,
    *,
    now: float,
    memory: Memory,
    ejections: Ejections,
    open_links: Callable[[str, int], int],
    random: Random,
    tried: Collection[str] = (),
    version: int = 0,
    only_node: str | None = None,
    other_version: bool = False,
    refused: bool = True,
) -> Choice | None:
    """Choose an endpoint for one link; None if the Service has none left.

    `tried` are the IPs that refused this very link; they are not tried twice. `only_node` is not None
    where the Service was reached by a node port, a load balancer's address or an external IP. Then
    `internalTrafficPolicy` has no say, and endpoints of that node alone may be chosen, of any node if
    it is "" or our own: kube-proxy spares pods the policy for traffic from outside as well, but another
    node's port is that node's to translate.

    An app may listen on one IP version alone. So when all endpoints of the one dialled have refused
    there follow those of the other, and `other_version` asks for these first: it is the last try. Not
    if the last was silent (`refused` is false): that pod would be no less silent there.
    """
    first = _version(service, version)
    versions = (10 - first, first) if other_version else (first, 10 - first)
    usable, candidates = list[Endpoint](), list[Endpoint]()
    for one in versions if tried and refused else (first,):
        usable = _allowed(memory.usable(service, port, one), service, own, only_node)
        candidates = [e for e in usable if e.ip not in tried] if tried else usable
        if candidates:
            break
    if not candidates:
        return None
    if ejections:  # all ejected: better to try than to refuse
        fit = [e for e in candidates if not ejections.out(e.ip, e.ports[port], now)]
        candidates = fit or candidates
    kept = memory.kept_ip(service, port, now) if service.affinity_timeout_s else None
    still_there = kept is not None and any(e.ip == kept for e in usable)
    for endpoint in candidates if still_there else ():
        if endpoint.ip == kept:
            memory.keep(service, port, endpoint.ip, now)
            ejections.tried(endpoint.ip, endpoint.ports[port], now)
            return Choice(endpoint, endpoint.ports[port], "affinity")
    candidates, near = _nearest(candidates, usable, service, own)
    chosen, why = _pick(candidates, service, port, own, memory, open_links, random)
    # Whose endpoint only sits out for a moment, as while its proxy restarts, goes back to it.
    if service.affinity_timeout_s and not still_there:
        memory.keep(service, port, chosen.ip, now)
    ejections.tried(chosen.ip, chosen.ports[port], now)
    return Choice(chosen, chosen.ports[port], f"{near}{why}")


def _allowed(
    usable: list[Endpoint], service: Service, own: Own, only_node: str | None
) -> list[Endpoint]:
    """Without endpoints on nodes that the Service's policies leave out."""
    if only_node is None:
        if not service.local_only:
            return usable
        return [e for e in usable if _node(e) == own.node or e.ip in own.ips]
    if not only_node or only_node == own.node:
        return usable
    return [e for e in usable if _node(e) == only_node]


def _pick(
    candidates: list[Endpoint],
    service: Service,
    port: int,
    own: Own,
    memory: Memory,
    open_links: Callable[[str, int], int],
    random: Random,
) -> tuple[Endpoint, str]:
    if len(candidates) == 1:
        return candidates[0], "only"
    if service.affinity_timeout_s or service.balance == SOURCE_HASH:
        return memory.by_hash(service, port, own, candidates), SOURCE_HASH
    if service.balance == ROUND_ROBIN:
        return memory.next_in_turn(service, port, candidates), ROUND_ROBIN
    first, second = random.sample(candidates, 2)
    less = open_links(second.ip, second.ports[port]) < open_links(first.ip, first.ports[port])
    return (second if less else first), "least-open"


def _nearest(
    candidates: list[Endpoint], usable: Sequence[Endpoint], service: Service, own: Own
) -> tuple[list[Endpoint], str]:
    """Narrow to the same node or zone, if the Service prefers that; never to nothing.

    Hints of the slices go before the endpoints' own zones (they may spread load over zones on
    purpose), but only if every usable endpoint carries one (kube-proxy's rule, KEP-2433).
    """
    wish = service.traffic_distribution
    if wish == "PreferSameNode" and own.node:
        same = [e for e in candidates if _node(e) == own.node]
        if same:
            return same, "same-node:"
    if own.zone and all(e.for_zones for e in usable):
        hinted = [e for e in candidates if own.zone in e.for_zones]
        if hinted:
            return hinted, "zone-hint:"
    if wish in ("PreferSameNode", "PreferSameZone", "PreferClose") and own.zone:
        same = [e for e in candidates if _zone(e) == own.zone]
        if same:
            return same, "same-zone:"
    return candidates, ""


def _node(endpoint: Endpoint) -> str:
    return endpoint.workload.node if endpoint.workload is not None else ""


def _zone(endpoint: Endpoint) -> str:
    return endpoint.workload.zone if endpoint.workload is not None else ""


def _score(source: bytes, ip: str) -> bytes:
    return blake2b(source + ip.encode(), digest_size=8).digest()


def _bound(remembered: dict[_Key, _Kept]) -> None:
    if len(remembered) > MAX_REMEMBERED:
        del remembered[next(iter(remembered))]
