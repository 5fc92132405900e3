"""An HTTP server whose connections are bounded (control plane only): how many, of one address and in
all, and how long each may take for a request. Whoever reaches a port can then hold little of it.

aiohttp bounds neither: a connection that never sends a whole request is kept for as long as it lives,
and with TLS so is one that never shakes hands.
"""

import asyncio
import errno
import logging
import socket
import ssl
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from kit.limited_log import LimitedLog
from kit.tasks import spawn, stop

_BACKLOG: Final = 512
_PAUSE_S: Final = 0.1
"""How long accepting rests where the process has no descriptor left."""
_FULL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_limited = LimitedLog(logging.getLogger(__name__))


@dataclass(frozen=True, slots=True)
class Bounds:
    per_source: int = 64
    """Connections of one address."""
    in_all: int = 1024
    """Over it, the one that a request has been awaited from for longest gives way."""
    head_within_s: float = 5.0
    """From the connection to the end of the first request's head, TLS included."""
    request_within_s: float = 30.0
    """For a request's body and its answer's making."""
    idle_s: float = 15.0
    """For the answer to be taken, and for the next request's head."""


class BoundedServer:
    """Serves `app`. `listen`, then `close`; `turned_away` counts connections closed unheard."""

    def __init__(
        self,
        app: web.Application,
        bounds: Bounds = Bounds(),
        *,
        shutdown_timeout_s: float = 2.0,
        lingering_s: float = 1.0,
    ) -> None:
        app.middlewares.insert(0, _note_request)
        self._bounds = bounds
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=_Logger(logging.getLogger("aiohttp.server")),
            shutdown_timeout=shutdown_timeout_s,
            lingering_time=lingering_s,
            keepalive_timeout=bounds.idle_s,
            handler_cancellation=True,  # nobody waits for what it would answer
        )
        self._context: ssl.SSLContext | None = None
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._open: Counter[str] = Counter()
        self._waiting: OrderedDict[_Connection, None] = OrderedDict()
        """Those that a request is awaited from, the longest waiting first."""
        self.turned_away = 0

    @property
    def port(self) -> int:
        return int(self._sockets[0].getsockname()[1])

    @property
    def connections(self) -> int:
        return self._open.total()

    async def listen(
        self,
        host: str | None,
        port: int,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Return once it answers. `host` None: every address of both families. Raises OSError."""
        await self._runner.setup()
        try:
            self._sockets = [_listen_on(host, port)]
        except OSError:
            await self._runner.cleanup()
            raise
        self.show(ssl_context)
        self._accepting = [
            spawn(self._accept(sock), name=f"accept {self.port}") for sock in self._sockets
        ]

    def show(self, ssl_context: ssl.SSLContext | None) -> None:
        """Connections from now on are made with this; those that are open keep theirs."""
        self._context = ssl_context

    async def close(self) -> None:
        await stop(*self._accepting)
        for sock in self._sockets:
            sock.close()
        await self._runner.cleanup()

    async def _accept(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(sock)
            except OSError as error:
                if error.errno in _FULL:
                    await asyncio.sleep(_PAUSE_S)
                continue
            source = str(address[0])
            if not self._has_room(source):
                self.turned_away += 1
                _reset(accepted)
                continue
            connection = _Connection(self, source, accepted)
            spawn(self._begin(connection, accepted, self._context), name=f"connection of {source}")

    def _has_room(self, source: str) -> bool:
        if self._open[source] >= self._bounds.per_source:
            return False
        if self._open.total() < self._bounds.in_all:
            return True
        if not self._waiting:
            return False
        longest = next(iter(self._waiting))
        self.turned_away += 1
        longest.cut()
        return True

    async def _begin(
        self, connection: "_Connection", accepted: socket.socket, context: ssl.SSLContext | None
    ) -> None:
        loop = asyncio.get_running_loop()
        within_s = self._bounds.head_within_s if context is not None else None
        try:
            await loop.connect_accepted_socket(
                lambda: connection, accepted, ssl=context, ssl_handshake_timeout=within_s
            )
        except (OSError, ssl.SSLError, TimeoutError, asyncio.IncompleteReadError):
            connection.ended()  # no TLS came about: whoever it was is not one of ours
        except asyncio.CancelledError:
            connection.ended()
            raise

    def handler(self) -> asyncio.Protocol:
        server = self._runner.server
        assert server is not None
        return cast(asyncio.Protocol, server())


class _Connection(asyncio.Protocol):
    """One connection: hands everything to aiohttp's protocol, and ends it when it takes too long."""

    def __init__(self, server: BoundedServer, source: str, accepted: socket.socket) -> None:
        self._server, self._source, self._bounds = server, source, server._bounds
        self._socket: socket.socket | None = accepted
        self._inner: asyncio.Protocol | None = None
        self._transport: asyncio.Transport | None = None
        self._is_counted = True
        server._open[source] += 1
        server._waiting[self] = None
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._bounds.head_within_s, self.cut)

    def cut(self) -> None:
        """End it now, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()
        elif self._socket is not None:  # still shaking hands: asyncio then sees its end
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self.ended()

    def ended(self) -> None:
        self._timer.cancel()
        self._socket = None
        self._server._waiting.pop(self, None)
        if self._is_counted:
            self._is_counted = False
            self._server._open[self._source] -= 1
            if not self._server._open[self._source]:
                del self._server._open[self._source]

    def _within(self, seconds: float) -> None:
        self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.cut)

    def request_begins(self) -> None:
        self._server._waiting.pop(self, None)
        self._within(self._bounds.request_within_s)

    def request_ends(self) -> None:
        if self._is_counted:
            self._server._waiting[self] = None
            self._within(self._bounds.idle_s)

    # --- asyncio.Protocol -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._socket = None
        if not self._is_counted:
            self._transport.abort()
            return
        self._inner = self._server.handler()
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._inner is not None:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._inner is not None else None

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended()
        if self._inner is not None:
            self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()


@web.middleware
async def _note_request(
    request: web.Request, handler: Callable[[web.Request], Any]
) -> web.StreamResponse:
    transport = request.transport
    connection = transport.get_protocol() if transport is not None else None
    if isinstance(connection, _Connection):
        connection.request_begins()
    try:
        response: web.StreamResponse = await handler(request)
        return response
    except (web.RequestPayloadError, HttpProcessingError, UnicodeDecodeError) as error:
        _limited.warning("request malformed", source=request.remote, error=_short(error))
        raise web.HTTPBadRequest(text="the request's body cannot be read\n") from error
    finally:
        if isinstance(connection, _Connection):
            connection.request_ends()


class _Logger(logging.LoggerAdapter[logging.Logger]):
    """aiohttp's logger: what is wrong with a request is one short line, and few of them."""

    def __init__(self, log: logging.Logger) -> None:
        super().__init__(log, {})

    def exception(self, msg: object, *args: Any, exc_info: Any = True, **more: Any) -> None:
        if isinstance(exc_info, HttpProcessingError | web.RequestPayloadError | ConnectionError):
            source = args[-1] if args else ""
            _limited.warning("request malformed", source=source, error=_short(exc_info))
            return
        super().exception(msg, *args, exc_info=exc_info, **more)


def _short(error: BaseException) -> str:
    """The first line, for a log: it may quote what was sent."""
    return ascii(str(error).replace("\n", " ")[:200])[1:-1]


def _listen_on(host: str | None, port: int) -> socket.socket:
    """One address; or all of both families, where there are two."""
    if host:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    elif socket.has_dualstack_ipv6():
        family = socket.AF_INET6
        sock = socket.create_server(
            ("", port), family=family, backlog=_BACKLOG, dualstack_ipv6=True
        )
    else:
        sock = socket.create_server(("", port), backlog=_BACKLOG)
    sock.setblocking(False)
    return sock


def _reset(sock: socket.socket) -> None:
    """Close without keeping anything of it, TIME_WAIT included."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    sock.close()
