"""Attacks by who holds a lawful leaf, or sits between two who do: on tunnels that already stand."""

import asyncio
import contextlib
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from certs.trust.contexts import TlsMaterial
from kit.clock import monotonic
from kit.contract import ALPN, OWN_PORTS
from policy.rules import PolicySet
from sidecar.dataplane.links.held import MAX_HELD
from sidecar.dataplane.links.outbound import OutboundLink
from sidecar.dataplane.links.splice import TunnelSplice
from sidecar.dataplane.sweep import Sweep
from sidecar.dataplane.tunnels import acquire as obtain
from sidecar.dataplane.tunnels import tunnel
from sidecar.directory import EXTERNAL, Endpoint, Service, Workload
from sidecar.wire.frames import DATA, END_FRAME, OPEN, PING_FRAME, encode
from sidecar.wire.opening import Opening
from tests.certs.forge import Forge
from tests.patience import PATIENCE_S
from tests.sidecar.dataplane.conftest import API, WEB, Pair, Side, StartPair
from tests.sidecar.dataplane.hostile import HANDSHAKE, KEY_UPDATE_REQUESTED, HostilePeer
from tests.sidecar.dataplane.test_attacks import App, honest_link_works, inbound_address

MARKER = b"PODLINK-MARKER-7f3a"


@pytest.fixture
async def app() -> App:
    return App()


@pytest.fixture
async def pair(start_pair: StartPair, serve: Any, app: App) -> Pair:
    return start_pair(await serve(app))


def lawful_context(forge: Forge) -> ssl.SSLContext:
    key_pem, chain_pem = forge.leaf(str(WEB), ips=["127.0.0.1"])
    return TlsMaterial(key_pem, chain_pem, forge.root_pem).client_context([ALPN])


async def hostile_peer(pair: Pair, forge: Forge, tmp_path: Path) -> HostilePeer:
    return await asyncio.to_thread(
        HostilePeer, inbound_address(pair), lawful_context(forge), tmp_path
    )


def opening(port: int) -> bytes:
    return encode(OPEN, Opening(port, b"t" * 16, b"s" * 8).encode())


