"""The service proxy: `services/<name>:<port>/proxy/<path>` goes to a ready endpoint of the Service.

As the real API server does: the caller's Authorization goes no further, and neither do hop-by-hop
headers.
"""

import random

import aiohttp
from aiohttp import web

from local.apiserver import resources
from local.apiserver.resources import Target
from local.apiserver.store import Store
from local.errors import ApiError
from local.objects import Object

_TIMEOUT = aiohttp.ClientTimeout(total=60, connect=5)
_NOT_FORWARDED = frozenset(
    {
        "authorization",
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_CHUNK_BYTES = 65536


def endpoints(store: Store, namespace: str, name: str, port: str) -> list[tuple[str, int]]:
    """The ready (address, port) pairs behind a Service; `port` is a number, a name or "".

    Raises ApiError NotFound for an unknown Service and BadRequest for a port it does not have.
    """
    service = store.get(resources.SERVICES.key, namespace, name)
    if service is None:
        raise ApiError(404, "NotFound", f'services "{name}" not found')
    ports = service["spec"].get("ports") or ()
    chosen = [p for p in ports if port in ("", str(p["port"]), p.get("name"))]
    if not chosen or (port == "" and len(ports) > 1):
        raise ApiError(400, "BadRequest", f'service "{name}" has no port {port!r}')
    found = []
    for one in slices_of(store, namespace, name):
        numbers = [
            p["port"] for p in one["ports"] if p.get("name", "") == chosen[0].get("name", "")
        ]
        for endpoint in one["endpoints"]:
            if endpoint["conditions"]["ready"] and numbers:
                found.append((endpoint["addresses"][0], numbers[0]))
    return found


def slices_of(store: Store, namespace: str, name: str) -> list[Object]:
    """The EndpointSlices that belong to a Service."""
    return [
        s
        for s in store.select(resources.SLICES.key, namespace)
        if (s["metadata"].get("labels") or {}).get("kubernetes.io/service-name") == name
    ]


async def to_service(store: Store, target: Target, request: web.Request) -> web.StreamResponse:
    """Forward a request and stream the answer back. Raises ApiError if nobody is there."""
    scheme, name, port = _read_name(target.name)
    found = endpoints(store, target.namespace, name, port)
    if not found:
        raise ApiError(
            503, "ServiceUnavailable", f'no endpoints available for service "{target.name}"'
        )
    address, number = random.choice(found)
    url = f"{scheme}://{address}:{number}/{target.rest}"
    if request.query_string:
        url += f"?{request.query_string}"
    sent = {k: v for k, v in request.headers.items() if k.lower() not in _NOT_FORWARDED}
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT, auto_decompress=False) as session,
            session.request(
                request.method,
                url,
                headers=sent,
                data=await request.read(),
                allow_redirects=False,
                ssl=False,  # as the real one: a proxied service proves nothing to the API server
            ) as answer,
        ):
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in _NOT_FORWARDED}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
                await response.write(chunk)
            await response.write_eof()
            return response
    except (aiohttp.ClientError, TimeoutError, OSError) as e:
        raise ApiError(
            503, "ServiceUnavailable", f"error trying to reach service: {type(e).__name__}: {e}"
        ) from e


def _read_name(text: str) -> tuple[str, str, str]:
    """`name`, `name:port` or `scheme:name:port`."""
    parts = text.split(":")
    if len(parts) == 3 and parts[0] in ("http", "https"):
        return parts[0], parts[1], parts[2]
    return "http", parts[0], parts[1] if len(parts) == 2 else ""
