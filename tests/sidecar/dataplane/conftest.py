"""Two sidecars' data planes in one loop, over real loopback sockets and real TLS.

`near` is the dialler's plane, `far` the acceptor's. The app behind `far` listens on 127.0.0.1; the
client connects to `near`'s upstream port. Redirection is not part of this: tests/e2e has it.
"""

import asyncio
import datetime as dt
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from certs.trust.chain import ChainChecker
from certs.trust.contexts import TlsMaterial
from certs.trust.identity import WorkloadIdentity
from certs.trust.possession import ProofJudge
from certs.trust.svid import SvidChecker
from kit.clock import monotonic
from sidecar import sockets
from sidecar.carrier import trust_of
from sidecar.dataplane.links.arrival import Arrivals
from sidecar.dataplane.links.outbound import OutboundLink
from sidecar.dataplane.loop.listener import Listener
from sidecar.dataplane.loop.poller import poller_of
from sidecar.dataplane.plane import Plane, Trust
from sidecar.dataplane.tunnels.pool import Pool
from sidecar.dataplane.tunnels.renewal import Renewals
from sidecar.directory import Answer, Found, Own, Workload
from sidecar.report import LinkRecord
from tests.certs.forge import Forge
from tests.patience import PATIENCE_S

WEB = WorkloadIdentity("cluster.local", "shop", "web")
API = WorkloadIdentity("cluster.local", "shop", "api")


class FakeDirectory:
    """A directory that a test writes by hand; the real one is tested with the real registry."""

    def __init__(self) -> None:
        self.entries: dict[str, Found] = {}
        self.truth: dict[str, Found] = {}
        """What the registry would say if it were asked anew."""
        self.anew: list[str] = []

    def known(self, key: str) -> Found | None:
        return self.entries.get(key)

    def ask_anew(self, key: str, answer: Answer) -> None:
        self.anew.append(key)
        asyncio.get_running_loop().call_soon(answer, self.truth.get(key, self.entries.get(key)))

    def ask(self, key: str, answer: Answer, *, for_record: bool = False) -> None:
        asyncio.get_running_loop().call_soon(answer, self.entries.get(key))


@dataclass
class Side:
    plane: Plane
    directory: FakeDirectory
    records: list[LinkRecord] = field(default_factory=list)

    async def record(self, count: int = 1) -> LinkRecord:
        """The `count`th record of this side, once it is there."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.records) < count:
                await asyncio.sleep(0.01)
        return self.records[count - 1]


MakeSide = Callable[[WorkloadIdentity, str], Side]


@pytest.fixture
def forge() -> Forge:
    return Forge()


def trust_from(
    forge: Forge,
    identity: WorkloadIdentity,
    ip: str,
    bundle_pem: bytes = b"",
    lifetime_s: float = 3600.0,
) -> Trust:
    """A leaf that `forge` signs; believed are its root, or those of the bundle."""
    ends = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=lifetime_s)
    key_pem, chain_pem = forge.leaf(str(identity), ips=[ip], not_after=ends)
    material = TlsMaterial(key_pem, chain_pem, bundle_pem or forge.root_pem)
    return trust_of(material, str(identity), monotonic() + lifetime_s)


@pytest.fixture
async def make_side(forge: Forge) -> AsyncIterator[MakeSide]:
    made: list[Side] = []

    def make(identity: WorkloadIdentity, ip: str) -> Side:
        poller = poller_of(asyncio.get_running_loop())
        directory = FakeDirectory()
        records: list[LinkRecord] = []
        verify = SvidChecker("cluster.local")
        plane = Plane(
            poller=poller,
            own=Own(identity.namespace, identity.service_account, "uid", frozenset({"192.0.2.9"})),
            directory=directory,
            verify=verify,
            judge_proof=ProofJudge(verify, ChainChecker([forge.root_der])),
            report=records.append,
            pool=Pool(poller, monotonic),
            trust=trust_from(forge, identity, ip),
            tunnel_only=True,
        )
        plane.renewals = Renewals(plane)
        side = Side(plane, directory, records)
        made.append(side)
        return side

    yield make
    for side in made:
        side.plane.pool.close()
        for link in list(side.plane.live):
            link.cut(4, "drain")


@dataclass
class Pair:
    """A dialler and an acceptor, listening."""

    near: Side
    far: Side
    arrivals: Arrivals
    upstream: tuple[str, int]
    """Where the client connects."""
    app_port: int
    inbound_port: int

    async def client(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await connected(self.upstream)


async def connected(
    address: tuple[str, int], first: bytes = b""
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client's streams; `first` is there before the listener accepts.

    The kernel connects before the listener's loop can turn, so a link that is refused at once is seen
    as a reset of the connection and never as a failed connect.
    """
    sock = socket.create_connection(address)
    sock.sendall(first)
    return await asyncio.open_connection(sock=sock)


