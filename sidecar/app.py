"""Puts the parts of the proxy together, starts them in order and ends them in order.

At start: listen first (a connection is held, never lost), then the certificate, then the registry.
At SIGTERM: peers are told to open no more links here, the app's own outbound links go on, and the
process ends when none is left or the grace period is over (KEP-753: a native sidecar gets its
SIGTERM after the app has ended).
"""

import asyncio
import contextlib
import logging
import signal
import socket
from dataclasses import replace
from functools import partial
from typing import Final

from certs.client.rpc import RenewingChannel
from certs.client.source import Svid, SvidSource
from certs.trust.bans import Bans, Guard
from certs.trust.contexts import MaterialRefused
from certs.trust.svid import SvidChecker
from kit.clock import monotonic
from kit.tasks import spawn, stop
from policy.rules import NOT_TOLD
from proto import registry_pb2 as pb
from sidecar import sockets
from sidecar.admin import pages
from sidecar.admin.server import AdminServer
from sidecar.admin.tap import Tap
from sidecar.config import SidecarConfig, Upstream
from sidecar.contract import (
    ALPN,
    HEALTH_PORT,
    INBOUND_PORT,
    OUTBOUND_PORT,
    OWN_PORTS,
    PROBE_PATH,
)
from sidecar.dataplane.arrival import Arrivals
from sidecar.dataplane.banned import cut_banned
from sidecar.dataplane.context import Plane, Trust
from sidecar.dataplane.listener import Accepted, Listener
from sidecar.dataplane.outbound import OutboundLink
from sidecar.dataplane.poller import Poller
from sidecar.dataplane.pool import Pool
from sidecar.dataplane.watch import Watch
from sidecar.denials import Denials
from sidecar.discovery.client import RegistryClient
from sidecar.discovery.translate import policy_set
from sidecar.health import HealthServer, check
from sidecar.lag import LoopLag
from sidecar.probes.table import ProbeTable
from sidecar.telemetry.config import TelemetryConfig
from sidecar.telemetry.exporter import LinkExporter
from sidecar.wire.opening import SHUTDOWN

