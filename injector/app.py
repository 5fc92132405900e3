"""Puts the injector together and runs it until it is told to stop."""

import asyncio
import logging
import signal
from dataclasses import replace

from certs.client.ca import CaClient
from certs.client.source import Svid, SvidSource
from certs.client.web import following_context
from injector.bundle import BundleKeeper
from injector.config import InjectorConfig
from injector.namespaces import Namespaces
from injector.server import Webhook
from kit.backoff import Backoff
from kit.kube import Kube, KubeError
from kit.tasks import spawn, stop
from kit.web import BoundedServer, Bounds

GRACE_S = 3.0
LINGER_S = 1.0
"""How long the rest of a body that was refused unread is waited for before the connection is closed."""
BOUNDS = Bounds(request_within_s=15.0, idle_s=120.0)
"""The API server keeps its connections for 90 s between reviews; it must be the one that closes them, or
a review that it has just sent would fail."""
_log = logging.getLogger(__name__)


class InjectorServer:
    """The webhook with everything behind it. `port` is known once `start` has returned."""

    def __init__(self, config: InjectorConfig, kube: Kube, source: SvidSource) -> None:
        self._config, self._source = config, source
        self.namespaces = Namespaces(kube)
        self.bundle = BundleKeeper(kube)
        webhook = Webhook(config.mesh, self.namespaces.get, lambda: self.ready)
        self._server = BoundedServer(
            webhook.app(), BOUNDS, shutdown_timeout_s=GRACE_S, lingering_s=LINGER_S
        )
        self._tasks: list[asyncio.Task[None]] = []
        self.port = 0

    @property
    def ready(self) -> bool:
        """It can answer, and the API server can know its certificate."""
        has_certificate = self._source.current is not None
        return self.namespaces.synced and self.bundle.written.is_set() and has_certificate

    async def start(self) -> None:
        """Listen once there is a certificate. Raises OSError if the port is taken."""
        self._tasks.append(spawn(self.namespaces.run(), name="watch namespaces"))
        await self._source.wait_ready()
        self._source.subscribe(self._use)
        if (svid := self._source.current) is not None:
            self._use(svid)
        self._tasks.append(spawn(self.bundle.run(), name="keep the caBundle"))
        host, port = read_listen(self._config.listen)
        context = following_context(self._source)
        await self._server.listen(host, port, context)
        self.port = self._server.port
        _log.info("listening", extra={"port": self.port})

    async def stop(self) -> None:
        await self._server.close()
        await stop(*self._tasks)

    def _use(self, svid: Svid) -> None:
        self.bundle.use(svid.material.bundle_pem)


def read_listen(text: str) -> tuple[str | None, int]:
    """Host and port of "host:port". "[::]" is every address of both families, as elsewhere.

    asyncio would bind "::" to IPv6 alone; None is its word for every address.
    """
    host, _, port = text.rpartition(":")
    return (None if host in ("[::]", "") else host.strip("[]")), int(port)


def _number(text: str) -> int:
    """29 of "29" and of "29+", as some clouds write it. Raises ValueError."""
    return int(text.rstrip("+"))


async def find_native_sidecars(kube: Kube) -> bool:
    """Whether the cluster runs native sidecars: on by default since Kubernetes 1.29 (KEP-753)."""
    backoff = Backoff()
    while True:
        try:
            version = await kube.get("/version")
            major, minor = (_number(version[name]) for name in ("major", "minor"))
        except (KubeError, KeyError, TypeError, ValueError) as error:
            _log.warning("the API server's version is unknown", extra={"error": str(error)})
            await asyncio.sleep(backoff.next_s())
            continue
        _log.info("cluster", extra={"version": f"{major}.{minor}"})
        return (major, minor) >= (1, 29)


async def run(config: InjectorConfig) -> None:
    """Serve until SIGTERM or SIGINT."""
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    source = CaClient(
        config.mesh.ca_address,
        config.token_path,
        config.bundle_path,
        config.mesh.trust_domain,
    )
    async with Kube.in_cluster() as kube:
        native = config.native_sidecars
        if native is None:
            native = await find_native_sidecars(kube)
        config = replace(config, mesh=replace(config.mesh, native_sidecars=native))
        server = InjectorServer(config, kube, source)
        renewing = spawn(source.run(), name="renew the certificate")
        starting = spawn(server.start(), name="start")
        stopping = spawn(told.wait(), name="wait for the signal")
        try:
            waited = {stopping, starting, renewing}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await asyncio.wait({stopping, renewing}, return_when=asyncio.FIRST_COMPLETED)
            if renewing.done():
                renewing.result()
                raise RuntimeError("the certificate is no longer renewed")
        finally:
            await stop(starting, stopping)
            await server.stop()
            await stop(renewing)
