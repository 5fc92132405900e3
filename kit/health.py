"""Answers `/healthz` and `/readyz` over plain HTTP for the control-plane programs.

Live means that the event loop turns; ready is whatever the program says of itself. `/metrics` holds
what a program hands in: counts and times, no names, and no debug pages (docs/threat-model.md,
attack 32).
"""

from collections.abc import Callable

from aiohttp import web

_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


async def serve_health(
    port: int,
    ready: Callable[[], bool],
    host: str | None = None,
    metrics: Callable[[], str] | None = None,
) -> web.AppRunner:
    """Listen on `port` of `host` (None: every address) and return once it answers.

    `/healthz` is 200 while the loop turns; `/readyz` is 200 while `ready()` is true, else 503. Stop
    it with `await runner.cleanup()`; with port 0 the chosen one is in `runner.addresses`. Raises
    OSError if the port is taken.
    """

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        return (
            web.Response(text="ok\n") if ready() else web.Response(status=503, text="not ready\n")
        )

    async def metrics_page(_: web.Request) -> web.Response:
        assert metrics is not None
        return web.Response(text=metrics(), headers={"Content-Type": _PROMETHEUS})

    app = web.Application()
    if metrics is not None:
        app.add_routes([web.get("/metrics", metrics_page)])
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner
