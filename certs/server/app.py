"""Puts the CA together and runs it until it is told to stop."""

import asyncio
import logging
import signal

import grpc

from certs.authority.issue import Authority
from certs.authority.store import ensure_authority
from certs.server.config import CaConfig
from certs.server.feed import BundleFeed
from certs.server.issuance import Report, log_issuance
from certs.server.limits import InFlight, TokenBuckets
from certs.server.own_leaf import OwnLeaf
from certs.server.publish import BundlePublisher
from certs.server.refusal_log import RefusalLog
from certs.server.service import CaService
from certs.server.tokens import TokenDesk
from kit.backoff import Backoff
from kit.clock import Clock, monotonic, utcnow
from kit.health import serve_health
from kit.kube import Kube, KubeError
from kit.tasks import spawn, stop
from kit.tls13 import demand_tls13
from proto.ca_pb2_grpc import add_CertificateAuthorityServicer_to_server

MAX_MESSAGE_BYTES = 16 * 1024
MAX_CALLS = 20_000
"""Every sidecar holds one WatchBundle stream; calls beyond this get RESOURCE_EXHAUSTED."""
MAX_IN_WORK = 64
"""Calls in admission at once: each costs the API server two questions."""
MAX_IN_WORK_PER_SOURCE = 16
"""Of these, from one address. A node that hides its pods behind its own shares this."""
GRACE_S = 3.0
BETWEEN_WATCHES_S = 1.0
"""So that a server which ends every watch at once makes no hot loop."""
_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 32 * 1024),
    ("grpc.absolute_max_metadata_size", 32 * 1024),
    ("grpc.max_concurrent_streams", 16),
    ("grpc.max_connection_idle_ms", 60_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 3),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.so_reuseport", 0),
]
_log = logging.getLogger(__name__)


class CaServer:
    """The gRPC server with everything behind it. `port` is known once `start` has returned."""

    def __init__(
        self,
        config: CaConfig,
        kube: Kube,
        authority: Authority,
        report: Report = log_issuance,
        clock: Clock = utcnow,
    ) -> None:
        self.feed = BundleFeed(authority.bundle)
        self.port = 0
        self._config, self._kube, self._authority = config, kube, authority
        self._service = CaService(
            authority=authority,
            desk=TokenDesk(kube, config.trust_domain),
            feed=self.feed,
            report=report,
            system_namespace=config.system_namespace,
            leaf_ttl=config.leaf_ttl,
            in_flight=InFlight(MAX_IN_WORK, MAX_IN_WORK_PER_SOURCE),
            buckets=TokenBuckets(per_second=1.0, burst=10, monotonic=monotonic),
            refusals=RefusalLog(monotonic),
            clock=clock,
        )
        self._own = OwnLeaf(authority, config.system_namespace, config.leaf_ttl, clock, monotonic)
        self._server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)

    async def start(self) -> None:
        """Listen. Raises RuntimeError if the port is taken."""
        demand_tls13()
        add_CertificateAuthorityServicer_to_server(self._service, self._server)
        self.port = self._server.add_secure_port(self._config.listen, self._own.credentials())
        await self._server.start()

    async def stop(self) -> None:
        """Let calls in work end for a moment, then cut them."""
        await self._server.stop(GRACE_S)


async def keep_published(publisher: BundlePublisher) -> None:
    """List, write, watch, again and again; an error makes it start over with a pause."""
    backoff = Backoff(first_s=0.5, longest_s=60.0)
    while True:
        try:
            resource_version = await publisher.publish_everywhere()
            backoff.reset()
            await publisher.follow(resource_version)
            wait_s = BETWEEN_WATCHES_S
        except KubeError as e:
            wait_s = max(e.retry_after_s or 0.0, backoff.next_s())
            if e.status != 410:  # expired is how a long watch normally ends
                _log.warning("watching namespaces failed", extra={"error": str(e)})
        except (KeyError, TypeError, ValueError) as e:
            wait_s = backoff.next_s()
            error = f"{type(e).__name__}: {e}"
            _log.warning("the API server's answer is unreadable", extra={"error": error})
        await asyncio.sleep(wait_s)


async def find_authority(kube: Kube, config: CaConfig) -> Authority:
    """Read or found the CA; waits for the API server for as long as it takes."""
    backoff = Backoff(first_s=0.5, longest_s=10.0)
    while True:
        try:
            return await ensure_authority(
                kube, config.system_namespace, config.trust_domain, utcnow
            )
        except KubeError as e:
            _log.warning("the CA's Secret cannot be read", extra={"error": str(e)})
            await asyncio.sleep(backoff.next_s())


class Ready:
    """Whether the CA answers calls; what `/readyz` says."""

    def __init__(self) -> None:
        self.now = False

    def __call__(self) -> bool:
        return self.now


async def run(config: CaConfig) -> None:
    """The whole program, until SIGTERM or SIGINT. Raises AuthorityRefused."""
    told_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told_to_stop.set)
    ready = Ready()
    health = await serve_health(config.health_port, ready)
    working = spawn(_work(config, ready), name="certificate authority")
    waiting = spawn(told_to_stop.wait(), name="wait for a signal")
    await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
    await stop(waiting)
    if not working.done():
        _log.info("stopping")
        await stop(working)
    await health.cleanup()
    if not working.cancelled():
        working.result()


async def _work(config: CaConfig, ready: Ready) -> None:
    async with Kube.in_cluster() as kube:
        server = CaServer(config, kube, await find_authority(kube, config))
        await server.start()

        def present_pem() -> bytes:
            return server.feed.current.to_pem()

        publisher = BundlePublisher(kube, config.system_namespace, present_pem)
        try:
            _log.info("listening", extra={"address": config.listen, "port": server.port})
            ready.now = True
            await keep_published(publisher)
        finally:
            ready.now = False
            await server.stop()
