"""Puts the parts of the proxy together, starts them in order and ends them in order.

At start: listen first (a connection is held, never lost), then the certificate, then the registry.
At SIGTERM: peers are told to open no more links here, the app's own outbound links go on, and the
process ends when none is left or the grace period is over (KEP-753: a native sidecar gets its
SIGTERM after the app has ended).
"""

import asyncio
import logging
import signal
from typing import Any, Final

from certs.client.ca import CaClient
from certs.client.rpc import RenewingChannel
from certs.client.source import Svid, SvidSource
from certs.trust.facts import LeafFacts
from kit.clock import monotonic
from kit.contract import HEALTH_PORT, PROBE_PATH
from kit.exposition import CONTENT_TYPE, text
from kit.tasks import spawn, stop, vital_task_died
from proto import registry_pb2 as pb
from sidecar.admin import pages
from sidecar.admin.server import AdminServer
from sidecar.admin.tap import Tap
from sidecar.canary import CaptureWatch
from sidecar.config import SidecarConfig
from sidecar.dataplane.sources import Sources
from sidecar.denials import Denials
from sidecar.discovery.client import RegistryClient
from sidecar.health import HealthServer, check
from sidecar.metrics.collect import ControlFacts, of_control
from sidecar.pages import Answer, Request
from sidecar.probes.table import ProbeTable
from sidecar.resident import let_go_of_the_start
from sidecar.source_check import SourceCheck
from sidecar.telemetry.access import AccessLog
from sidecar.telemetry.config import TelemetryConfig
from sidecar.telemetry.exporter import LinkExporter
from sidecar.workers import Carriers
from sidecar.workers.in_process import InProcess

_REGISTRY_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 12_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
"""A replica that is gone without a word is left for another within 17 s; one that hangs up, at once."""
_SETTLED_AFTER_S: Final = 3.0
"""After the first word of the registry: by then the app's start-up connections are made."""
_log = logging.getLogger(__name__)


