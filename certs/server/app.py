"""Puts the CA together and runs it until it is told to stop."""

import asyncio
import datetime as dt
import logging
import signal

import grpc

from certs.authority.issue import Authority
from certs.authority.store import (
    FileStore,
    KeyStore,
    SecretStore,
    Stored,
    found_keyring,
    read_secret_files,
)
from certs.evidence.signed import WorkloadSigner
from certs.records import BanNote
from certs.rotation import Phase, Timing
from certs.server.cluster_state import ClusterState
from certs.server.config import CaConfig
from certs.server.events import Events
from certs.server.feed import BundleFeed
from certs.server.keeper import REREAD_S, STALE_S, KeyKeeper
from certs.server.ledger import Ledger
from certs.server.ledger_writer import LedgerWriter
from certs.server.limits import Limits
from certs.server.metrics import render
from certs.server.own_leaf import OwnLeaf
from certs.server.publish import BundlePublisher, keep_published
from certs.server.refusal_log import RefusalLog
from certs.server.report import BanChange, Reporter, RotationStep, Sink
from certs.server.rotate import Rotator
from certs.server.service import CaService
from certs.server.spans import SpanExporter
from certs.server.tokens import TokenDesk
from certs.server.warner import Warner
from certs.trust.bans import Ban, Bans
from kit.backoff import Backoff
from kit.clock import Clock, Monotonic, monotonic, utcnow
from kit.connections import Connections
from kit.health import serve_health
from kit.kube import Kube, KubeError
from kit.limited_log import LimitedLog
from kit.tasks import spawn, stop
from kit.tls13 import demand_tls13

