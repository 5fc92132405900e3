"""Puts the registry together and runs it until it is told to stop."""

import asyncio
import gc
import logging
import signal

import grpc

from certs.client.rpc import server_credentials
from certs.client.source import SvidSource
from certs.names import TRACES_ACCOUNT
from certs.trust.bans import Bans, Guard
from certs.trust.identity import WorkloadIdentity
from certs.trust.svid import SvidChecker
from kit.connections import Connections
from kit.health import serve_health
from kit.kube import Kube
from kit.limited_log import LimitedLog
from kit.tasks import spawn, stop
from kit.tls13 import demand_tls13
from registry.answers import Answers
from registry.config import RegistryConfig
from registry.hub import Hub
from registry.limits import USUAL, StreamLimits
from registry.metrics import render
from registry.model import Model
from registry.refused import RefusedFields
from registry.service import MAX_STREAMS, RegistryService
from registry.watch import ClusterWatch

MAX_MESSAGE_BYTES = 256 * 1024
"""Of a question; 10,000 keys fit."""
GRACE_S = 3.0
_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.max_concurrent_streams", 16),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 3),
    ("grpc.max_connection_idle_ms", 60_000),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.so_reuseport", 0),
]
_log = logging.getLogger(__name__)


class RegistryServer:
    """The model, its watches and the gRPC server. `port` is known once `start` has returned.

    `source` must be ready: callers are judged against its bundle.
    """

    def __init__(
        self,
        config: RegistryConfig,
        kube: Kube,
        source: SvidSource,
        limits: StreamLimits = USUAL,
    ) -> None:
        self._config, self._source, self._limits = config, source, limits
        self.refused = RefusedFields()
        self.model = Model(on_drop=self.refused.dropped)
        self.hub = Hub(Answers(self.model, config.mesh_default))
        self.watch = ClusterWatch(kube, self.model, self.hub, self.refused)
        guard = Guard(SvidChecker(config.trust_domain))
        by_pod = config.svid_source.leaves_name_pods
        self._service = RegistryService(
            self.hub,
            self.model,
            guard,
            leaves_name_pods=by_pod,
            store=WorkloadIdentity(config.trust_domain, config.system_namespace, TRACES_ACCOUNT),
            mesh_default=config.mesh_default,
            limits=limits,
        )
        guard.bans = source.bans

        def bans_came(bans: Bans) -> None:
            guard.bans = bans
            self._service.cut_banned(bans)

        source.subscribe_bans(bans_came)
        self._server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=MAX_STREAMS)
        self._watching: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self.port = 0

    @property
    def ready(self) -> bool:
        watching = self._watching is not None and not self._watching.done()
        return (
            watching and self.watch.synced and self.port != 0 and self._source.current is not None
        )

    def metrics(self) -> str:
        """The page for Prometheus."""
        return render(
            {
                "fields_refused": self.refused.fields,
                "objects_unreadable": self.watch.unreadable(),
                "endpoints_refused": self.refused.endpoints,
                "keys_refused_total": {(k,): n for k, n in self._service.keys_refused.items()},
                "answers_cut_total": self.hub.answers.cut,
                "streams": self._service.streams,
                "streams_refused_total": {(k,): n for k, n in self._service.refused.items()},
            }
        )

    async def start(self) -> None:
        """List the cluster, then listen: an early answer could call a pod external.

        Raises RuntimeError if the port is taken.
        """
        self._watching = spawn(self.watch.run(), name="watch the cluster")
        await self.watch.wait_synced()
        demand_tls13()
        handlers = self._service.handlers(), self._service.review_handlers()
        self._server.add_generic_rpc_handlers(handlers)
        credentials = server_credentials(self._source)
        port = self._server.add_secure_port(self._config.listen, credentials)
        await self._server.start()
        self.port = port
        connections = Connections(port, self._limits.connections_per_source, LimitedLog(_log))
        self._sweeping = spawn(connections.run(), name="bound connections")
        _log.info("listening", extra={"port": port})

    async def watch_ended(self) -> None:
        """Wait for the end of the watch, which comes only by a failure: then nobody would hear of
        changes any more, and it is better to start anew."""
        assert self._watching is not None
        await self._watching

    async def stop(self, grace_s: float = GRACE_S) -> None:
        await self._server.stop(grace_s)
        await stop(self._watching, self._sweeping)


def settle() -> None:
    """For a process that is a registry and nothing else, once it serves: the cluster's objects live
    long, and looked at by every full collection they would stop it for 100 ms at 10,000 pods."""
    gc.collect()
    gc.freeze()


async def run(config: RegistryConfig) -> None:
    """Serve until SIGTERM or SIGINT."""
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    source = config.svid_source.open(
        WorkloadIdentity(config.trust_domain, config.system_namespace, "podlink-registry"),
        ca_address=config.ca_address,
        token_path=config.token_path,
        bundle_path=config.bundle_path,
    )
    async with Kube.in_cluster() as kube:
        server = RegistryServer(config, kube, source)
        health = await serve_health(
            config.health_port, lambda: server.ready, metrics=server.metrics
        )
        renewing = spawn(source.run(), name="renew the certificate")
        serving = spawn(_serve(server, source), name="serve")
        stopping = spawn(told.wait(), name="wait for the signal")
        try:
            await asyncio.wait({stopping, serving, renewing}, return_when=asyncio.FIRST_COMPLETED)
            for task in (serving, renewing):
                if task.done():
                    task.result()
                    raise RuntimeError(f"{task.get_name()} ended")
        finally:
            await stop(serving, stopping)
            await server.stop()
            await stop(renewing)
            await health.close()


async def _serve(server: RegistryServer, source: SvidSource) -> None:
    await source.wait_ready()
    await server.start()
    settle()
    await server.watch_ended()
