"""What the pages of the admin socket say. Plain values that `json` can write; no secrets in them."""

import dataclasses
import datetime as dt
import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from certs.trust.identity import WorkloadIdentity
from kit.ports import PortSet
from sidecar.carrier import Carrier
from sidecar.dataplane.links.arrival import Arrivals
from sidecar.dataplane.plane import Plane
from sidecar.directory import ByPort, Found, Gone, Service, ToPod, ToService, Workload
from sidecar.lag import LoopLag
from sidecar.report import LinkRecord

Json = dict[str, object]
_MAX_LISTED: Final = 10_000


class Known(Protocol):
    """A directory that can list what it knows."""

    def all(self) -> Mapping[str, Found]: ...


def plain(value: object) -> object:
    """A value of ours as JSON knows it: dataclasses by field, sets sorted, addresses as text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, WorkloadIdentity | PortSet | _ADDRESSES):
        return str(value)
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, frozenset | set):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    return str(value)


_ADDRESSES = (
    ipaddress.IPv4Address | ipaddress.IPv6Address | ipaddress.IPv4Network | ipaddress.IPv6Network
)


def of_record(record: LinkRecord) -> Json:
    """One side of one link, every field; ids in hexadecimal."""
    return {name: plain(getattr(record, name)) for name in LinkRecord.__slots__}


def links(plane: Plane) -> list[Json]:
    """Every link that has begun and not ended, with its bytes so far, oldest first."""
    found = []
    for link in sorted(plane.live, key=lambda each: each.record.start_ns)[:_MAX_LISTED]:
        one = of_record(link.record)
        one["bytes_sent"], one["bytes_received"] = link.moved
        one["still_open"] = True
        ends = link.tunnel_expires_at
        one["tunnel_ends_in_s"] = None if ends is None else round(ends - plane.now(), 3)
        found.append(one)
    return found


def pool(plane: Plane, arrivals: Arrivals) -> Json:
    """Idle tunnels that we dialled, by peer, and those that peers keep with us."""
    now = plane.now()
    return {
        "idle": len(plane.pool),
        "peers": [
            {"ip": ip, "port": port, "identity": identity, **counts}
            for (ip, port, identity), counts in plane.pool.peers().items()
        ],
        "inbound": [
            {**tunnel.describe(), "idle_s": round(now - tunnel.idle_since, 3)}
            for tunnel in list(arrivals.tunnels)[:_MAX_LISTED]
        ],
    }


def policy(plane: Plane) -> Json:
    """What is in force for this pod."""
    in_force = plain(plane.policy)
    assert isinstance(in_force, dict)
    return {
        **in_force,
        "allow_external": plane.allow_external,
        "loopback_ports": str(plane.loopback_ports),
    }


def loop(lag: LoopLag) -> Json:
    """How late the event loop runs."""
    return {
        "lag_s": round(lag.last_s, 6),
        "worst_of_last_minute_s": round(lag.worst_lately_s, 6),
        "worst_s": round(lag.worst_s, 6),
        "stalls": lag.stalls,
    }


def counts(carrier: Carrier) -> Json:
    """The part of /state that each process has its own of."""
    plane = carrier.plane
    return {
        "draining": plane.draining,
        "links_open": len(plane.live),
        "tunnels_idle": len(plane.pool),
        "tunnels_inbound": len(carrier.arrivals.tunnels),
        "turned_away": dict(plane.turned_away),
        "workers": 1,
    }


def endpoints(plane: Plane, known: Mapping[str, Found]) -> Json:
    """What was resolved: Services with their endpoints as the choice sees them, pods, the rest."""
    now, services, pods, external, gone = plane.now(), [], [], [], []
    by_port, forwards = [], []
    for key, found in known.items():
        if isinstance(found, Service):
            services.append(_service(plane, found, now))
        elif isinstance(found, Workload):
            pods.append({"key": key, **_workload(found)})
        elif isinstance(found, Gone):
            gone.append({"key": key, "pod": found.pod})
        elif isinstance(found, ByPort):
            by_port.append(key)
        elif isinstance(found, ToService):
            to: Json = {"service": found.key, "port": found.port, "only_node": found.only_node}
            forwards.append({"key": key, **to})
        elif isinstance(found, ToPod):
            forwards.append({"key": key, "pod": found.pod.pod, "port": found.port})
        else:
            external.append(key)
    ejected = [
        {"ip": ip, "port": port, "left_s": round(left_s, 3), "failures": failures}
        for ip, port, left_s, failures in plane.ejections.listed(now)
    ]
    return {
        "services": services,
        "pods": pods,
        "external": sorted(external),
        "gone": gone,
        "by_port": sorted(by_port),
        "forwards": forwards,
        "ejected": ejected,
    }


def _service(plane: Plane, service: Service, now: float) -> Json:
    found = []
    for endpoint in service.endpoints:
        ports = {
            str(asked): {
                "port": port,
                "open_links": plane.open_links.get((endpoint.ip, port), 0),
                "ejected": plane.ejections.out(endpoint.ip, port, now),
            }
            for asked, port in endpoint.ports.items()
        }
        found.append(
            {
                "ip": endpoint.ip,
                "ready": endpoint.ready,
                "serving": endpoint.serving,
                "terminating": endpoint.terminating,
                "ports": ports,
                "workload": None if endpoint.workload is None else _workload(endpoint.workload),
            }
        )
    whole = plain(service)
    assert isinstance(whole, dict)
    return {**whole, "key": service.key, "endpoints": found}


def _workload(workload: Workload) -> Json:
    whole = plain(workload)
    assert isinstance(whole, dict)
    return {**whole, "pod": workload.pod, "meshed": workload.identity is not None}


def sources(plane: Plane) -> Json:
    """Whether the app sees its callers' addresses, by IP version, and how often it did."""
    found = plane.sources
    return {
        "wanted": found.wanted,
        "proven": sorted(found.proven),
        "why_not": {str(version): why for version, why in found.why_not.items()},
        "counts": dict(found.counts),
    }