MAX_MESSAGE_BYTES = 16 * 1024
MAX_CALLS = 20_000
"""Every sidecar holds one WatchBundle stream; calls beyond this get RESOURCE_EXHAUSTED."""
GRACE_S = 3.0
BANS_WAIT_S = 10.0
"""How long the start waits for the ban list: signing without it would let the banned in, not signing
at all would stop the mesh when ConfigMaps cannot be listed."""
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
    """The CA with everything behind it. `port` is known once `start` has returned."""

    def __init__(
        self,
        config: CaConfig,
        kube: Kube,
        store: KeyStore,
        stored: Stored,
        sinks: tuple[Sink, ...] = (),
        clock: Clock = utcnow,
        monotonic: Monotonic = monotonic,
        *,
        reread_s: float = REREAD_S,
        stale_s: float = STALE_S,
        tick_s: float = 1.0,
        limits: Limits | None = None,
        longest_stream_s: float = 3600.0,
    ) -> None:
        self._config, self._kube, self._clock, self.port = config, kube, clock, 0
        namespace = config.system_namespace
        self.ledger = Ledger()
        self.exporter = SpanExporter(
            config.otlp_endpoint,
            config.replica,
            namespace,
            dialling=None if config.insecure_otlp else self._dialling,
        )
        self.reporter = Reporter(self.ledger, [self.exporter, *sinks])
        self._events = Events(kube, namespace, clock, monotonic)
        self.keeper = KeyKeeper(
            store,
            config.trust_domain,
            stored,
            self._events,
            clock,
            monotonic,
            self._authority_changed,
            reread_s,
            stale_s,
        )
        self.feed = BundleFeed(self.keeper.authority.bundle)
        self.cluster = ClusterState(kube, namespace, self._bans_changed, self._trouble)
        self.publisher = BundlePublisher(kube, namespace, self._bundle_pem)
        self.limits = limits or Limits.usual(monotonic)
        self._writer = LedgerWriter(
            kube, namespace, config.replica, self.ledger, self.keeper, self.cluster, clock
        )
        self.rotator = Rotator(
            kube=kube,
            namespace=namespace,
            trust_domain=config.trust_domain,
            replica=config.replica,
            keeper=self.keeper,
            cluster=self.cluster,
            ledger=self.ledger,
            publisher=self.publisher,
            events=self._events,
            told=self._rotation_told,
            clock=clock,
            timing=Timing(
                settle=config.rotation_settle,
                longest_leaf=config.leaf_ttl,
                stale=dt.timedelta(seconds=stale_s),
            ),
            every=config.rotate_every,
            import_secret=config.import_secret,
            tick_s=tick_s,
        )
        self._warner = Warner(self.keeper, self.rotator, self._events, clock)
        self._service = CaService(
            signer=self.keeper.signer,
            desk=TokenDesk(kube, config.trust_domain, config.proxy_images),
            feed=self.feed,
            ledger=self.ledger,
            report=self.reporter,
            system_namespace=namespace,
            leaf_ttl=config.leaf_ttl,
            bind_tokens=config.bind_tokens,
            limits=self.limits,
            refusals=RefusalLog(monotonic),
            clock=clock,
            monotonic=monotonic,
            longest_stream_s=longest_stream_s,
            anchors=self._sign_anchors,
        )
        self._own = OwnLeaf(self._authority, namespace, config.leaf_ttl, clock, monotonic)
        self._server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)
        self._tasks: list[asyncio.Task[None]] = []
        self._notes: dict[Ban, BanNote] = {}

    def _sign_anchors(self) -> WorkloadSigner:
        return self._own.signer()

    async def start(self) -> None:
        """Learn the bans, then listen. Raises RuntimeError if the port is taken."""
        demand_tls13()
        self._spawn(self.cluster.run(), "what the CAs tell each other")
        learning = spawn(self._learn(), name="learn the bans")
        self._tasks.append(learning)
        await asyncio.wait([learning], timeout=BANS_WAIT_S)
        if not learning.done():
            _log.error("the bans cannot be read; going on with what each sidecar knows")
        self._server.add_generic_rpc_handlers((self._service.handlers(),))
        self.port = self._server.add_secure_port(self._config.listen, self._own.credentials())
        await self._server.start()
        connections = Connections(self.port, self.limits.connections_per_source, LimitedLog(_log))
        self._spawn(connections.run(), "bound connections")
        self._spawn(self.keeper.run(), "the CA's keys")
        self._spawn(keep_published(self.publisher), "publish the bundle")
        self._spawn(self._writer.run(), "the ledger")
        self._spawn(self.rotator.run(), "root rotation")
        self._spawn(self._warner.run(), "warnings")
        self._spawn(self.exporter.run(), "spans")

    async def run(self) -> None:
        """Until one of the tasks fails, which none should."""
        done, _ = await asyncio.wait(
            [task for task in self._tasks if not task.done()], return_when=asyncio.FIRST_EXCEPTION
        )
        for task in done:
            task.result()

    async def stop(self) -> None:
        """Let calls in work end for a moment, then cut them."""
        await self._server.stop(GRACE_S)
        await stop(*self._tasks)
        await self._writer.say_goodbye()

    def metrics(self) -> str:
        """The page for Prometheus."""
        now, keyring = self._clock(), self.keeper.keyring
        authority = self.keeper.authority
        entries = [e for e in self.ledger.entries() if e.not_after > now]
        overdue = sum(now > e.issued_at + (e.not_after - e.issued_at) * 2 / 3 for e in entries)
        rotation = keyring.rotation
        return render(
            {
                "certificates_issued_total": self.reporter.issued,
                "calls_refused_total": self.reporter.refused,
                "calls_in_work": self.limits.in_flight.now,
                "calls_in_work_peak": self.limits.in_flight.peak,
                "watchers": len(self.feed.watchers),
                "watchers_behind": len(self.feed.lagging(authority.bundle.generation)),
                "leaves_living": len(entries),
                "leaves_overdue": overdue,
                "bundle_generation": authority.bundle.generation,
                "roots": len(authority.bundle.roots),
                "signer_expires_seconds": (authority.ends_at - now).total_seconds(),
                "bans": len(self.feed.news.bans),
                "rotation_phase": {
                    phase.value: float(rotation is not None and rotation.phase is phase)
                    for phase in Phase
                },
                "namespaces_unpublished": len(self.publisher.unpublished()),
                "spans_dropped_total": self.exporter.dropped,
            }
        )

    # --- news -------------------------------------------------------------------------------

    def _spawn(self, work: "asyncio._CoroutineLike[None]", name: str) -> None:
        self._tasks.append(spawn(work, name=name))  # type: ignore[arg-type]

    async def _learn(self) -> None:
        """Once the ConfigMaps could be read: the bans, be there any or none, and our own book."""
        await self.cluster.wait_synced()
        self.feed.ban(self.cluster.bans)
        for book in self.cluster.books.values():
            if book.replica == self._config.replica:
                self.ledger.adopt(book.entries)  # an earlier life of ours

    def _authority(self) -> Authority:
        return self.keeper.authority

    def _dialling(self) -> tuple[grpc.ChannelCredentials, float]:
        return self._own.dialling(self._bundle_pem())

    def _bundle_pem(self) -> bytes:
        return self.feed.current.to_pem()

    def _authority_changed(self, authority: Authority) -> None:
        if authority.bundle.generation > self.feed.current.generation:
            self.feed.publish(authority.bundle)
            self.publisher.bundle_changed()
        self._writer.hurry()
        self.exporter.redial()

    def _bans_changed(self, bans: Bans) -> None:
        self.feed.ban(bans)
        before, self._notes = self._notes, dict(self.cluster.notes)
        now = self._clock()
        for ban in sorted(self._notes.keys() - before.keys()):
            self.reporter(BanChange(now, self._notes[ban], lifted=False))
        for ban in sorted(before.keys() - self._notes.keys()):
            self.reporter(BanChange(now, before[ban], lifted=True))

    def _trouble(self, reason: str, text: str) -> None:
        spawn(self._events.warn(reason, text), name=f"event {reason}")

    def _rotation_told(self, phase: str, by: str, said: str) -> None:
        self.reporter(RotationStep(self._clock(), phase, by, said))