async def until(true: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():
            await asyncio.sleep(0.01)


# --- where a peer may get to ------------------------------------------------------------------


@pytest.mark.attack_row(20)
@pytest.mark.parametrize("tunnel_only", [True, False])
async def test_a_peer_cannot_go_on_under_our_identity_through_an_upstream_of_ours(
    tunnel_only: bool, pair: Pair, app: App, forge: Forge
) -> None:
    """What listens on an upstream's local port dials on as us: past the policy that names the peer."""
    pair.far.plane.own_ports = OWN_PORTS | {pair.app_port}
    pair.far.plane.tunnel_only = tunnel_only
    _, writer = await asyncio.open_connection(*inbound_address(pair), ssl=lawful_context(forge))
    writer.write(opening(pair.app_port) + encode(DATA, MARKER))
    record = await pair.far.record()
    assert (record.verdict, record.reason) == ("denied", "own_port")
    writer.transport.abort()
    assert app.connections == 0
    pair.far.plane.own_ports, pair.far.plane.tunnel_only = OWN_PORTS, True
    await honest_link_works(pair)


@pytest.mark.attack_row(20)
async def test_plaintext_cannot_go_on_under_our_identity_through_an_upstream_of_ours(
    pair: Pair, app: App
) -> None:
    port = inbound_address(pair)[1]  # nothing redirects here, so this is where it "was going"
    pair.far.plane.own_ports = OWN_PORTS | {port}
    pair.far.plane.policy = PolicySet(allow_plaintext=True)
    with contextlib.suppress(ConnectionError):
        reader, writer = await asyncio.open_connection(*inbound_address(pair))
        writer.write(MARKER)
        assert await reader.read() == b""
        writer.close()
    record = await pair.far.record()
    assert (record.verdict, record.reason) == ("denied", "plaintext_denied")


@pytest.mark.attack_row(7)
@pytest.mark.parametrize("found", [EXTERNAL, Workload("u", "shop", "api-0", API, ())])
async def test_an_upstream_that_nobody_answers_to_is_not_looked_for_on_this_machine(
    found: Any, pair: Pair, app: App
) -> None:
    """To connect to "" is to connect to oneself: here the upstream's own listener, for ever."""
    pair.near.directory.entries["api.shop"] = found
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await pair.client()
            writer.write(MARKER)
            assert await reader.read() == b""
            writer.close()
    record = await pair.near.record()
    assert (record.verdict, record.reason) == ("failed", "no_endpoints")
    assert app.connections == 0
    assert not pair.near.plane.live


# --- what a peer may make us keep or do ---------------------------------------------------------


@pytest.mark.attack_row(21)
async def test_a_flood_of_pings_is_answered_by_a_few_pongs_at_most(
    pair: Pair, forge: Forge
) -> None:
    """An answer each would be a system call per four bytes, and memory if nobody reads them."""
    reader, writer = await asyncio.open_connection(
        *inbound_address(pair), ssl=lawful_context(forge)
    )
    writer.write(PING_FRAME * 100_000)
    got = 0
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(PATIENCE_S):
            while more := await reader.read(65536):
                got += len(more)
    assert got <= 4 * 100
    writer.transport.abort()
    await honest_link_works(pair)


@pytest.mark.attack_row(21)
async def test_no_more_is_kept_before_the_answer_than_a_dialler_may_send(
    pair: Pair, app: App, forge: Forge, tmp_path: Path
) -> None:
    """An app with a full queue is waited for two minutes: each of a peer's tunnels would hold what one
    read brings beyond that."""
    pair.far.plane.unsettled = True
    peer = await hostile_peer(pair, forge, tmp_path)
    peer.sock.sendall(peer.record(opening(pair.app_port)))
    await until(lambda: pair.far.plane.live)
    link: Any
    (link,) = pair.far.plane.live
    held, most = link.tunnel.user, bytes(16384 - len(END_FRAME))
    peer.sock.sendall(b"".join(peer.record(encode(DATA, most)) for _ in range(4)))
    await until(lambda: len(held.data) == 4 * len(most))
    peer.sock.sendall(b"".join(peer.record(encode(DATA, most)) for _ in range(15)))
    record = await pair.far.record()
    assert (record.close, record.reason) == ("protocol_error", "protocol_error")
    assert len(held.data) <= MAX_HELD
    peer.sock.close()
    pair.far.plane.unsettled = False
    await honest_link_works(pair)
    assert app.connections == 1


@pytest.mark.attack_row(21)
async def test_key_updates_that_ask_for_one_in_return_pile_up_nothing(
    pair: Pair, forge: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel, "MAX_OWED", 20_000)
    peer = await hostile_peer(pair, forge, tmp_path)
    await until(lambda: pair.arrivals.tunnels)
    (kept,) = pair.arrivals.tunnels
    monkeypatch.setattr(tunnel, "SPARE", 10_000)  # else the flood ends it (test_frame_floods)
    kept._tunnel.allow_again()
    for _ in range(20):
        await asyncio.to_thread(peer.sock.sendall, b"".join(peer.key_update() for _ in range(50)))
    await asyncio.sleep(0.1)
    assert not kept._tunnel.closed
    assert kept._tunnel._outgoing.pending == 0
    peer.sock.setblocking(False)
    assert peer.sock.recv(65536), "the answers have left"
    peer.sock.close()
    await honest_link_works(pair)


@pytest.mark.attack_row(22)
async def test_half_a_key_update_keeps_no_link_alive_beyond_its_end(
    pair: Pair, app: App, forge: Forge, tmp_path: Path
) -> None:
    """Within one, OpenSSL refuses to write; the RESET of a cut must not fail over that."""
    peer = await hostile_peer(pair, forge, tmp_path)
    peer.sock.sendall(peer.record(opening(pair.app_port) + encode(DATA, b"hello")))
    await until(lambda: app.got == b"hello")
    peer.sock.sendall(peer.record(KEY_UPDATE_REQUESTED[:4], HANDSHAKE))
    await asyncio.sleep(0.1)
    (kept,) = pair.arrivals.tunnels
    kept._tunnel.expires_at = monotonic() - 1
    watch = Sweep(pair.far.plane, pair.arrivals)
    watch.look()
    watch.close()
    record = await pair.far.record()
    assert record.close in ("expired", "protocol_error")
    assert not pair.far.plane.live
    assert kept._tunnel.closed
    peer.sock.close()
    await honest_link_works(pair)


@pytest.mark.attack_row(21)
async def test_half_a_key_update_ends_the_link_when_the_app_has_more_to_say(
    start_pair: StartPair, serve: Any, forge: Forge, tmp_path: Path
) -> None:
    say_more = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(5)
        await say_more.wait()
        writer.write(b"more")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    pair = start_pair(await serve(talk))
    peer = await hostile_peer(pair, forge, tmp_path)
    peer.sock.sendall(peer.record(opening(pair.app_port) + encode(DATA, b"hello")))
    await until(lambda: pair.far.plane.live)
    peer.sock.sendall(peer.record(KEY_UPDATE_REQUESTED[:4], HANDSHAKE))
    await asyncio.sleep(0.1)
    say_more.set()
    assert (await pair.far.record()).reason == "protocol_error"
    peer.sock.close()


@pytest.mark.attack_row(21)
@pytest.mark.parametrize("frames", [encode(DATA, b"before open"), encode(OPEN, b"short")])
async def test_a_peer_that_breaks_the_protocol_between_links_leaves_a_record(
    frames: bytes, pair: Pair, forge: Forge
) -> None:
    _, writer = await asyncio.open_connection(*inbound_address(pair), ssl=lawful_context(forge))
    writer.write(frames)
    record = await pair.far.record()
    assert (record.verdict, record.reason) == ("denied", "protocol_error")
    assert record.source_identity == str(WEB)
    writer.transport.abort()


# --- bytes of one link and another's ------------------------------------------------------------


class TwoApps:
    """The first connection says that it will say nothing, and reads only when told; the rest echo."""

    def __init__(self) -> None:
        self.read_now = asyncio.Event()
        self.first = b""
        self.others: list[bytes] = []
        self.count = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.count += 1
        if self.count == 1:
            writer.write_eof()
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await self.read_now.wait()
            writer.transport.resume_reading()  # type: ignore[attr-defined]
            while data := await reader.read(65536):
                self.first += data
        else:
            data = await reader.read(65536)
            self.others.append(data)
            writer.write(data)
        writer.close()


def splice_of(side: Side) -> TunnelSplice:
    (link,) = side.plane.live
    splice = link._splice  # type: ignore[attr-defined]
    assert isinstance(splice, TunnelSplice)
    return splice


def fill(splice: TunnelSplice) -> int:
    """Leave no room in the kernel towards the near side, so that the next byte has to wait."""
    size = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            size += splice.near.send(bytes(65536))
    return size


async def test_what_comes_for_the_next_link_never_reaches_the_app_of_the_last_one(
    start_pair: StartPair, serve: Any, forge: Forge
) -> None:
    """Both sides have said END, the last bytes still wait for a slow app, and the dialler uses the
    tunnel again, as it may."""
    apps = TwoApps()
    pair = start_pair(await serve(apps))
    reader, writer = await asyncio.open_connection(
        *inbound_address(pair), ssl=lawful_context(forge)
    )
    body = b"1" * 10_000
    writer.write(opening(pair.app_port))
    accept = await reader.readexactly(4 + 24)
    assert accept[0] == 2
    assert await reader.readexactly(4) == END_FRAME
    filled = fill(splice_of(pair.far))
    writer.write(encode(DATA, body) + END_FRAME + opening(pair.app_port) + encode(DATA, MARKER))
    await asyncio.sleep(0.3)
    apps.read_now.set()
    async with asyncio.timeout(PATIENCE_S):
        assert (await reader.readexactly(4 + 24))[0] == 2
        assert (await reader.readexactly(4 + len(MARKER)))[4:] == MARKER
    await until(lambda: len(apps.first) >= filled + len(body))
    assert apps.first == bytes(filled) + body
    assert apps.others == [MARKER]
    writer.transport.abort()


async def test_a_tunnel_whose_last_link_had_a_slow_reader_serves_the_next(
    start_pair: StartPair, serve: Any
) -> None:
    give_now = asyncio.Event()

    async def give(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        await give_now.wait()
        writer.write(b"here")
        writer.close()

    pair = start_pair(await serve(give))
    reader, writer = await pair.client()
    writer.write_eof()
    await until(lambda: pair.far.plane.live)
    await asyncio.sleep(0.1)
    splice = splice_of(pair.near)
    filled = fill(splice)
    splice.tunnel.pause()
    give_now.set()
    await asyncio.sleep(0.1)
    filled += fill(splice)  # the client has read some until it had enough
    splice.tunnel.resume()  # the last bytes and END come at once, and have to wait
    async with asyncio.timeout(PATIENCE_S):
        assert (await reader.read())[filled:] == b"here"
    writer.close()
    await pair.near.record()
    reader, writer = await pair.client()
    writer.write_eof()
    async with asyncio.timeout(PATIENCE_S):
        assert await reader.read() == b"here"
    writer.close()
    assert (await pair.near.record(2)).pooled


# --- what was said must be said once, and must arrive -------------------------------------------


def service(*endpoints: Endpoint) -> Service:
    ports = frozenset(port for endpoint in endpoints for port in endpoint.ports)
    return Service("shop", "api", ("10.96.0.1",), ports, endpoints)


def said_before(side: Side, first: bytes, port: int) -> socket.socket:
    """The app's end of a link to api.shop that had said `first` before its sidecar looked."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    theirs.send(first)
    OutboundLink(side.plane, ours, "127.0.0.1", 1).start_upstream("api.shop", port)
    return theirs


@pytest.mark.attack_row(48)
async def test_a_fin_on_the_way_makes_no_second_endpoint_see_the_same_bytes(
    pair: Pair, app: App, forge: Forge
) -> None:
    """Who sits between may hold ACCEPT back and send a FIN: the bytes may have been acted on."""
    key_pem, chain_pem = forge.leaf(str(API), ips=["127.0.0.2"])
    context = TlsMaterial(key_pem, chain_pem, forge.root_pem).server_context([ALPN])
    acted_on = bytearray()
    listener = socket.create_server(("127.0.0.2", inbound_address(pair)[1]))

    def serve_and_hold_back() -> None:
        sock, _ = listener.accept()
        sock.settimeout(5)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        done = False
        while MARKER not in acted_on:
            incoming.write(sock.recv(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                if not done:
                    tls.do_handshake()
                    done = True
                while True:
                    acted_on.extend(tls.read(65536))
            sock.sendall(outgoing.read())
        sock.shutdown(socket.SHUT_WR)
        sock.close()

    far = Workload("u1", "shop", "api-0", API, ("127.0.0.1",), tunnel_only=True)
    cut = Workload("u2", "shop", "api-1", API, ("127.0.0.2",), tunnel_only=True)
    ports = {pair.app_port: pair.app_port}
    pair.near.directory.entries["api.shop"] = service(
        Endpoint("127.0.0.1", ports, far), Endpoint("127.0.0.2", ports, cut)
    )
    pair.near.plane.ejections.failed("127.0.0.1", pair.app_port, monotonic())  # so the other first
    worker = asyncio.create_task(asyncio.to_thread(serve_and_hold_back))
    theirs = said_before(pair.near, MARKER, pair.app_port)
    await worker
    listener.close()
    record = await pair.near.record()
    assert (record.verdict, record.reason) == ("failed", "peer_lost")
    assert MARKER in acted_on
    assert app.got == b""
    theirs.close()


async def test_bytes_read_for_a_tunnel_are_not_lost_when_an_unmeshed_endpoint_takes_the_link(
    pair: Pair, app: App
) -> None:
    gone = Workload("u2", "shop", "api-1", API, ("127.0.0.2",), tunnel_only=True)
    plain = Workload("u3", "shop", "api-2", None, ("127.0.0.1",))
    ports = {pair.app_port: pair.app_port}
    pair.near.directory.entries["api.shop"] = service(
        Endpoint("127.0.0.1", ports, plain), Endpoint("127.0.0.2", ports, gone)
    )
    pair.near.plane.ejections.failed("127.0.0.1", pair.app_port, monotonic())
    theirs = said_before(pair.near, b"hello", pair.app_port)
    async with asyncio.timeout(PATIENCE_S):
        assert await asyncio.get_running_loop().sock_recv(theirs, 10) == b"ok"
    assert app.got == b"hello"
    theirs.close()
    record = await pair.near.record()
    assert (record.security, record.destination_identity) == ("plaintext", "")


async def test_links_that_wait_for_a_dial_do_not_hang_when_the_certificate_has_gone(
    pair: Pair, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obtain, "CERTIFICATE_WAIT_S", 0.2)
    side: Side = pair.near
    key = ("127.0.0.1", inbound_address(pair)[1], str(API))
    for _ in range(32):
        side.plane.pool.dial_began(key)
    clients = [await pair.client() for _ in range(40)]
    await until(lambda: len(side.plane.live) == 40)
    trust, side.plane.trust = side.plane.trust, None
    for _ in range(32):
        side.plane.pool.dial_ended(key)
    await side.record(40)
    assert {record.reason for record in side.records} == {"no_certificate"}
    for _, writer in clients:
        writer.close()
    side.plane.trust = trust
    await honest_link_works(pair)