PAGES: Mapping[str, Callable[[Carrier, Known], Json]] = {
    "pool": lambda carrier, _: pool(carrier.plane, carrier.arrivals),
    "endpoints": lambda carrier, known: endpoints(carrier.plane, known.all()),
    "policy": lambda carrier, _: policy(carrier.plane),
    "links": lambda carrier, _: {"links": links(carrier.plane)},
    "loop": lambda carrier, _: loop(carrier.lag),
    "sources": lambda carrier, _: sources(carrier.plane),
    "counts": lambda carrier, _: counts(carrier),
}
"""What a process that carries links says of itself."""


def merge(name: str, parts: Sequence[Json]) -> Json:
    """The pages of several workers as one: lists one after the other, counts added up."""
    if not parts:
        return {}
    if name == "policy":
        return parts[0]
    if name == "sources":
        return _merged_sources(parts)
    if name == "endpoints":
        return _merged_endpoints(parts)
    worst = name == "loop"
    merged: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            if key not in merged:
                merged[key] = value
            elif isinstance(value, bool):
                merged[key] = merged[key] or value
            elif isinstance(value, list):
                merged[key] = [*merged[key], *value]
            elif isinstance(value, dict):
                both = {*merged[key], *value}
                merged[key] = {k: merged[key].get(k, 0) + value.get(k, 0) for k in both}
            elif worst and key != "stalls":
                merged[key] = max(merged[key], value)
            else:
                merged[key] += value
    return merged


def _merged_sources(parts: Sequence[Json]) -> Json:
    """Proven is what every worker has proven."""
    counts: dict[str, int] = {}
    why_not: dict[str, str] = {}
    proven = set(_list(parts[0]["proven"]))
    for part in parts:
        proven &= set(_list(part["proven"]))
        why_not |= part["why_not"] if isinstance(part["why_not"], dict) else {}
        for result, count in (part["counts"] if isinstance(part["counts"], dict) else {}).items():
            counts[result] = counts.get(result, 0) + count
    wanted = parts[0]["wanted"]
    return {"wanted": wanted, "proven": sorted(proven), "why_not": why_not, "counts": counts}


def _merged_endpoints(parts: Sequence[Json]) -> Json:
    """Each Service once; its open links are those of all workers, and one ejection is enough."""
    services: dict[str, Any] = {}
    pods: dict[str, Any] = {}
    gone: dict[str, Any] = {}
    external: set[str] = set()
    by_port: set[str] = set()
    forwards: dict[str, Any] = {}
    for part in parts:
        for service in _list(part["services"]):
            first = services.setdefault(service["key"], service)
            if first is not service:
                _add_up(first, service)
        pods.update((pod["key"], pod) for pod in _list(part["pods"]))
        gone.update((pod["key"], pod) for pod in _list(part["gone"]))
        external.update(_list(part["external"]))
        by_port.update(_list(part["by_port"]))
        forwards.update((one["key"], one) for one in _list(part["forwards"]))
    return {
        "services": list(services.values()),
        "pods": list(pods.values()),
        "external": sorted(external),
        "gone": list(gone.values()),
        "by_port": sorted(by_port),
        "forwards": list(forwards.values()),
        "ejected": [one for part in parts for one in _list(part["ejected"])],
    }


def _add_up(first: Any, other: Any) -> None:
    ports = {e["ip"]: e["ports"] for e in other["endpoints"]}
    for endpoint in first["endpoints"]:
        for asked, port in endpoint["ports"].items():
            same = ports.get(endpoint["ip"], {}).get(asked)
            if same is not None:
                port["open_links"] += same["open_links"]
                port["ejected"] = port["ejected"] or same["ejected"]


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
