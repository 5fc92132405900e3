"""What the pages of the admin socket say. Plain values that `json` can write; no secrets in them."""

import dataclasses
import datetime as dt
import ipaddress
from collections.abc import Iterable, Mapping
from typing import Final

from certs.trust.identity import WorkloadIdentity
from kit.ports import PortSet
from sidecar.dataplane.arrival import Arrivals
from sidecar.dataplane.context import Plane
from sidecar.directory import Found, Gone, Service, Workload
from sidecar.report import LinkRecord

Json = dict[str, object]
_MAX_LISTED: Final = 10_000


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


def endpoints(plane: Plane, known: Mapping[str, Found]) -> Json:
    """What was resolved: Services with their endpoints as the choice sees them, pods, the rest."""
    now, services, pods, external, gone = plane.now(), [], [], [], []
    for key, found in known.items():
        if isinstance(found, Service):
            services.append(_service(plane, found, now))
        elif isinstance(found, Workload):
            pods.append({"key": key, **_workload(found)})
        elif isinstance(found, Gone):
            gone.append({"key": key, "pod": found.pod})
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
