"""Which path of the admin socket says what. Paths and keys are read by the CLI (docs/admin.md)."""

import dataclasses
from collections.abc import Callable, Mapping

from certs.client.source import SvidSource
from kit.clock import utcnow
from sidecar.admin import views
from sidecar.admin.tap import Tap
from sidecar.config import SidecarConfig
from sidecar.contract import VERSION
from sidecar.dataplane.arrival import Arrivals
from sidecar.dataplane.context import Plane
from sidecar.directory import Found
from sidecar.lag import LoopLag
from sidecar.pages import Answer, Handler, Request, Routes, as_json


@dataclasses.dataclass(frozen=True, slots=True)
class Sources:
    """Where the pages look. `ready` says whether the pod may get traffic, and what it waits for."""

    plane: Plane
    arrivals: Arrivals
    config: SidecarConfig
    svids: SvidSource
    known: Callable[[], Mapping[str, Found]]
    registry_connected: Callable[[], bool]
    ready: Callable[[], tuple[bool, str]]
    capture: Callable[[], views.Json]
    lag: LoopLag
    tap: Tap


def register(routes: Routes, sources: Sources) -> None:
    """Add every page of the admin socket to `routes`."""
    plane, arrivals = sources.plane, sources.arrivals
    pages: dict[str, Callable[[], object]] = {
        "/state": lambda: _state(sources),
        "/pool": lambda: views.pool(plane, arrivals),
        "/endpoints": lambda: views.endpoints(plane, sources.known()),
        "/certificates": lambda: _certificates(sources),
        "/capture": sources.capture,
        "/policy": lambda: _policy(plane),
        "/links": lambda: {"links": views.links(plane)},
        "/loop": lambda: _loop(sources.lag),
    }
    for path, page in pages.items():
        routes.add(path, _json(page))
    routes.add("/tap", _tap(sources.tap))
    routes.add("/", _list(routes))


def _json(page: Callable[[], object]) -> Handler:
    async def answer(_: Request) -> Answer:
        return as_json(page())

    return answer


def _tap(tap: Tap) -> Handler:
    async def answer(_: Request) -> Answer:
        return Answer(tap.lines(), content_type="application/x-ndjson")

    return answer


def _list(routes: Routes) -> Handler:
    async def answer(request: Request) -> Answer:
        if request.path != "/":
            return Answer(b"no such page; / lists them\n", 404)
        return as_json({"paths": [path for path in routes.paths() if path != "/"]})

    return answer


def _state(sources: Sources) -> views.Json:
    plane, config = sources.plane, sources.config
    trust = plane.trust
    well, waits = sources.ready()
    return {
        "version": VERSION,
        "pod": plane.own.pod,
        "pod_uid": plane.own.uid,
        "ips": sorted(plane.own.ips),
        "node": plane.own.node,
        "mode": config.mode,
        "identity": trust.identity if trust is not None else "",
        "ready": well,
        "waits_for": [] if well else waits.strip().split("\n"),
        "draining": plane.draining,
        "registry_connected": sources.registry_connected(),
        "links_open": len(plane.live),
        "tunnels_idle": len(plane.pool),
        "tunnels_inbound": len(sources.arrivals.tunnels),
        "turned_away": plane.turned_away,
    }


def _certificates(sources: Sources) -> views.Json:
    svid, plane = sources.svids.current, sources.plane
    base: views.Json = {"usable": plane.usable_trust() is not None, "ca": sources.config.ca_address}
    if svid is None:
        return {**base, "leaf": None}
    facts = views.plain(svid.facts)
    assert isinstance(facts, dict)
    return {
        **base,
        "leaf": {
            **facts,
            "generation": svid.generation,
            "expires_at": svid.expires_at.isoformat(),
            "ends_in_s": round(svid.deadline - plane.now(), 3),
        },
        "bundle": {
            "generation": svid.bundle_generation,
            "roots": svid.material.bundle_pem.count(b"-----BEGIN CERTIFICATE-----"),
        },
        "asked_at": utcnow().isoformat(),
    }


def _policy(plane: Plane) -> views.Json:
    in_force = views.plain(plane.policy)
    assert isinstance(in_force, dict)
    return {
        **in_force,
        "allow_external": plane.allow_external,
        "declared_ports": sorted(plane.declared_ports),
    }


def _loop(lag: LoopLag) -> views.Json:
    return {
        "lag_s": round(lag.last_s, 6),
        "worst_of_last_minute_s": round(lag.worst_lately_s, 6),
        "worst_s": round(lag.worst_s, 6),
        "stalls": lag.stalls,
    }
