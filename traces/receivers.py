"""The two OTLP receivers: over mutual TLS once there is a certificate, or in plaintext by setting."""

import asyncio
import logging
from typing import Final

import grpc

from certs.client.source import SvidSource
from kit.connections import Connections
from kit.limited_log import LimitedLog
from kit.tasks import spawn, stop
from kit.web import BoundedServer, Bounds
from traces.calls import READ_S, Calls
from traces.config import TracesConfig
from traces.receive_grpc import start_grpc
from traces.receive_http import receiver_app
from traces.secured import Secured
from traces.writer import Writer

_BOUNDS = Bounds(request_within_s=READ_S + 20.0, idle_s=60.0)
"""Of OTLP/HTTP: a sidecar keeps one connection, and sends every few seconds."""
_CONNECTIONS_PER_SOURCE: Final = 256
"""Of OTLP/gRPC. A sidecar has one; a node may hide some pods behind its own address."""
_log = logging.getLogger(__name__)


class Receivers:
    """`start` listens at once in plaintext, or, given a `source`, as soon as it has a certificate."""

    def __init__(
        self, config: TracesConfig, writer: Writer, source: SvidSource | None = None
    ) -> None:
        self._config, self._writer, self._source = config, writer, source
        self._server: grpc.aio.Server | None = None
        self._http: BoundedServer | None = None
        self._calls = Calls()
        self._tasks: list[asyncio.Task[None]] = []
        self.grpc_port = self.http_port = 0
        self.broken = asyncio.Event()
        """Set when the receivers could not start after all: the program should end."""

    @property
    def ready(self) -> bool:
        return self.grpc_port != 0

    async def start(self) -> None:
        """Raises OSError or RuntimeError if a port is taken; with a source that is logged later."""
        if self._source is None:
            await self._listen(None)
        else:
            source = self._source
            self._tasks = [
                spawn(source.run(), name="renew the certificate"),
                spawn(self._listen_when_ready(source), name="listen for spans"),
            ]

    async def _listen_when_ready(self, source: SvidSource) -> None:
        assert self._config.mesh is not None
        await source.wait_ready()
        try:
            await self._listen(Secured(source, self._config.mesh.trust_domain))
        except (OSError, RuntimeError) as e:  # gRPC says RuntimeError for a taken port
            _log.error("cannot listen", extra={"error": str(e)})
            self.broken.set()
            return
        _log.info("spans are taken over mutual TLS", extra={"grpc": self.grpc_port})

    async def _listen(self, secured: Secured | None) -> None:
        config = self._config
        # A certificate's context is never changed: a new one takes over for later connections.
        svid = secured.source.current if secured is not None else None
        context = secured.context(svid) if secured is not None and svid is not None else None
        http = BoundedServer(receiver_app(config, self._writer, secured, self._calls), _BOUNDS)
        await http.listen(config.host or None, config.http_port, context)
        self._http, self.http_port = http, http.port
        if secured is not None:
            secured.source.subscribe(lambda svid: http.show(secured.context(svid)))
        self._server, self.grpc_port = await start_grpc(config, self._writer, secured, self._calls)
        connections = Connections(self.grpc_port, _CONNECTIONS_PER_SOURCE, LimitedLog(_log))
        self._tasks.append(spawn(connections.run(), name="bound connections"))

    async def stop(self) -> None:
        """Stop taking; what was taken is being written."""
        await stop(*self._tasks)
        if self._server is not None:
            await self._server.stop(2.0)
        if self._http is not None:
            await self._http.close()
