"""The health port, on the pod's IP: startup, liveness, readiness, and what else is registered.

Whoever has a page for it adds a route before or after `start`:

    server.routes.add("/probe/", handler)      # all below /probe/; handlers are async (sidecar.pages)
"""

import asyncio
from collections.abc import Callable

from sidecar.pages import Answer, Handler, Request, Routes, text

Check = Callable[[], tuple[bool, str]]
"""Whether all is well, and the body to say so."""


class HealthServer:
    """Serves `routes` on a port of every address."""

    def __init__(self) -> None:
        self.routes = Routes()
        self._servers: list[asyncio.Server] = []

    async def start(self, port: int) -> None:
        """Listen on every address, IPv4 and IPv6 if there is any; raises OSError."""
        self._servers.append(await asyncio.start_server(self.routes.serve, None, port))

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        await self.routes.close()


def check(page: Check) -> Handler:
    """A handler that says 200 where all is well and 503 where not."""

    async def answer(_: Request) -> Answer:
        well, body = page()
        return text(body, 200 if well else 503)

    return answer
