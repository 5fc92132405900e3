"""Puts the store together: writer, two OTLP receivers, the review API."""

import logging
from dataclasses import dataclass
from typing import Self

import grpc
from aiohttp import web

from kit.settings import ConfigInvalid
from traces.api import review_app
from traces.config import TracesConfig
from traces.query import Reader
from traces.receive_grpc import start_grpc
from traces.receive_http import receiver_app
from traces.schema import StoreUnusable
from traces.writer import Writer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TraceStore:
    """A running store and the ports that it listens on."""

    writer: Writer
    grpc_server: grpc.aio.Server
    runners: tuple[web.AppRunner, ...]
    grpc_port: int
    http_port: int
    review_port: int

    @classmethod
    async def start(cls, config: TracesConfig) -> Self:
        """Raises ConfigInvalid if the file, the token or a port is unusable."""
        try:
            if not config.token_path.read_bytes().strip():
                raise ConfigInvalid(f"PODLINK_TRACES_TOKEN_FILE {config.token_path} is empty")
            writer = Writer(config)
        except OSError as e:
            raise ConfigInvalid(f"PODLINK_TRACES_TOKEN_FILE cannot be read: {e}") from e
        except StoreUnusable as e:
            raise ConfigInvalid(f"PODLINK_TRACES_DB: {e}") from e
        writer.start()
        try:
            return await cls._listen(config, writer)
        except (OSError, RuntimeError) as e:  # gRPC says RuntimeError for a taken port
            await writer.stop()
            raise ConfigInvalid(f"cannot listen: {e}") from e

    @classmethod
    async def _listen(cls, config: TracesConfig, writer: Writer) -> Self:
        receiver, http_port = await _listen(receiver_app(config, writer), config, config.http_port)
        reviewer, review_port = await _listen(
            review_app(config, Reader(config.db_path), writer), config, config.review_port
        )
        grpc_server, grpc_port = await start_grpc(config, writer)
        _log.info(
            "trace store is ready",
            extra={"grpc": grpc_port, "http": http_port, "review": review_port},
        )
        return cls(writer, grpc_server, (receiver, reviewer), grpc_port, http_port, review_port)

    async def stop(self) -> None:
        """Stop taking, write what was taken, close the file."""
        await self.grpc_server.stop(2.0)
        for runner in self.runners:
            await runner.cleanup()
        await self.writer.stop()


async def _listen(
    app: web.Application, config: TracesConfig, port: int
) -> tuple[web.AppRunner, int]:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    # None, not "::": asyncio makes an IPv6 socket deaf to IPv4.
    await web.TCPSite(runner, config.host or None, port).start()
    return runner, int(runner.addresses[0][1])