class Sidecar:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: SidecarConfig,
        telemetry: TelemetryConfig,
        source: SvidSource,
    ) -> None:
        self._loop, self._config, self._source = loop, config, source
        self._exporter = LinkExporter(telemetry, source)
        self._access = AccessLog(self._exporter.report, telemetry.access_log)
        self._tap = Tap(Denials(self._access.report).report)
        self._channel = RenewingChannel(source, config.registry_address, options=_REGISTRY_OPTIONS)
        self._registry = RegistryClient(
            config.own, config.trust_domain, self._channel.get, self._settings_came
        )
        self._carriers = carriers = self._make_carriers()
        self._registry.changed = carriers.found_came
        self._registry.on_banned = lambda: source.told_banned(
            "the registry says that we are banned"
        )
        self._own: LeafFacts | None = None
        if isinstance(source, CaClient):
            source.head = lambda: self._exporter.head
        self._capture = CaptureWatch(config.own.uid) if config.mode == "redirect" else None
        self._probes = ProbeTable(config.probes, config.mark, carriers.sources)
        self._health = HealthServer()
        self._admin = AdminServer(config.admin_socket)
        self._add_routes()

    def _add_routes(self) -> None:
        routes = self._health.routes
        routes.add("/startup", check(self._started))
        routes.add("/livez", check(lambda: (True, "ok\n")))
        routes.add("/readyz", check(self._ready))
        routes.add("/metrics", self._metrics)
        routes.add(PROBE_PATH, self._probes.answer)
        pages.register(
            self._admin.routes,
            pages.Sources(
                carriers=self._carriers,
                config=self._config,
                svids=self._source,
                registry_connected=lambda: self._registry.connected,
                ready=self._ready,
                capture=self._describe_capture,
                tap=self._tap,
            ),
        )

    def _make_carriers(self) -> Carriers:
        registry, report = self._registry, self._tap.report
        if self._config.workers == 1:
            carriers = InProcess(self._loop, self._config, registry, report)
            carriers.carrier.watch_requests(self._exporter.report_request)
            return carriers
        from sidecar.workers.processes import (
            WorkerProcesses,  # only where it is used: it costs memory
        )

        requests = self._exporter.report_request
        config = self._config
        sources = Sources(config.shows_source, config.own.ips)
        proof = SourceCheck(self._loop, sources, config.own.ips, config.mark)
        return WorkerProcesses(config, registry, registry.all, report, requests, proof)

    async def run_until_signalled(self) -> None:
        """Start, serve until SIGTERM or SIGINT, drain and end.

        Raises OSError if it cannot listen, and TaskDied if a task fails that it cannot do without: the
        kubelet starts the container again.
        """
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, stopping.set)
        await self._carriers.start()
        await self._health.start(HEALTH_PORT)
        await self._start_admin()
        self._exporter.start()
        self._access.start()
        self._source.subscribe(self._svid_came)
        self._source.subscribe(self._carriers.svid_came)
        self._source.subscribe(self._exporter.svid_came)
        self._source.subscribe_bans(self._carriers.bans_came)
        working: list[asyncio.Task[Any]] = [
            spawn(self._source.run(), name="certificates", vital=True),
            spawn(self._talk_to_registry(), name="registry", vital=True),
            spawn(self._settle(), name="settle", vital=True),
        ]
        if self._capture is not None:
            working.append(spawn(self._capture.run(), name="capture canary", vital=True))
        signalled = spawn(stopping.wait(), name="wait for a signal")
        dead = spawn(vital_task_died(), name="wait for a failed task")
        working += [signalled, dead]
        try:
            await asyncio.wait({signalled, dead}, return_when=asyncio.FIRST_COMPLETED)
            if dead.done():
                raise dead.result()
            stopping.clear()  # a second signal ends the wait for open links
            await self._carriers.drain(stopping)
        finally:
            await stop(*working)
            await self._close()

    async def _start_admin(self) -> None:
        """The data plane works without it: a volume that is missing costs the pod no link."""
        try:
            await self._admin.start()
        except OSError as e:
            _log.error("no admin socket", extra={"error": str(e)})

    async def _talk_to_registry(self) -> None:
        await self._source.wait_ready()
        await self._registry.run()

    async def _settle(self) -> None:
        """Once the start is over, keep no more resident than what serving needs."""
        await self._registry.ready.wait()
        await asyncio.sleep(_SETTLED_AFTER_S)
        _log.info("start is over", extra={"let_go_kib": let_go_of_the_start()})

    def _settings_came(self, settings: pb.PodSettings) -> None:
        """Raises NotUnderstood, with nothing changed."""
        self._carriers.settings_came(settings)

    # --- how it is --------------------------------------------------------------------------

    def _started(self) -> tuple[bool, str]:
        """For the startup probe: the app may start once its first connection would work."""
        return self._ready()

    def _ready(self) -> tuple[bool, str]:
        waits = []
        if self._is_banned():
            waits.append("this pod is banned: podlink certs bans says by whom")
        elif not self._carriers.usable:
            waits.append(f"no certificate from the CA at {self._config.ca_address}")
        if not self._registry.ready.is_set():
            waits.append(f"no word from the registry at {self._config.registry_address}")
        if self._capture is not None and self._capture.in_place is False:
            waits.append("the capture rules are gone: restart the pod")
        return not waits, "\n".join(waits or ["ok"]) + "\n"

    def _is_banned(self) -> bool:
        return self._own is not None and self._source.bans.covers(self._own) is not None

    def _svid_came(self, svid: Svid) -> None:
        self._own = svid.facts

    def _describe_capture(self) -> dict[str, object]:
        found = {} if self._capture is None else self._capture.describe()
        return {"mode": self._config.mode, **found}

    async def _metrics(self, _: Request) -> Answer:
        families = [*await self._carriers.families(), *of_control(self._control_facts())]
        return Answer(text(families).encode(), content_type=CONTENT_TYPE)

    def _control_facts(self) -> ControlFacts:
        return ControlFacts(
            svid=self._source.current,
            refreshes=self._source.refreshes,
            spans=self._exporter.stats(),
            registry_connected=self._registry.connected,
            registry_refused=self._registry.refused,
            ready=self._ready()[0],
            captured=None if self._capture is None else self._capture.in_place,
            now=monotonic(),
        )

    # --- the end ----------------------------------------------------------------------------

    async def _close(self) -> None:
        await self._carriers.close()
        await self._health.close()
        await self._admin.close()
        await self._probes.close()
        await self._channel.close()
        await self._access.close()
        await self._exporter.close()
        _log.info("stopped")
