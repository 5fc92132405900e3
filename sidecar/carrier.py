"""All that carries links in one process: the listeners, the plane they share, and what watches it.

What it is told (certificates, settings, bans) and whom it asks (the directory) comes from outside:
from `sidecar.app` in the same process, or over a wire where several processes carry links.
"""

import asyncio
import contextlib
import logging
import resource
import socket
from dataclasses import replace
from functools import partial
from typing import Final

from certs.client.source import Svid
from certs.trust.bans import Bans, Guard, is_of_pod
from certs.trust.chain import ChainChecker
from certs.trust.clock import TrustedClock
from certs.trust.contexts import MaterialRefused, TlsMaterial
from certs.trust.facts import LeafFacts
from certs.trust.pem import split_pem, to_der
from certs.trust.possession import ProofJudge, Prover
from certs.trust.svid import SvidChecker
from kit.clock import monotonic, unix_ns
from kit.contract import ALPNS, INBOUND_PORT, OUTBOUND_PORT, OWN_PORTS
from kit.ports import NO_PORTS, PortSet
from policy.rules import NOT_TOLD
from proto import registry_pb2 as pb
from sidecar import sockets
from sidecar.config import SidecarConfig, Upstream
from sidecar.dataplane.limits import Limits
from sidecar.dataplane.links.arrival import Arrivals
from sidecar.dataplane.links.outbound import OutboundLink
from sidecar.dataplane.loop.listener import Accepted, Listener
from sidecar.dataplane.loop.poller import poller_of
from sidecar.dataplane.plane import Plane, Trust, buckets
from sidecar.dataplane.revocation import cut_all, cut_banned, leave_the_gone, reauthorise
from sidecar.dataplane.sources import Sources
from sidecar.dataplane.sweep import Sweep
from sidecar.dataplane.tunnels.pool import Pool
from sidecar.dataplane.tunnels.renewal import Renewals
from sidecar.directory import Directory, Found
from sidecar.discovery.translate import policy_set
from sidecar.lag import LoopLag
from sidecar.memory import MemoryWatch, limit_of_cgroup
from sidecar.metrics.links import LinkMeter
from sidecar.report import LinkRecord, Report, ReportRequest, Watcher
from sidecar.source_check import SourceCheck
from sidecar.wire.opening import SHUTDOWN
from sidecar.wire.renewal import fits

_DRAIN_POLL_S: Final = 0.1
_log = logging.getLogger(__name__)


