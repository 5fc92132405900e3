"""Answers `/healthz` and `/readyz` over plain HTTP for the control-plane programs.

Live means that the event loop turns; ready is whatever the program says of itself. `/metrics` holds
what a program hands in: counts and times, no names, and no debug pages (docs/threat-model.md,
attack 32).
"""

from collections.abc import Callable

from aiohttp import web

from kit.exposition import CONTENT_TYPE
from kit.web import BoundedServer, Bounds

BOUNDS = Bounds(per_source=32, in_all=256, request_within_s=5.0)


async def serve_health(
    port: int,
    ready: Callable[[], bool],
    host: str | None = None,
    metrics: Callable[[], str] | None = None,
) -> BoundedServer:
    """Listen on `port` of `host` (None: every address) and return once it answers.

    `/healthz` is 200 while the loop turns; `/readyz` is 200 while `ready()` is true, else 503. Stop
    it with `await server.close()`; with port 0 the chosen one is `server.port`. Raises OSError if the
    port is taken.
    """

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        return (
            web.Response(text="ok\n") if ready() else web.Response(status=503, text="not ready\n")
        )

    async def metrics_page(_: web.Request) -> web.Response:
        assert metrics is not None
        return web.Response(text=metrics(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    if metrics is not None:
        app.add_routes([web.get("/metrics", metrics_page)])
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz)])
    server = BoundedServer(app, BOUNDS, shutdown_timeout_s=1.0)
    await server.listen(host, port)
    return server
