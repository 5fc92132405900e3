"""Answers /startup, /livez, /readyz and /metrics on the health port. HTTP/1.1, GET only, no body read.

Some forty lines instead of a web framework: that would cost 20 MB in every pod
(docs/performance.md).
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

_MAX_REQUEST: Final = 8192
_TIMEOUT_S: Final = 5.0
Page = Callable[[], tuple[bool, str]]
"""Whether all is well, and the body to say so."""


class HealthServer:
    """Serves `pages`, a path each; 200 where all is well, 503 where not, 404 elsewhere."""

    def __init__(self, pages: Mapping[str, Page]) -> None:
        self._pages = pages
        self._servers: list[asyncio.Server] = []

    async def start(self, port: int) -> None:
        """Listen on every address, IPv4 and IPv6 if there is any; raises OSError."""
        self._servers.append(await asyncio.start_server(self._serve, None, port))

    async def close(self) -> None:
        for server in self._servers:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(head[:_MAX_REQUEST]))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a probe that gave up or a stranger's nonsense: nothing to do about it
        finally:
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0].decode("latin-1")
        page = self._pages.get(path)
        if method != b"GET" or page is None:
            return _response("404 Not Found", "not here\n")
        well, body = page()
        return _response("200 OK" if well else "503 Service Unavailable", body)


def _response(status: str, body: str) -> bytes:
    content = body.encode()
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    ).encode() + content
