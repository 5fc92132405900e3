"""The two OTLP receivers: over mutual TLS once there is a certificate, or in plaintext by setting."""

import asyncio
import logging
import socket

import grpc
from aiohttp import web

from certs.client.source import Svid, SvidSource
from kit.tasks import spawn, stop
from traces.config import TracesConfig
from traces.receive_grpc import start_grpc
from traces.receive_http import receiver_app
from traces.secured import Secured
from traces.writer import Writer

_log = logging.getLogger(__name__)


class Receivers:
    """`start` listens at once in plaintext, or, given a `source`, as soon as it has a certificate."""

    def __init__(
        self, config: TracesConfig, writer: Writer, source: SvidSource | None = None
    ) -> None:
        self._config, self._writer, self._source = config, writer, source
        self._server: grpc.aio.Server | None = None
        self._runner: web.AppRunner | None = None
        self._site: web.BaseSite | None = None
        self._listening: socket.socket | None = None
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
        self._runner = web.AppRunner(
            receiver_app(config, self._writer, secured), access_log=None, shutdown_timeout=2.0
        )
        await self._runner.setup()
        self._listening = _listen_on(config.host, config.http_port)
        self.http_port = int(self._listening.getsockname()[1])
        if secured is None:
            await self._show(None, None)
        else:
            svid = secured.source.current
            if svid is not None:
                await self._show(secured, svid)
            secured.source.subscribe(
                lambda svid: self._tasks.append(
                    spawn(self._show(secured, svid), name="show the new certificate")
                )
            )
        self._server, self.grpc_port = await start_grpc(config, self._writer, secured)

    async def _show(self, secured: Secured | None, svid: Svid | None) -> None:
        """Answer OTLP/HTTP with this certificate from now on. A context in use is never changed: a
        new one takes over the same listening socket."""
        assert self._runner is not None and self._listening is not None
        context = secured.context(svid) if secured is not None and svid is not None else None
        passed = self._site
        self._site = web.SockSite(self._runner, self._listening.dup(), ssl_context=context)
        await self._site.start()
        if passed is not None:
            await passed.stop()
        self._tasks = [task for task in self._tasks if not task.done()]

    async def stop(self) -> None:
        """Stop taking; what was taken is being written."""
        await stop(*self._tasks)
        if self._server is not None:
            await self._server.stop(2.0)
        if self._runner is not None:
            await self._runner.cleanup()
        if self._listening is not None:
            self._listening.close()


def _listen_on(host: str, port: int) -> socket.socket:
    """One address; or all of both families, where there are two."""
    if host:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=128)
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, backlog=128, dualstack_ipv6=True
        )
    return socket.create_server(("", port), backlog=128)