StartPair = Callable[[int], Pair]


@pytest.fixture
async def start_pair(make_side: MakeSide) -> AsyncIterator[StartPair]:
    """Call it with the app's port: `pair = start_pair(port)`."""
    listeners: list[Listener] = []
    pairs: list[Pair] = []

    def start(app_port: int) -> Pair:
        near, far = make_side(WEB, "127.0.0.1"), make_side(API, "127.0.0.1")
        arrivals = Arrivals(far.plane)
        inbound = sockets.listen("127.0.0.1", 0)
        inbound_port = inbound.getsockname()[1]
        near.plane.tunnel_port = inbound_port
        listeners.append(Listener(far.plane.poller, inbound, arrivals.accepted))
        near.directory.entries["api.shop"] = Workload(
            "uid", "shop", "api-0", API, ("127.0.0.1",), tunnel_only=True
        )
        outbound = sockets.listen("127.0.0.1", 0)

        def accepted(sock: socket.socket, ip: str, port: int) -> None:
            link = OutboundLink(near.plane, sock, ip, port)
            near.plane.poller.call(link.start_upstream, "api.shop", app_port)

        listeners.append(Listener(near.plane.poller, outbound, accepted))
        pair = Pair(near, far, arrivals, outbound.getsockname(), app_port, inbound_port)
        pairs.append(pair)
        return pair

    yield start
    for pair in pairs:
        pair.arrivals.close()
    for listener in listeners:
        listener.close()


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., object]]:
    """Start an app: `port = await serve(handler)`."""
    servers: list[asyncio.Server] = []

    async def start(handler: Callable[..., object]) -> int:
        server = await asyncio.start_server(handler, "127.0.0.1", 0)  # type: ignore[arg-type]
        servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    yield start
    for server in servers:
        server.close()


Captured = Callable[..., Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


@pytest.fixture
async def captured(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Captured]:
    """`await captured(side, ip, port, first)`: the app of `side` dials and has said `first` when its
    connection arrives, redirected.

    What the kernel would say of the destination is handed in; tests/e2e has the real redirection.
    """
    listeners: list[Listener] = []
    writers: list[asyncio.StreamWriter] = []

    async def dial(
        side: Side, ip: str, port: int, first: bytes = b""
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        monkeypatch.setattr("sidecar.dataplane.links.outbound.original_dst", lambda _: (ip, port))
        listening = sockets.listen("127.0.0.1", 0)

        def accepted(sock: socket.socket, source_ip: str, source_port: int) -> None:
            link = OutboundLink(side.plane, sock, source_ip, source_port)
            side.plane.poller.call(link.start_redirected)

        listeners.append(Listener(side.plane.poller, listening, accepted))
        reader, writer = await connected(listening.getsockname(), first)
        writers.append(writer)
        return reader, writer

    yield dial
    for writer in writers:
        writer.close()
    for listener in listeners:
        listener.close()