_DRAIN_POLL_S: Final = 0.1
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
        self._exporter = LinkExporter(telemetry)
        self._channel = RenewingChannel(source, config.registry_address)
        self._registry = RegistryClient(
            config.own, config.trust_domain, self._channel.get, self._settings_came
        )
        self._guard = Guard(SvidChecker(config.trust_domain))
        self._poller = poller = Poller(loop)
        tap = Tap(Denials(self._exporter.report).report)
        self._lag = LoopLag(loop)
        self._plane = Plane(
            poller=poller,
            own=config.own,
            directory=self._registry,
            verify=self._guard,
            report=tap.report,
            pool=Pool(poller, monotonic),
            policy=replace(NOT_TOLD, allow_plaintext=config.allow_plaintext),
            allow_external=config.allow_external,
            cluster_networks=config.cluster_networks,
            mark=config.mark,
            own_ports=OWN_PORTS | {upstream.local_port for upstream in config.upstreams},
            tunnel_only=config.mode == "localhost",
        )
        self._arrivals = Arrivals(self._plane)
        self._watch = Watch(self._plane, self._arrivals)
        self._listeners: list[Listener] = []
        self._inbound: list[Listener] = []
        self._health = HealthServer()
        self._health.routes.add("/startup", check(self._started))
        self._health.routes.add("/livez", check(lambda: (True, "ok\n")))
        self._health.routes.add("/readyz", check(self._ready))
        self._admin = AdminServer(config.admin_socket)
        pages.register(
            self._admin.routes,
            pages.Sources(
                plane=self._plane,
                arrivals=self._arrivals,
                config=config,
                svids=source,
                known=self._registry.all,
                registry_connected=lambda: self._registry.connected,
                ready=self._ready,
                capture=self._capture,
                lag=self._lag,
                tap=tap,
            ),
        )
        self._probes = ProbeTable(config.probes, config.mark)
        self._health.routes.add(PROBE_PATH, self._probes.answer)

    async def run_until_signalled(self) -> None:
        """Start, serve until SIGTERM or SIGINT, drain and end."""
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, stopping.set)
        self._listen()
        await self._health.start(HEALTH_PORT)
        await self._start_admin()
        self._exporter.start()
        self._source.subscribe(self._svid_came)
        self._source.subscribe_bans(self._bans_came)
        working = [
            spawn(self._source.run(), name="certificates"),
            spawn(self._talk_to_registry(), name="registry"),
        ]
        try:
            await stopping.wait()
            await self._drain(stopping)
        finally:
            await stop(*working)
            await self._close()

    # --- start ------------------------------------------------------------------------------

    def _listen(self) -> None:
        config = self._config
        if config.mode == "redirect":
            for ip in _loopbacks():
                self._listen_on(ip, OUTBOUND_PORT, self._captured)
        for upstream in config.upstreams:
            for ip in _loopbacks():
                self._listen_on(ip, upstream.local_port, partial(self._asked_for, upstream))
        for ip in _wildcards():
            sock = sockets.listen(ip, INBOUND_PORT)
            self._inbound.append(Listener(self._poller, sock, self._arrivals.accepted))

    def _listen_on(self, ip: str, port: int, accepted: Accepted) -> None:
        self._listeners.append(Listener(self._poller, sockets.listen(ip, port), accepted))

    def _captured(self, sock: socket.socket, ip: str, port: int) -> None:
        OutboundLink(self._plane, sock, ip, port).start_redirected()

    def _asked_for(self, upstream: Upstream, sock: socket.socket, ip: str, port: int) -> None:
        OutboundLink(self._plane, sock, ip, port).start_upstream(upstream.key, upstream.port)

    async def _start_admin(self) -> None:
        """The data plane works without it: a volume that is missing costs the pod no link."""
        try:
            await self._admin.start()
        except OSError as e:
            _log.error("no admin socket", extra={"error": str(e)})

    async def _talk_to_registry(self) -> None:
        await self._source.wait_ready()
        await self._registry.run()

    # --- news -------------------------------------------------------------------------------

    def _svid_came(self, svid: Svid) -> None:
        """A new leaf or bundle: new contexts, in one assignment. Running links keep the old ones."""
        try:
            trust = Trust(
                svid.material.server_context([ALPN]),
                svid.material.client_context([ALPN]),
                str(svid.facts.identity),
                svid.deadline,
            )
        except MaterialRefused as e:
            _log.error("new certificate refused, the old one stays", extra={"error": str(e)})
            return
        self._plane.trust = trust
        _log.info(
            "certificate in use",
            extra={
                "identity": trust.identity,
                "serial": svid.facts.serial,
                "expires_at": svid.expires_at.isoformat(),
            },
        )

    def _bans_came(self, bans: Bans) -> None:
        """Refuse the banned from now on, and cut what is open to them."""
        self._guard.bans = bans
        cut = cut_banned(self._plane, self._arrivals, bans)
        _log.info("bans in force", extra={"bans": len(bans), "links_cut": cut})

    def _settings_came(self, settings: pb.PodSettings) -> None:
        """Raises NotUnderstood, with nothing changed."""
        self._plane.policy = policy_set(settings)
        self._plane.allow_external = settings.external != "deny"
        self._plane.declared_ports = frozenset(settings.declared_ports)
        self._plane.own = replace(self._plane.own, zone=settings.zone)

    def _started(self) -> tuple[bool, str]:
        """For the startup probe: the app may start once its first connection would work."""
        return self._ready()

    def _ready(self) -> tuple[bool, str]:
        waits = []
        if self._plane.usable_trust() is None:
            waits.append(f"no certificate from the CA at {self._config.ca_address}")
        if not self._registry.ready.is_set():
            waits.append(f"no word from the registry at {self._config.registry_address}")
        return not waits, "\n".join(waits or ["ok"]) + "\n"

    def _capture(self) -> dict[str, object]:
        return {"mode": self._config.mode}

    # --- the end ----------------------------------------------------------------------------

    async def _drain(self, stopping: asyncio.Event) -> None:
        """Let running links end by themselves; a second signal or the grace period ends the wait."""
        _log.info("draining", extra={"links": len(self._plane.live)})
        stopping.clear()
        self._plane.draining = True
        self._arrivals.go_away()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.drain_s):
                while self._plane.live and not stopping.is_set():
                    await asyncio.sleep(_DRAIN_POLL_S)

    async def _close(self) -> None:
        for listener in (*self._listeners, *self._inbound):
            listener.close()
        for link in list(self._plane.live):
            link.cut(SHUTDOWN, "drain")
        self._watch.close()
        self._plane.pool.close()
        self._arrivals.close()
        self._poller.close()
        await self._health.close()
        await self._admin.close()
        self._lag.close()
        await self._probes.close()
        await self._channel.close()
        await self._exporter.close()
        _log.info("stopped")


def _loopbacks() -> list[str]:
    return ["127.0.0.1", "::1"] if _has_ipv6() else ["127.0.0.1"]


def _wildcards() -> list[str]:
    return ["0.0.0.0", "::"] if _has_ipv6() else ["0.0.0.0"]


def _has_ipv6() -> bool:
    """Whether this network namespace has an IPv6 loopback; nodes may switch IPv6 off."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True
