"""A Service and its EndpointSlices made into endpoints that a sidecar may dial. Pure.

Slices are untrusted: a tenant may write one by hand that points anywhere (CVE-2021-25740,
CVE-2021-25737). So an address becomes an endpoint only if nothing is known against it, and it
becomes a workload only if it is the address of a known pod of the Service's own namespace. An
address that names a pod which is not there is dropped, never passed on as external: a pod that the
registry is about to learn of must not be dialled in plaintext meanwhile.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_address
from typing import Protocol

from kit.addresses import canonical_ip
from registry.facts import PodFacts, ServiceFacts, SliceEndpoint, SliceFacts

MAX_ENDPOINTS = 2000
"""Per Service. Keeps one answer well under gRPC's 4 MiB, whatever a tenant writes."""
MAX_LOOKED_AT = 10_000
"""Addresses of one Service's slices that are judged: each change of one judges all of them anew, and a
tenant may write any number of slices."""

_THIS_HOST = IPv4Network("0.0.0.0/8")
_BROADCAST = "255.255.255.255"


class World(Protocol):
    """What must be known of an address to judge it."""

    def pod_at(self, ip: str) -> PodFacts | None: ...
    def host_pod_at(self, ip: str, uid: str) -> PodFacts | None: ...
    def is_node(self, ip: str) -> bool: ...
    def is_cluster_ip(self, ip: str) -> bool: ...
    def is_claimed(self, ip: str, ports: Iterable[int]) -> bool: ...
    def is_unassigned(self, ip: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class EndpointView:
    """One endpoint. `pod` is None for an address outside the mesh; `ports` maps each Service port
    to the port on this endpoint. `names` are what a headless Service calls it in DNS.
    """

    ip: str
    ports: tuple[tuple[int, int], ...]
    ready: bool
    serving: bool
    terminating: bool
    zone: str
    names: frozenset[str]
    pod: PodFacts | None
    for_zones: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Dropped:
    """An address that is not an endpoint, and why: a slug of `docs/reasons.md`."""

    claimed_ip: str
    reason: str


class _Drop(Exception):
    pass


def join(
    service: ServiceFacts, slices: Iterable[SliceFacts], world: World
) -> tuple[list[EndpointView], list[Dropped]]:
    """The Service's endpoints in a stable order, and what was dropped."""
    found: dict[str, EndpointView] = {}
    dropped: list[Dropped] = []
    looked_at = 0
    for one in slices:
        if looked_at >= MAX_LOOKED_AT:
            dropped.append(Dropped(f"{len(one.endpoints)} more", "too_many_endpoints"))
            continue
        looked_at += len(one.endpoints)
        ports = _ports(service, one)
        for endpoint in one.endpoints:
            try:
                view = _view(service, endpoint, ports, world)
            except _Drop as drop:
                dropped.append(Dropped(endpoint.claimed_ip, str(drop)))
                continue
            known = found.get(view.ip)
            found[view.ip] = view if known is None else _merge(known, view)
    ordered = sorted(found.values(), key=lambda view: (not view.ready, view.ip))
    dropped.extend(Dropped(view.ip, "too_many_endpoints") for view in ordered[MAX_ENDPOINTS:])
    return ordered[:MAX_ENDPOINTS], dropped


def judge_address(claimed: str) -> str:
    """The canonical form of an address that may be an endpoint. Raises ValueError with the slug."""
    try:
        ip = canonical_ip(claimed)
    except ValueError:
        raise ValueError("address_malformed") from None
    address = ip_address(ip)
    if address.is_loopback:
        raise ValueError("loopback")
    if address.is_link_local:
        raise ValueError("link_local")
    if address.is_multicast or ip == _BROADCAST:
        raise ValueError("multicast")
    if address.is_unspecified or (address.version == 4 and address in _THIS_HOST):
        raise ValueError("unspecified")
    return ip


def _view(
    service: ServiceFacts,
    endpoint: SliceEndpoint,
    ports: tuple[tuple[int, int], ...],
    world: World,
) -> EndpointView:
    try:
        ip = judge_address(endpoint.claimed_ip)
    except ValueError as refused:
        raise _Drop(str(refused)) from None
    pod = _pod(service, endpoint, ip, ports, world)
    return EndpointView(
        ip=ip,
        ports=ports,
        ready=endpoint.ready,
        serving=endpoint.serving,
        terminating=endpoint.terminating or (pod is not None and pod.terminating),
        zone=(pod.zone if pod is not None else "") or endpoint.zone,
        names=frozenset({endpoint.hostname, endpoint.target_name} - {""}),
        pod=pod,
        for_zones=endpoint.for_zones,
    )


def _pod(
    service: ServiceFacts,
    endpoint: SliceEndpoint,
    ip: str,
    ports: tuple[tuple[int, int], ...],
    world: World,
) -> PodFacts | None:
    pod = world.pod_at(ip)
    if pod is None:
        pod = world.host_pod_at(ip, endpoint.target_uid)
    if pod is not None:
        if pod.namespace != service.namespace:
            raise _Drop("foreign_pod")
        if endpoint.target_uid and endpoint.target_uid != pod.uid:
            raise _Drop("stale_target")
        return pod
    if world.is_cluster_ip(ip):
        raise _Drop("cluster_ip")
    if not _is_api_server(service):
        if world.is_node(ip):
            raise _Drop("node_ip")
        if world.is_claimed(ip, (to for _, to in ports)):
            raise _Drop("external_ip")
        if world.is_unassigned(ip):
            raise _Drop("unassigned")
    if endpoint.target_uid or endpoint.target_name:
        raise _Drop("stale_target")
    return None


def _is_api_server(service: ServiceFacts) -> bool:
    """The API server writes its own slice, with addresses that no pod stands behind; nobody takes
    them from it by a claim."""
    return (service.namespace, service.name) == ("default", "kubernetes")


def _ports(service: ServiceFacts, one: SliceFacts) -> tuple[tuple[int, int], ...]:
    by_name = dict(one.ports)
    return tuple((port.port, by_name[port.name]) for port in service.ports if port.name in by_name)


def _merge(one: EndpointView, other: EndpointView) -> EndpointView:
    """The same address in two slices: its ports add up, and the better condition counts.

    The API allows it while an endpoint moves from slice to slice.
    """
    return EndpointView(
        ip=one.ip,
        ports=tuple(sorted({**dict(other.ports), **dict(one.ports)}.items())),
        ready=one.ready or other.ready,
        serving=one.serving or other.serving,
        terminating=one.terminating and other.terminating,
        zone=one.zone or other.zone,
        names=one.names | other.names,
        pod=one.pod or other.pod,
        for_zones=tuple(sorted({*one.for_zones, *other.for_zones})),
    )


def named(views: Sequence[EndpointView], name: str) -> EndpointView | None:
    """The endpoint that a headless Service calls `name`, the ready one first."""
    return next((view for view in views if name in view.names), None)