class Carrier:
    """Carries links from `listen` to `close`. `report` gets every record, after it was counted."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: SidecarConfig,
        directory: Directory,
        report: Report,
    ) -> None:
        self._config = config
        self._clock = TrustedClock()
        self._guard = Guard(SvidChecker(config.trust_domain, self._clock))
        self._proofs = ProofJudge(self._guard, ChainChecker((), self._clock))
        self._roots = frozenset[str]()
        self._own: LeafFacts | None = None
        self._poller = poller = poller_of(loop)
        self.meter = LinkMeter(report)
        self.lag = LoopLag(loop)
        limits = Limits.for_process(_descriptors(), config.workers)
        self.plane = Plane(
            poller=poller,
            own=config.own,
            directory=directory,
            verify=self._guard,
            judge_proof=self._proofs,
            report=self.meter.report,
            pool=Pool(poller, monotonic),
            policy=replace(NOT_TOLD, allow_plaintext=config.allow_plaintext),
            allow_external=config.allow_external,
            cluster_networks=config.cluster_networks,
            mark=config.mark,
            sources=Sources(config.shows_source, config.own.ips),
            own_ports=OWN_PORTS | {upstream.local_port for upstream in config.upstreams},
            tunnel_only=config.mode == "localhost",
            unix_s=self._clock.unix_s,
            leaves_name_pods=config.svid_source.leaves_name_pods,
            limits=limits,
            refused_opens=buckets(limits.refused_opens),
            renewal_rate=buckets(limits.renewals_per_source),
            handshake_rate=buckets(limits.handshakes_per_source),
            unsettled=True,
            http_ports=config.http_ports or NO_PORTS,
            loopback_ports=config.loopback_ports,
        )
        self.renewals = self.plane.renewals = Renewals(self.plane)
        limit = config.memory_limit or limit_of_cgroup()
        self.memory = MemoryWatch(loop, limit, self._memory_changed)
        self.arrivals = Arrivals(self.plane)
        self._source_check = SourceCheck(loop, self.plane.sources, config.own.ips, config.mark)
        self._sweep = Sweep(self.plane, self.arrivals)
        self._listeners: list[Listener] = []

    def watch_requests(self, report: ReportRequest) -> None:
        """Tell `report` of the HTTP requests on links that somebody says carry them."""
        if not self._config.watches_requests:
            return

        def watch(link: LinkRecord) -> Watcher:
            # Loaded only where it is asked for: HPACK's tables are not for every sidecar.
            from sidecar.telemetry.requests import RequestWatcher

            return RequestWatcher(link, report, unix_ns)

        self.plane.watch = watch

    # --- start ------------------------------------------------------------------------------

    def listen(self) -> None:
        """Accept from now on; connections are held until there is a certificate. Raises OSError."""
        config = self._config
        self._source_check.start()
        if config.mode == "redirect":
            for ip in _loopbacks():
                self._listen_on(ip, OUTBOUND_PORT, self._captured)
        for upstream in config.upstreams:
            for ip in _loopbacks():
                self._listen_on(ip, upstream.local_port, partial(self._asked_for, upstream))
        for ip in _wildcards():
            self._listen_on(ip, INBOUND_PORT, self.arrivals.accepted)

    def _listen_on(self, ip: str, port: int, accepted: Accepted) -> None:
        self._listeners.append(
            Listener(
                self._poller, sockets.listen(ip, port, shared=self._config.workers > 1), accepted
            )
        )

    def _captured(self, sock: socket.socket, ip: str, port: int) -> None:
        if limit := self.plane.full():
            return self.plane.turn_away(sock, limit)
        return self._poller.call(OutboundLink(self.plane, sock, ip, port).start_redirected)

    def _asked_for(self, upstream: Upstream, sock: socket.socket, ip: str, port: int) -> None:
        if limit := self.plane.full():
            return self.plane.turn_away(sock, limit)
        link = OutboundLink(self.plane, sock, ip, port)
        return self._poller.call(link.start_upstream, upstream.key, upstream.port)

    def _memory_changed(self, short: bool) -> None:
        self.plane.shedding = short
        if short:
            self.plane.pool.drop_all()

    @property
    def accept_pauses(self) -> int:
        """How often accepting was paused for want of descriptors or memory."""
        return sum(listener.pauses for listener in self._listeners)

    @property
    def shed(self) -> int:
        """Connections that were reset because no descriptor came free."""
        return sum(listener.shed for listener in self._listeners)

    # --- news -------------------------------------------------------------------------------

    def svid_came(self, svid: Svid) -> None:
        """A new leaf or bundle: new contexts, in one assignment. Tunnels with a running link keep the
        old ones, and the new leaf is proved inside them (`renewals`)."""
        try:
            trust = trust_of(svid.material, str(svid.facts.identity), svid.deadline)
        except MaterialRefused as e:
            _log.error("new certificate refused, the old one stays", extra={"error": str(e)})
            return
        if svid.said_at is not None:
            self._clock.heard(svid.said_at, svid.heard_at)
        self.plane.trust, self._own = trust, svid.facts
        self.plane.serials_name_pods = is_of_pod(svid.facts.serial, self._config.own.uid)
        self._look_at_own_ban()
        self._proofs.trusts = ChainChecker(to_der(svid.material.bundle_pem), self._clock)
        roots = frozenset(split_pem(svid.material.bundle_pem))
        if self._roots - roots:
            # Who was believed under a root that is gone must prove itself anew before another link.
            self.plane.pool.drop_all()
            self.arrivals.go_away()
        self._roots = roots
        self.renewals.look()
        _log.info(
            "certificate in use",
            extra={
                "identity": trust.identity,
                "serial": svid.facts.serial,
                "expires_at": svid.expires_at.isoformat(),
            },
        )

    def found_comes(self, key: str, value: Found) -> None:
        """Called before the directory says `value`: to pods that have gone, no idle tunnel is kept."""
        leave_the_gone(self.plane, key, value)

    def bans_came(self, bans: Bans) -> None:
        """Refuse the banned from now on, and cut what is open to them."""
        self._guard.bans = bans
        self._look_at_own_ban()
        cut = cut_banned(self.plane, self.arrivals.tunnels, bans)
        _log.info("bans in force", extra={"bans": len(bans), "links_cut": cut})

    def _look_at_own_ban(self) -> None:
        """If our own leaf is banned it is not shown any more and nothing that it opened goes on: who is
        banned with us has not heard of it either, and would believe us."""
        plane = self.plane
        kind = self._guard.bans.covers(self._own) if self._own is not None else None
        if kind is None:
            plane.withdrawn = self._guard.closed = ""
        elif not plane.withdrawn:
            plane.withdrawn = f"our own {kind} is banned: podlink certs bans says by whom"
            self._guard.closed = plane.withdrawn
            cut = cut_all(plane, self.arrivals.tunnels)
            _log.error("we are banned: certificate dropped", extra={"by": kind, "links_cut": cut})

    def settings_came(self, settings: pb.PodSettings) -> None:
        """Raises NotUnderstood, with nothing changed."""
        plane = self.plane
        policy, allow_external = policy_set(settings), settings.external != "deny"
        changed = (policy, allow_external) != (plane.policy, plane.allow_external)
        plane.policy, plane.allow_external = policy, allow_external
        if self._config.http_ports is None:
            self.plane.http_ports = PortSet.parse(map(str, settings.http_ports))
        self.plane.unsettled = False
        self.plane.own = replace(self.plane.own, zone=settings.zone)
        if changed and (cut := reauthorise(plane)):
            _log.info("settings changed: links cut that are now denied", extra={"links": cut})

    # --- the end ----------------------------------------------------------------------------

    async def drain(self, hurry: asyncio.Event) -> None:
        """Let running links end by themselves; `hurry` or the grace period ends the wait.

        Where the proxy is told to stop together with the app, the app's last calls are still to come:
        then no link at all for `drain_linger_s` is what says that it has gone.
        """
        _log.info("draining", extra={"links": len(self.plane.live)})
        self.plane.draining = True
        self.arrivals.go_away()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.drain_s):
                quiet_until = monotonic() + self._config.drain_linger_s
                while not hurry.is_set():
                    if self.plane.live:
                        quiet_until = monotonic() + self._config.drain_linger_s
                    elif monotonic() >= quiet_until:
                        break
                    await asyncio.sleep(_DRAIN_POLL_S)

    def close(self) -> None:
        """Cut what is left and close every socket."""
        for listener in self._listeners:
            listener.close()
        for link in list(self.plane.live):
            link.cut(SHUTDOWN, "drain")
        self._sweep.close()
        self.plane.pool.close()
        self.arrivals.close()
        self._source_check.close()
        self.lag.close()
        self.memory.close()


def trust_of(material: TlsMaterial, identity: str, expires_at: float) -> Trust:
    """What the data plane needs of a leaf that ends at `expires_at` (monotonic). Raises
    MaterialRefused."""
    chain = to_der(material.chain_pem)
    try:
        prove = Prover(material.key_pem, chain[0])
    except (ValueError, IndexError) as e:
        raise MaterialRefused(f"{type(e).__name__}: {e}") from e
    if not fits(chain):
        _log.warning("links end with this leaf: its chain is too long to be proved inside a tunnel")
    return Trust(
        material.server_context(ALPNS),
        material.client_context(ALPNS),
        identity,
        expires_at,
        leaf=prove.leaf,
        chain=chain,
        prove=prove if fits(chain) else None,
    )


def _descriptors() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


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
