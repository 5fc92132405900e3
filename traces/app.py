"""Puts the store together: writer, two OTLP receivers, the review API."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Self

from aiohttp import web

from certs.client.ca import CaClient
from certs.client.source import SvidSource
from kit.settings import ConfigInvalid
from kit.tasks import spawn, stop
from kit.web import BoundedServer, Bounds
from traces.api import review_app
from traces.config import TracesConfig
from traces.policies import PolicyWatch
from traces.query import Reader
from traces.receivers import Receivers
from traces.schema import StoreUnusable
from traces.writer import Writer

BOUNDS = Bounds(request_within_s=60.0)
"""A question may take ten seconds, and wait for others before it."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TraceStore:
    """A running store and the ports that it listens on."""

    writer: Writer
    receivers: Receivers
    reviewer: BoundedServer
    review_port: int
    policies: PolicyWatch | None = None
    watching: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, config: TracesConfig, source: SvidSource | None = None) -> Self:
        """Raises ConfigInvalid if the file, the token or a port is unusable. `source` lends the
        certificate; without one it is asked of the CA that the configuration names."""
        if config.mesh is None and not config.allow_unknown_senders:
            raise ConfigInvalid("senders are unknown: that takes PODLINK_INSECURE_OTLP=true")
        try:
            if not config.token_path.read_bytes().strip():
                raise ConfigInvalid(f"PODLINK_TRACES_TOKEN_FILE {config.token_path} is empty")
            writer = Writer(config)
        except OSError as e:
            raise ConfigInvalid(f"PODLINK_TRACES_TOKEN_FILE cannot be read: {e}") from e
        except StoreUnusable as e:
            raise ConfigInvalid(f"PODLINK_TRACES_DB: {e}") from e
        writer.start()
        if source is None and config.mesh is not None:
            mesh = config.mesh
            source = CaClient(mesh.ca_address, mesh.token_path, mesh.bundle_path, mesh.trust_domain)
        receivers = Receivers(config, writer, source)
        policies = watching = None
        if source is not None and config.mesh is not None:
            policies = PolicyWatch(source, config.mesh.registry_address, writer)
        try:
            reviewer, review_port = await _listen(
                review_app(config, Reader(config.db_path), writer, source, policies),
                config,
                config.review_port,
            )
            await receivers.start()
        except (OSError, RuntimeError) as e:  # gRPC says RuntimeError for a taken port
            await receivers.stop()
            await writer.stop()
            raise ConfigInvalid(f"cannot listen: {e}") from e
        _log.info(
            "trace store is ready",
            extra={"review": review_port, "senders": "unknown" if source is None else "mutual TLS"},
        )
        if policies is not None:
            watching = spawn(policies.run(), name="look at the policies")
        return cls(writer, receivers, reviewer, review_port, policies, watching)

    async def stop(self) -> None:
        """Stop taking, write what was taken, close the file."""
        await stop(self.watching)
        await self.receivers.stop()
        await self.reviewer.close()
        if self.policies is not None:
            await self.policies.close()
        await self.writer.stop()


async def _listen(
    app: web.Application, config: TracesConfig, port: int
) -> tuple[BoundedServer, int]:
    server = BoundedServer(app, BOUNDS)
    await server.listen(config.host or None, port)
    return server, server.port
