"""A table of paths and who answers them, over HTTP/1.1: for the health port and the admin socket.

GET only, no body read, one request per connection. A hundred lines instead of a web framework: that
would cost 20 MB in every pod (docs/performance.md).
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, unquote

from kit.tasks import spawn, stop
from sidecar.sockets import peer_ip

MAX_REQUEST: Final = 8192
TIMEOUT_S: Final = 5.0
"""For the request to come and for a plain answer to be taken; a handler has its own deadline."""
_REASONS: Final = {200: "OK", 404: "Not Found", 500: "Internal Server Error"}
_JSON: Final = "application/json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for: the path, the query, and the headers with names in lower case."""

    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    """Who asks: the address, in canonical text; "" on a unix socket."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole body, or pieces that are sent as they come until the iterator or the asker ends."""

    body: bytes | AsyncIterator[bytes]
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"


Handler = Callable[[Request], Awaitable[Answer]]
"""Runs in the event loop; may wait, and is cancelled when the server closes."""


def text(body: str, status: int = 200) -> Answer:
    return Answer(body.encode(), status)


def as_json(value: object, status: int = 200) -> Answer:
    return Answer(json.dumps(value).encode() + b"\n", status, _JSON)


class Routes:
    """Answers by path; 404 for what nobody has registered and for anything but GET."""

    def __init__(self) -> None:
        self._exact: dict[str, Handler] = {}
        self._below: dict[str, Handler] = {}
        self._connections: set[asyncio.Task[None]] = set()

    def add(self, path: str, handler: Handler) -> None:
        """Let `handler` answer `path`, or all below it if it ends in a slash. Raises ValueError
        for a path that is taken."""
        table = self._below if path.endswith("/") else self._exact
        if path in table:
            raise ValueError(f"{path} is answered already")
        table[path] = handler

    def paths(self) -> list[str]:
        return sorted((*self._exact, *self._below))

    def find(self, path: str) -> Handler | None:
        exact = self._exact.get(path)
        if exact is not None:
            return exact
        fitting = [prefix for prefix in self._below if path.startswith(prefix)]
        return self._below[max(fitting, key=len)] if fitting else None

    async def close(self) -> None:
        """End the connections that are still served; streams end here."""
        await stop(*self._connections)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, for `asyncio.start_server` and `start_unix_server`."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
            await self._respond(head[:MAX_REQUEST], reader, writer)
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a probe that gave up or a stranger's nonsense: nothing to do about it
        except asyncio.CancelledError:
            pass  # we are closing: the connection is the task's only work
        finally:
            self._connections.discard(task)
            writer.close()
            if writer.transport.get_write_buffer_size():  # a reader that does not read
                asyncio.get_running_loop().call_later(TIMEOUT_S, writer.transport.abort)

    async def _respond(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        peer = writer.get_extra_info("peername")
        source = peer_ip(str(peer[0])) if isinstance(peer, tuple) else ""
        answer = await self._answer(head, source)
        body = answer.body
        if isinstance(body, bytes):
            writer.write(_head(answer, len(body)) + body)
            async with asyncio.timeout(TIMEOUT_S):
                await writer.drain()
            return
        writer.write(_head(answer, None))
        pump = spawn(_pump(body, writer), name="stream of a page")
        gone = spawn(_until_gone(reader), name="asker of a page")
        try:
            await asyncio.wait({pump, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await stop(pump, gone)

    async def _answer(self, head: bytes, source: str) -> Answer:
        request = read(head, source)
        handler = self.find(request.path) if request is not None else None
        if request is None or handler is None:
            return text("not here\n", 404)
        try:
            return await handler(request)
        except Exception:
            _log.exception("no answer", extra={"path": request.path[:256]})
            return text("this is a fault in podlink; its log says more\n", 500)


def read(head: bytes, source: str = "") -> Request | None:
    """A GET request's head, parsed; None for anything else. Never raises."""
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) < 2 or words[0] != "GET" or not words[1].startswith("/"):
        return None
    path, _, query = words[1].partition("?")
    try:
        asked = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=32))
    except ValueError:
        asked = {}
    headers = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    return Request(unquote(path), asked, headers, source)


async def _pump(pieces: AsyncIterator[bytes], writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        async for piece in pieces:
            writer.write(piece)
            await writer.drain()


async def _until_gone(reader: asyncio.StreamReader) -> None:
    with suppress(OSError):
        await reader.read(1)


def _head(answer: Answer, size: int | None) -> bytes:
    reason = _REASONS.get(answer.status, "Service Unavailable")
    length = "" if size is None else f"Content-Length: {size}\r\n"
    return (
        f"HTTP/1.1 {answer.status} {reason}\r\nContent-Type: {answer.content_type}\r\n"
        f"{length}Connection: close\r\n\r\n"
    ).encode()
