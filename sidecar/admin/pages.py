"""Which path of the admin socket says what. Paths and keys are read by the CLI (docs/admin.md)."""

import dataclasses
from collections.abc import Awaitable, Callable

from certs.client.source import SvidSource
from kit.clock import monotonic, utcnow
from kit.contract import VERSION
from sidecar.admin import views
from sidecar.admin.tap import Tap
from sidecar.config import SidecarConfig
from sidecar.pages import Answer, Handler, Request, Routes, as_json
from sidecar.workers import Carriers


@dataclasses.dataclass(frozen=True, slots=True)
class Sources:
    """Where the pages look. `ready` says whether the pod may get traffic, and what it waits for."""

    carriers: Carriers
    config: SidecarConfig
    svids: SvidSource
    registry_connected: Callable[[], bool]
    ready: Callable[[], tuple[bool, str]]
    capture: Callable[[], views.Json]
    tap: Tap


def register(routes: Routes, sources: Sources) -> None:
    """Add every page of the admin socket to `routes`."""
    for name in ("pool", "endpoints", "policy", "links", "loop"):
        routes.add(f"/{name}", _json(_page(sources.carriers, name)))
    routes.add("/state", _json(lambda: _state(sources)))
    routes.add("/certificates", _json(lambda: _certificates(sources)))
    routes.add("/capture", _json(lambda: _capture(sources)))
    routes.add("/tap", _tap(sources.tap))
    routes.add("/", _list(routes))


def _page(carriers: Carriers, name: str) -> Callable[[], Awaitable[views.Json]]:
    return lambda: carriers.page(name)


def _json(page: Callable[[], Awaitable[object]]) -> Handler:
    async def answer(_: Request) -> Answer:
        return as_json(await page())

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


async def _capture(sources: Sources) -> views.Json:
    return {**sources.capture(), "source_address": await sources.carriers.page("sources")}


async def _state(sources: Sources) -> views.Json:
    config, svid = sources.config, sources.svids.current
    own = config.own
    well, waits = sources.ready()
    return {
        "version": VERSION,
        "pod": own.pod,
        "pod_uid": own.uid,
        "ips": sorted(own.ips),
        "node": own.node,
        "mode": config.mode,
        "identity": "" if svid is None else str(svid.facts.identity),
        "ready": well,
        "waits_for": [] if well else waits.strip().split("\n"),
        "registry_connected": sources.registry_connected(),
        **await sources.carriers.page("counts"),
    }


async def _certificates(sources: Sources) -> views.Json:
    svid = sources.svids.current
    base: views.Json = {"usable": sources.carriers.usable, "ca": sources.config.ca_address}
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
            "ends_in_s": round(svid.deadline - monotonic(), 3),
        },
        "bundle": {
            "generation": svid.bundle_generation,
            "roots": svid.material.bundle_pem.count(b"-----BEGIN CERTIFICATE-----"),
        },
        "asked_at": utcnow().isoformat(),
    }
