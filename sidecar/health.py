"""The health port, on the pod's IP: startup, liveness, readiness, and what else is registered.

Whoever has a page for it adds a route before or after `start`:

    server.routes.add("/probe/", handler)      # all below /probe/; handlers are async (sidecar.pages)

Whoever reaches the pod can ask here, in plaintext, beside the links of everybody: so one address may
keep few connections and ask so often and no more. The kubelet's share is its own.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from kit.buckets import Buckets
from kit.clock import monotonic
from sidecar.pages import Answer, Handler, Request, Routes, text

PER_SOURCE: Final = 32
"""Connections that one address may have open: more than a kubelet has probes under way in one pod."""
IN_ALL: Final = 256
RATE: Final = 50.0
"""Questions a second of one address, after a burst of four times as many."""

Check = Callable[[], tuple[bool, str]]
"""Whether all is well, and the body to say so."""


class HealthServer:
    """Serves `routes` on a port of every address."""

    def __init__(self, asked: Buckets | None = None) -> None:
        self.routes = Routes()
        self._servers: list[asyncio.Server] = []
        self._open: dict[str, int] = {}
        self._asked = asked if asked is not None else Buckets(RATE, 4 * RATE)

    async def start(self, port: int) -> None:
        """Listen on every address, IPv4 and IPv6 if there is any; raises OSError."""
        self._servers.append(await asyncio.start_server(self._connected, None, port))

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ip = str((writer.get_extra_info("peername") or ("",))[0])
        if not self._may_ask(ip):
            writer.transport.abort()
            return
        self._open[ip] = self._open.get(ip, 0) + 1
        try:
            await self.routes.serve(reader, writer)
        finally:
            self._open[ip] -= 1
            if not self._open[ip]:
                del self._open[ip]

    def _may_ask(self, ip: str) -> bool:
        if self._open.get(ip, 0) >= PER_SOURCE or sum(self._open.values()) >= IN_ALL:
            return False
        return self._asked.take(ip, monotonic())

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
