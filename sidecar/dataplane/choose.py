"""Which endpoint of a Service a link goes to, and why. Pure: time and chance are arguments.

A pod IP that the app dialled never comes here: it is never rebalanced.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from sidecar.directory import Endpoint, Own, Service

EJECT_FIRST_S, EJECT_LONGEST_S = 1.0, 60.0


@dataclass(frozen=True, slots=True)
class Choice:
    """An endpoint and the word for why it was chosen (docs/spans.md, `podlink.endpoint.choice`)."""

    endpoint: Endpoint
    port: int
    why: str


class Ejections:
    """Endpoints that failed sit out, each time twice as long; one success forgives all."""

    def __init__(self) -> None:
        self._until: dict[tuple[str, int], tuple[float, int]] = {}

    def failed(self, ip: str, port: int, now: float) -> None:
        """A connect or handshake to the endpoint failed, or another identity answered there."""
        _, failures = self._until.get((ip, port), (0.0, 0))
        sit_out = min(EJECT_LONGEST_S, EJECT_FIRST_S * 2.0 ** min(failures, 16))
        self._until[ip, port] = (now + sit_out, failures + 1)

    def worked(self, ip: str, port: int) -> None:
        if self._until:
            self._until.pop((ip, port), None)

    def out(self, ip: str, port: int, now: float) -> bool:
        return bool(self._until) and self._until.get((ip, port), (0.0, 0))[0] > now

    def forget_before(self, now: float) -> None:
        """Drop those whose time has long passed, so that the table stays small."""
        old = [key for key, (until, _) in self._until.items() if until + EJECT_LONGEST_S < now]
        for key in old:
            del self._until[key]


class Affinity:
    """Remembers where `sessionAffinity: ClientIP` sent this pod, per Service and port.

    All links of a pod have one client IP, so the sidecar need remember one endpoint per Service
    port. The time-out counts from the last link (Kubernetes "Virtual IPs", Session stickiness).
    """

    def __init__(self) -> None:
        self._last: dict[tuple[str, int], tuple[str, float]] = {}

    def ip(self, service: Service, port: int, now: float) -> str | None:
        found = self._last.get((service.key, port))
        return found[0] if found is not None and found[1] > now else None

    def keep(self, service: Service, port: int, ip: str, now: float) -> None:
        self._last[service.key, port] = (ip, now + service.affinity_timeout_s)


def eligible(service: Service, port: int) -> list[Endpoint]:
    """The endpoints that may take a new link: ready ones; else ones that still serve while they
    terminate (KEP-1669); all that exist if the Service publishes those that are not ready.
    """
    with_port = [e for e in service.endpoints if port in e.ports]
    if service.publish_not_ready:
        return with_port
    ready = [e for e in with_port if e.ready and not e.terminating]
    return ready or [e for e in with_port if e.serving and e.terminating]


def choose(
    service: Service,
    port: int,
    own: Own,
    *,
    now: float,
    affinity: Affinity,
    ejections: Ejections,
    open_links: Callable[[str, int], int],
    random: Random,
    tried: Sequence[str] = (),
) -> Choice | None:
    """Choose an endpoint for one link; None if the Service has none left.

    `tried` are the IPs that refused this very link; they are not tried twice.
    """
    candidates = [e for e in eligible(service, port) if e.ip not in tried]
    if not candidates:
        return None
    fit = [e for e in candidates if not ejections.out(e.ip, e.ports[port], now)]
    candidates = fit or candidates  # all ejected: better to try than to refuse
    if service.affinity_timeout_s:
        kept = affinity.ip(service, port, now)
        for endpoint in candidates:
            if endpoint.ip == kept:
                affinity.keep(service, port, endpoint.ip, now)
                return Choice(endpoint, endpoint.ports[port], "affinity")
    candidates, near = _nearest(candidates, service, own)
    if len(candidates) == 1:
        chosen, why = candidates[0], "only"
    else:
        first, second = random.sample(candidates, 2)
        less = open_links(second.ip, second.ports[port]) < open_links(first.ip, first.ports[port])
        chosen, why = (second if less else first), "least-open"
    if service.affinity_timeout_s:
        affinity.keep(service, port, chosen.ip, now)
    return Choice(chosen, chosen.ports[port], f"{near}{why}")


def _nearest(candidates: list[Endpoint], service: Service, own: Own) -> tuple[list[Endpoint], str]:
    """Narrow to the same node or zone if the Service prefers that (`trafficDistribution`)."""
    if service.traffic_distribution == "PreferSameNode" and own.node:
        same = [e for e in candidates if e.workload is not None and e.workload.node == own.node]
        if same:
            return same, "same-node:"
    if service.traffic_distribution in ("PreferSameNode", "PreferSameZone", "PreferClose"):
        same = [e for e in candidates if e.workload is not None and e.workload.zone == own.zone]
        if own.zone and same:
            return same, "same-zone:"
    return candidates, ""
