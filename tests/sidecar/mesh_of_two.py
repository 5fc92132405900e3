"""Two sidecars in one process with a real CA behind them: carriers, clients, an app, and a load.

Redirection and the registry are not part of it (tests/e2e has them): the dialler knows its peer, and
the app is reached on loopback, as in `mode: localhost`.
"""

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from certs.client.ca import CaClient
from certs.trust.identity import WorkloadIdentity
from kit.clock import monotonic
from kit.settings import Settings
from kit.tasks import spawn, stop
from policy.rules import PolicySet
from sidecar import sockets
from sidecar.carrier import Carrier
from sidecar.config import SidecarConfig
from sidecar.dataplane.links.outbound import OutboundLink
from sidecar.dataplane.loop.listener import Listener
from sidecar.directory import Workload
from sidecar.report import LinkRecord
from tests.certs.running_ca import RunningCa
from tests.patience import PATIENCE_S
from tests.sidecar.dataplane.conftest import FakeDirectory
from tests.sidecar.test_config import GOOD

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
API = WorkloadIdentity("cluster.local", "shop", "api")


@dataclass
class Two:
    """`upstream` is where the near app connects; `records` has the near side's links."""

    near: Carrier
    far: Carrier
    clients: list[CaClient]
    upstream: tuple[str, int]
    app_port: int
    records: list[LinkRecord] = field(default_factory=list)
    far_records: list[LinkRecord] = field(default_factory=list)

    def why(self) -> str:
        """What went wrong, as both sides tell it; for the message of a test that failed."""
        near, far = (
            Counter((r.verdict, r.reason, r.close, r.error) for r in records if r.reason)
            for records in (self.records, self.far_records)
        )
        away = self.near.plane.turned_away, self.far.plane.turned_away
        return f"near {near.most_common(5)}, far {far.most_common(5)}, turned away {away}"


@asynccontextmanager
async def two_sidecars(ca: RunningCa, serve: Serve | None = None) -> AsyncIterator[Two]:
    """`shop/web` dials `shop/api`, whose app echoes, or does what `serve` does with a connection. Both
    have leaves of `ca` and follow it."""
    loop = asyncio.get_running_loop()
    app = await asyncio.start_server(serve or _echo, "127.0.0.1", 0, backlog=1024)
    app_port = app.sockets[0].getsockname()[1]
    records: list[LinkRecord] = []
    far_records: list[LinkRecord] = []
    listeners: list[Listener] = []
    async with AsyncExitStack() as stack:
        clients, carriers = [], []
        for name in ("web", "api"):
            token = ca.fake.add_pod(name=f"{name}-1", account=name, ips=("127.0.0.1",))
            client = ca.client(token, name)
            config = SidecarConfig.from_settings(Settings({**GOOD, "PODLINK_MODE": "localhost"}))
            carrier = Carrier(
                loop,
                config,
                FakeDirectory(),
                records.append if name == "web" else far_records.append,
            )
            carrier.plane.policy, carrier.plane.unsettled = PolicySet(), False
            client.subscribe(carrier.svid_came)
            client.subscribe_bans(carrier.bans_came)
            running = spawn(client.run(), name=f"certificates of {name}")
            stack.push_async_callback(stop, running)
            await asyncio.wait_for(client.wait_ready(), PATIENCE_S)
            clients.append(client)
            carriers.append(carrier)
        near, far = carriers
        inbound = sockets.listen("127.0.0.1", 0)
        near.plane.tunnel_port = inbound.getsockname()[1]
        listeners.append(Listener(far.plane.poller, inbound, far.arrivals.accepted))
        directory = near.plane.directory
        assert isinstance(directory, FakeDirectory)
        directory.entries["api.shop"] = Workload(
            "uid", "shop", "api-1", API, ("127.0.0.1",), tunnel_only=True
        )
        outbound = sockets.listen("127.0.0.1", 0)

        def accepted(sock: socket.socket, ip: str, port: int) -> None:
            OutboundLink(near.plane, sock, ip, port).start_upstream("api.shop", app_port)

        listeners.append(Listener(near.plane.poller, outbound, accepted))
        try:
            yield Two(near, far, clients, outbound.getsockname(), app_port, records, far_records)
        finally:
            for listener in listeners:
                listener.close()
            near.close()
            far.close()
            app.close()


class Load:
    """`per_second` requests, each on a connection of its own, whose answers must be right."""

    def __init__(self, address: tuple[str, int], per_second: int) -> None:
        self._address, self._per_second = address, per_second
        self.done = 0
        self.failed: Counter[str] = Counter()

    async def run(self) -> None:
        """Until cancelled; what is under way then is awaited."""
        under_way: set[asyncio.Task[None]] = set()
        due = monotonic()
        try:
            while True:
                due += 1 / self._per_second
                await asyncio.sleep(max(0.0, due - monotonic()))
                task = spawn(self._one(), name="one request")
                under_way.add(task)
                task.add_done_callback(under_way.discard)
        finally:
            await asyncio.gather(*under_way)

    async def _one(self) -> None:
        word = b"request %d" % self.done
        try:
            async with asyncio.timeout(PATIENCE_S):
                reader, writer = await asyncio.open_connection(*self._address)
                writer.write(word)
                writer.write_eof()
                answer = await reader.read()
                writer.close()
        except (OSError, TimeoutError) as e:
            self.failed[type(e).__name__] += 1
            return
        self.done += 1
        if answer != word:
            self.failed["wrong answer" if answer else "no answer"] += 1


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        writer.write(await reader.read())
        await writer.drain()
    writer.close()
