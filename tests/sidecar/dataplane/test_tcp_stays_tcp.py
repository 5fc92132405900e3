"""What an app feels of TCP is the same through podlink: ends of any size, resets, full accept queues."""

import asyncio
import contextlib
import socket
import struct
from typing import Any

import pytest

from kit.ports import NO_PORTS, PortSet
from sidecar import sockets
from sidecar.dataplane.links.splice import MAX_READ, TunnelSplice
from sidecar.dataplane.loop.poller import poller_of
from sidecar.directory import EXTERNAL
from sidecar.listening import LoopbackListeners
from sidecar.wire.opening import CUT_AT_EXPIRY, CUT_BY_BAN, SHUTDOWN
from tests.patience import PATIENCE_S
from tests.sidecar.dataplane.conftest import WEB, Captured, Side, StartPair, connected

Serve = Any
RESET = struct.pack("ii", 1, 0)


def abort(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


@pytest.mark.parametrize("size", [MAX_READ - n for n in range(12)])
async def test_a_last_read_of_any_size_up_to_the_largest_arrives_whole(
    size: int, start_pair: StartPair, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The END goes with the last bytes into one buffer, which has room for it whatever their size."""
    got = asyncio.Event()
    received = bytearray()

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 20):
            received.extend(data)
        got.set()
        writer.close()

    pair = start_pair(await serve(app))
    waiting: asyncio.Future[TunnelSplice] = asyncio.get_running_loop().create_future()
    begin = TunnelSplice.start

    def start(splice: TunnelSplice) -> None:
        if splice.near.getsockname() == pair.upstream:
            waiting.set_result(splice)  # the dialler's begins once all has come
        else:
            begin(splice)

    monkeypatch.setattr(TunnelSplice, "start", start)
    body = (bytes(range(256)) * (size // 256 + 1))[:size]
    client = socket.create_connection(pair.upstream)
    near = await asyncio.wait_for(waiting, PATIENCE_S)
    near._read_size = MAX_READ  # as after a long stream
    near.near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    await asyncio.get_running_loop().run_in_executor(None, client.sendall, body)
    client.shutdown(socket.SHUT_WR)
    async with asyncio.timeout(PATIENCE_S):
        while len(near.near.recv(MAX_READ, socket.MSG_PEEK)) < size:
            await asyncio.sleep(0.01)
    begin(near)
    await asyncio.wait_for(got.wait(), PATIENCE_S)
    assert received == body
    assert (await pair.near.record()).close == "fin"
    client.close()


@pytest.mark.parametrize("size", [0, 1000, 30_000_000])
@pytest.mark.parametrize("whose", ["client", "app"])
async def test_a_reset_is_passed_on_even_where_the_other_side_reads_nothing(
    whose: str, size: int, start_pair: StartPair, serve: Serve
) -> None:
    """With nothing under way, with some bytes in the kernels on the way, and with all of them full."""
    accepted: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    listening.setblocking(False)
    loop = asyncio.get_running_loop()

    async def accept() -> None:
        sock, _ = await loop.sock_accept(listening)
        accepted.set_result(sock)

    accepting = asyncio.ensure_future(accept())
    pair = start_pair(listening.getsockname()[1])
    client = socket.create_connection(pair.upstream)
    client.setblocking(False)
    app = await asyncio.wait_for(accepted, PATIENCE_S)
    await accepting
    app.setblocking(False)
    resets, silent = (client, app) if whose == "client" else (app, client)
    left = size
    with contextlib.suppress(TimeoutError):
        while left:
            async with asyncio.timeout(0.3):  # until all is full
                await loop.sock_sendall(resets, bytes(min(left, 100_000)))
                left -= min(left, 100_000)
    await asyncio.sleep(0.1)
    abort(resets)

    async with asyncio.timeout(PATIENCE_S):
        while not sockets.connect_error(silent):
            await asyncio.sleep(0.02)
    near, far = await pair.near.record(), await pair.far.record()
    assert near.close in ("reset", "lost") and far.close in ("reset", "lost")
    assert "reset" in (near.close, far.close)
    silent.close()
    listening.close()


async def test_a_reset_reaches_a_proxy_that_does_not_read_its_tunnel(
    start_pair: StartPair, serve: Serve
) -> None:
    """RESET lies behind what is not read; TCP's own reset does not."""

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    pair = start_pair(await serve(app))
    client = socket.create_connection(pair.upstream)
    async with asyncio.timeout(PATIENCE_S):
        while (
            not all(link.moved == (0, 0) for link in pair.far.plane.live) or not pair.far.plane.live
        ):
            await asyncio.sleep(0.01)
    (link,) = pair.far.plane.live
    assert link.tunnel is not None
    link.tunnel.pause()
    client.sendall(b"unread")
    await asyncio.sleep(0.1)
    abort(client)
    assert (await pair.far.record()).close == "reset", "of what lay unread the reason was read"
    assert (await pair.near.record()).close == "reset"


@pytest.fixture
async def near(make_side: Any) -> Side:
    side: Side = make_side(WEB, "127.0.0.1")
    return side


@pytest.mark.parametrize("whose", ["client", "server"])
async def test_a_reset_is_passed_on_through_a_plaintext_link_too(
    whose: str, near: Side, captured: Captured
) -> None:
    near.directory.entries["127.0.0.1"] = EXTERNAL
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    _reader, writer = await captured(near, "127.0.0.1", port)
    listening.setblocking(False)
    loop = asyncio.get_running_loop()
    server, _ = await asyncio.wait_for(loop.sock_accept(listening), PATIENCE_S)
    server.setblocking(False)
    client = writer.get_extra_info("socket")
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    if whose == "client":
        writer.write(bytes(30_000_000))
        await asyncio.sleep(0.3)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()
        silent = server
    else:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await loop.sock_sendall(server, bytes(30_000_000))
        abort(server)
        silent = client
    async with asyncio.timeout(PATIENCE_S):
        while not silent.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            await asyncio.sleep(0.02)
    assert (await near.record()).close == "reset"
    for sock in (server, listening):
        sock.close()


async def test_a_paused_reader_hears_of_a_reset_once_and_of_no_orderly_end() -> None:
    poller = poller_of(asyncio.get_running_loop())
    for how in ("reset", "fin"):
        listening = socket.create_server(("127.0.0.1", 0))
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
        ours.setblocking(False)
        heard: list[str] = []
        poller.add_reader(ours.fileno(), lambda: None)
        poller.pause_reader(ours.fileno(), lambda heard=heard: heard.append("hung up"))  # type: ignore[misc]
        theirs.sendall(b"unread")
        if how == "reset":
            abort(theirs)
        else:
            theirs.close()
        await asyncio.sleep(0.1)
        assert heard == (["hung up"] if how == "reset" else [])
        poller.forget(ours.fileno())
        for sock in (ours, listening):
            sock.close()


# --- an app that is slow to accept, or that nobody may reach ------------------------------------


async def full(backlog: int = 0) -> tuple[socket.socket, list[socket.socket]]:
    """A listening socket whose queue of waiting connections is full, and what fills it."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(backlog)
    waiting = []
    for _ in range(backlog + 1):
        waiting.append(socket.create_connection(listening.getsockname()))
    return listening, waiting


@pytest.mark.parametrize("first", [b"", b"hello"])
async def test_a_full_accept_queue_is_waited_for_while_the_far_proxy_answers(
    first: bytes, start_pair: StartPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With bytes of the app's on their way and without: the far proxy answers either way."""
    monkeypatch.setattr("sidecar.dataplane.links.outbound.ACCEPT_TIMEOUT_S", 0.2)
    monkeypatch.setattr("sidecar.dataplane.links.outbound.PONG_WITHIN_S", 0.2)
    listening, waiting = await full()
    pair = start_pair(listening.getsockname()[1])
    reader, writer = await connected(pair.upstream, first)
    async with asyncio.timeout(PATIENCE_S):
        while not pair.far.plane.live:
            await asyncio.sleep(0.01)
    (link,) = pair.near.plane.live
    for _ in range(4):  # well past the time that a link waits without asking
        await asyncio.sleep(0.3)
        link.look(pair.near.plane.now())
    assert link in pair.near.plane.live
    ours = {sock.getsockname() for sock in waiting}
    for sock in waiting:
        sock.close()
    listening.setblocking(False)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE_S):  # the kernel asks again in its own time
        while True:
            app, peer = await loop.sock_accept(listening)
            if peer not in ours:
                break
            app.close()
    app.setblocking(False)
    if first:
        assert await asyncio.wait_for(loop.sock_recv(app, 100), PATIENCE_S) == first
    await loop.sock_sendall(app, b"answer")
    assert await asyncio.wait_for(reader.readexactly(6), PATIENCE_S) == b"answer"
    writer.close()
    app.close()
    listening.close()


async def test_a_client_that_resets_while_the_app_takes_no_connection_is_not_waited_for(
    start_pair: StartPair,
) -> None:
    listening, waiting = await full()
    pair = start_pair(listening.getsockname()[1])
    client = socket.create_connection(pair.upstream)
    async with asyncio.timeout(PATIENCE_S):
        while not pair.far.plane.live:
            await asyncio.sleep(0.01)
    (link,) = pair.near.plane.live
    link.look(pair.near.plane.now())  # as every few seconds
    abort(client)
    near, far = await pair.near.record(), await pair.far.record()
    assert (near.close, near.error) == ("reset", "the app reset the connection")
    assert (far.verdict, far.reason) == ("failed", "peer_lost")
    for sock in (listening, *waiting):
        sock.close()


async def test_an_app_whose_queue_stays_full_is_named_as_that(
    start_pair: StartPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.dataplane.links.inbound.APP_TIMEOUT_S", 0.3)
    listening, waiting = await full()
    pair = start_pair(listening.getsockname()[1])
    reader, writer = await pair.client()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(1), PATIENCE_S)
    far = await pair.far.record()
    assert far.reason == "app_unreachable"
    assert far.error.endswith("its queue is full")
    writer.close()
    for sock in (listening, *waiting):
        sock.close()


@pytest.mark.attack_row(6)
@pytest.mark.parametrize("opened", [False, True])
async def test_what_an_app_binds_to_loopback_is_reached_only_where_the_pod_opens_it(
    opened: bool, start_pair: StartPair, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    port = await serve(hello)  # on 127.0.0.1
    pair = start_pair(port)
    listening = LoopbackListeners()
    pair.far.plane.loopback_listeners = listening
    pair.far.plane.loopback_ports = PortSet.parse(str(port)) if opened else NO_PORTS
    # The pod's address is another one: nothing listens there.
    monkeypatch.setattr(
        "sidecar.dataplane.links.arrival.original_dst", lambda _: ("127.0.0.2", port)
    )
    reader, writer = await pair.client()
    if opened:
        assert await asyncio.wait_for(reader.readexactly(5), PATIENCE_S) == b"hello"
    else:
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(5), PATIENCE_S)
        far = await pair.far.record()
        assert far.reason == "app_unreachable"
        assert far.error == (
            f"the app listens on port {port} on loopback only: have it listen on the pod's address, "
            f"or annotate the pod with config.podlink.dev/expose-loopback-ports: '{port}'"
        )
    writer.close()


async def test_an_urgent_byte_stays_in_the_stream(start_pair: StartPair, serve: Serve) -> None:
    """RFC 6093, section 3.1: urgent data is in line; a proxy that leaves that off loses the byte."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with writer.get_extra_info("socket").dup() as raw:
            raw.send(b"!", socket.MSG_OOB)
        writer.write(await reader.readexactly(3))
        writer.close()

    pair = start_pair(await serve(answer))
    sock = socket.create_connection(pair.upstream)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    sock.sendall(b"a")
    sock.send(b"b", socket.MSG_OOB)
    sock.sendall(b"c")
    reader, writer = await asyncio.open_connection(sock=sock)
    assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b"!abc"
    writer.close()


@pytest.mark.parametrize(
    ("code", "reason", "verdict", "close"),
    [
        (CUT_BY_BAN, "banned", "denied", "banned"),
        (CUT_AT_EXPIRY, "peer_lost", "failed", "expired"),
        (SHUTDOWN, "peer_lost", "failed", "drain"),
    ],
)
async def test_a_link_that_is_cut_before_its_app_has_answered_keeps_the_reason(
    code: int, reason: str, verdict: str, close: str, start_pair: StartPair
) -> None:
    listening, waiting = await full()
    pair = start_pair(listening.getsockname()[1])
    _reader, writer = await pair.client()
    async with asyncio.timeout(PATIENCE_S):
        while not pair.far.plane.live:
            await asyncio.sleep(0.01)
    (link,) = pair.far.plane.live
    link.cut(code, close)
    far, near = await pair.far.record(), await pair.near.record()
    assert (far.reason, far.verdict, far.close) == (reason, verdict, close)
    assert near.close == close, "the dialler is told too"
    writer.close()
    for sock in (listening, *waiting):
        sock.close()