def open_store(kube: Kube, config: CaConfig) -> KeyStore:
    if config.key_file is not None:
        return FileStore(config.key_file)
    return SecretStore(kube, config.system_namespace)


async def find_keys(kube: Kube, config: CaConfig, store: KeyStore) -> Stored:
    """Read or found the CA's keys; waits for the API server, and for a Secret to import, as long as
    it takes. Raises AuthorityRefused."""
    backoff = Backoff(first_s=0.5, longest_s=10.0)
    while True:
        try:
            first = None
            if config.import_secret and await store.load() is None:
                where = (
                    f"/api/v1/namespaces/{config.system_namespace}/secrets/{config.import_secret}"
                )
                first = read_secret_files(await kube.get(where), f"Secret {config.import_secret}")
            return await found_keyring(store, config.trust_domain, utcnow, first)
        except KubeError as e:
            _log.warning(
                "the CA's keys cannot be read", extra={"where": store.where, "error": str(e)}
            )
            await asyncio.sleep(backoff.next_s())


class Ready:
    """Whether the CA answers calls; what `/readyz` says, and the metrics once there are any."""

    def __init__(self) -> None:
        self.server: CaServer | None = None

    def __call__(self) -> bool:
        return self.server is not None

    def metrics(self) -> str:
        return self.server.metrics() if self.server is not None else ""


async def run(config: CaConfig) -> None:
    """The whole program, until SIGTERM or SIGINT. Raises AuthorityRefused."""
    told_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told_to_stop.set)
    ready = Ready()
    health = await serve_health(config.health_port, ready, metrics=ready.metrics)
    working = spawn(_work(config, ready), name="certificate authority")
    waiting = spawn(told_to_stop.wait(), name="wait for a signal")
    await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
    await stop(waiting)
    if not working.done():
        _log.info("stopping")
        await stop(working)
    await health.close()
    if not working.cancelled():
        working.result()


async def _work(config: CaConfig, ready: Ready) -> None:
    async with Kube.in_cluster() as kube:
        store = open_store(kube, config)
        server = CaServer(config, kube, store, await find_keys(kube, config, store))
        try:
            await server.start()
            _log.info("listening", extra={"address": config.listen, "port": server.port})
            ready.server = server
            await server.run()
        finally:
            ready.server = None
            await server.stop()
