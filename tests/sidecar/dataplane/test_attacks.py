"""Attacks on the data plane over real sockets: each with a positive control beside it.

Every case asserts that the app got no byte, that the record names a reason, and that the sidecar
goes on serving honest peers.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from certs.trust.contexts import TlsMaterial
from kit.contract import ALPN, OWN_PORTS
from sidecar.dataplane.links import arrival
from sidecar.wire.frames import DATA, OPEN, encode
from sidecar.wire.opening import Opening
from tests.certs.bad_leaves import recipes
from tests.certs.forge import Forge
from tests.patience import PATIENCE_S
from tests.sidecar.dataplane.conftest import API, WEB, Pair, StartPair

MARKER = b"PODLINK-MARKER-7f3a"
UNTRUSTED = (
    "unknown root",
    "root of the same name with another key",
    "leaf signed by a leaf",
    "leaf signed by a leaf with keyCertSign",
    "self-signed",
)
# OpenSSL will not even load a leaf with an extension twice, so an attacker would need a TLS stack of
# his own; tests/certs/trust/test_svid.py gives those to the validator as bytes.
SHOWABLE = sorted(name for name in (*recipes(Forge()), *UNTRUSTED) if not name.endswith("twice"))
ROWS = [pytest.mark.attack_row(n) for n in (8, 9, 10, 11, 12, 13, 14, 15)]


def every_row(test: Any) -> Any:
    for mark in ROWS:
        test = mark(test)
    return test


class App:
    """The app behind the far sidecar: counts what reaches it, and answers `ok`."""

    def __init__(self) -> None:
        self.got = b""
        self.connections = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                self.got += data
                writer.write(b"ok")
        writer.close()


@pytest.fixture
async def app() -> App:
    return App()


@pytest.fixture
async def pair(start_pair: StartPair, serve: Any, app: App) -> AsyncIterator[Pair]:
    yield start_pair(await serve(app))


def inbound_address(pair: Pair) -> tuple[str, int]:
    return "127.0.0.1", pair.near.plane.tunnel_port


async def honest_link_works(pair: Pair) -> None:
    """The positive control."""
    reader, writer = await pair.client()
    writer.write(b"hello")
    async with asyncio.timeout(PATIENCE_S):
        assert await reader.readexactly(2) == b"ok"
    writer.close()


def attacker_context(
    tmp_path: Path, purpose: int, key_pem: bytes, chain_pem: bytes, alpn: str | None = ALPN
) -> ssl.SSLContext:
    """Stock OpenSSL with the forged leaf and no checks of its own."""
    context = ssl.SSLContext(purpose)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn is not None:
        context.set_alpn_protocols([alpn])
    file = tmp_path / "forged.pem"
    file.write_bytes(key_pem + chain_pem)
    context.load_cert_chain(file)
    return context


async def dial_and_open(pair: Pair, context: ssl.SSLContext) -> bytes:
    """As the attacker: handshake, OPEN, DATA; returns what came back before the end."""
    opening = Opening(pair.app_port, b"t" * 16, b"s" * 8)
    got = b""
    with contextlib.suppress(OSError, ssl.SSLError, TimeoutError, asyncio.IncompleteReadError):
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection(*inbound_address(pair), ssl=context)
            writer.write(encode(OPEN, opening.encode()) + encode(DATA, MARKER))
            got = await reader.read(100)
            writer.transport.abort()
    return got


@every_row
@pytest.mark.parametrize("name", SHOWABLE)
async def test_a_forged_leaf_as_client_reaches_no_app(
    name: str, forge: Forge, pair: Pair, app: App, tmp_path: Path
) -> None:
    leaf = forge.untrusted_chains()[name] if name in UNTRUSTED else forge.bad_leaf(name)
    context = attacker_context(tmp_path, ssl.PROTOCOL_TLS_CLIENT, leaf.key_pem, leaf.chain_pem)
    assert await dial_and_open(pair, context) == b""
    record = await pair.far.record()
    assert record.verdict == "denied"
    assert record.reason in ("peer_untrusted", "handshake_failed")
    assert app.connections == 0
    await honest_link_works(pair)
    assert MARKER not in app.got


@every_row
@pytest.mark.attack_row(19)
@pytest.mark.parametrize("name", SHOWABLE)
async def test_a_forged_leaf_as_server_gets_no_byte_of_the_app(
    name: str, forge: Forge, pair: Pair, tmp_path: Path
) -> None:
    leaf = forge.untrusted_chains()[name] if name in UNTRUSTED else forge.bad_leaf(name)
    context = attacker_context(tmp_path, ssl.PROTOCOL_TLS_SERVER, leaf.key_pem, leaf.chain_pem)
    stolen = App()
    server = await asyncio.start_server(stolen, "127.0.0.1", 0, ssl=context)
    honest = inbound_address(pair)[1]
    pair.near.plane.tunnel_port = server.sockets[0].getsockname()[1]
    reader, writer = await pair.client()
    with contextlib.suppress(ConnectionError):
        writer.write(MARKER)
        assert await reader.read() == b""
    writer.close()
    record = await pair.near.record()
    assert record.verdict == "failed"
    assert record.reason in ("peer_untrusted", "handshake_failed")
    server.close()
    assert stolen.got == b""
    pair.near.plane.tunnel_port = honest
    pair.near.plane.ejections.worked("127.0.0.1", pair.app_port)
    await honest_link_works(pair)


@pytest.mark.attack_row(19)
@pytest.mark.parametrize(
    ("identity", "ips"),
    [
        ("spiffe://cluster.local/ns/shop/sa/web", ["127.0.0.1"]),
        (str(API), ["10.0.0.99"]),
        (str(API), []),
    ],
    ids=["another identity", "another pod's address", "no address"],
)
async def test_a_valid_leaf_of_somebody_else_at_this_address_gets_no_byte(
    identity: str,
    ips: list[str],
    pair: Pair,
    forge: Forge,
    tmp_path: Path,
) -> None:
    leaf = forge.leaf(identity, ips=ips)
    context = attacker_context(tmp_path, ssl.PROTOCOL_TLS_SERVER, leaf.key_pem, leaf.chain_pem)
    stolen = App()
    server = await asyncio.start_server(stolen, "127.0.0.1", 0, ssl=context)
    pair.near.plane.tunnel_port = server.sockets[0].getsockname()[1]
    reader, writer = await pair.client()
    with contextlib.suppress(ConnectionError):
        writer.write(MARKER)
        assert await reader.read() == b""
    writer.close()
    record = await pair.near.record()
    assert (record.verdict, record.reason) == ("failed", "identity_mismatch")
    assert pair.near.plane.ejections.out("127.0.0.1", pair.app_port, pair.near.plane.now())
    server.close()
    assert stolen.got == b""


@pytest.mark.attack_row(1)
@pytest.mark.parametrize(
    "first", [MARKER, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + MARKER, b"\x16\x03\x01" + MARKER]
)
async def test_plaintext_reaches_no_app(first: bytes, pair: Pair, app: App) -> None:
    reader, writer = await asyncio.open_connection(*inbound_address(pair))
    writer.write(first)
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()
    record = await pair.far.record()
    assert record.verdict == "denied"
    assert record.reason == "plaintext_denied"
    assert app.connections == 0
    await honest_link_works(pair)


def tls_attack(**settings: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for name, value in settings.items():
        setattr(context, name, value)
    return context


@pytest.mark.attack_row(2)
async def test_tls_without_a_certificate_reaches_no_app(pair: Pair, app: App) -> None:
    context = tls_attack()
    context.set_alpn_protocols([ALPN])
    assert await dial_and_open(pair, context) == b""
    record = await pair.far.record()
    assert record.reason == "handshake_failed"
    assert "no certificate" in record.error
    assert app.connections == 0


@pytest.mark.attack_row(4)
@pytest.mark.parametrize("alpn", [None, "h2", "podlink/3"])
async def test_another_alpn_is_not_a_peer_even_with_a_good_leaf(
    alpn: str | None, pair: Pair, app: App, forge: Forge, tmp_path: Path
) -> None:
    leaf = forge.leaf(str(WEB), ips=["127.0.0.1"])
    context = attacker_context(
        tmp_path, ssl.PROTOCOL_TLS_CLIENT, leaf.key_pem, leaf.chain_pem, alpn
    )
    assert await dial_and_open(pair, context) == b""
    assert (await pair.far.record()).reason == "plaintext_denied"
    assert app.connections == 0


@pytest.mark.attack_row(4)
async def test_tls_1_2_is_refused_even_with_a_good_leaf(
    pair: Pair, app: App, forge: Forge, tmp_path: Path
) -> None:
    leaf = forge.leaf(str(WEB), ips=["127.0.0.1"])
    context = attacker_context(tmp_path, ssl.PROTOCOL_TLS_CLIENT, leaf.key_pem, leaf.chain_pem)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert await dial_and_open(pair, context) == b""
    record = await pair.far.record()
    assert record.reason == "handshake_failed"
    assert app.connections == 0


@pytest.mark.attack_row(4)
async def test_the_alpn_of_the_handshake_is_checked_not_only_that_of_the_first_bytes(
    pair: Pair, forge: Forge
) -> None:
    """The dialler's side has no first bytes to judge: a server without ALPN must be refused."""
    key_pem, chain_pem = forge.leaf(str(API), ips=["127.0.0.1"])
    context = TlsMaterial(key_pem, chain_pem, forge.root_pem).server_context()
    stolen = App()
    server = await asyncio.start_server(stolen, "127.0.0.1", 0, ssl=context)
    pair.near.plane.tunnel_port = server.sockets[0].getsockname()[1]
    reader, writer = await pair.client()
    with contextlib.suppress(ConnectionError):
        writer.write(MARKER)
        assert await reader.read() == b""
    writer.close()
    assert (await pair.near.record()).reason == "alpn_mismatch"
    server.close()
    assert stolen.got == b""


@pytest.mark.attack_row(5)
async def test_bytes_before_a_handshake_that_never_comes_reach_no_app(pair: Pair, app: App) -> None:
    """The shape of CVE-2023-40217: data, then a close, before any handshake."""
    for n in range(300):
        with socket.create_connection(inbound_address(pair)) as sock:
            sock.send(MARKER)
            if n % 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if n % 50 == 0:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    assert app.connections == 0
    await honest_link_works(pair)
    assert app.got == b"hello"


@pytest.mark.attack_row(7)
@pytest.mark.attack_row(20)
@pytest.mark.parametrize("port", sorted(OWN_PORTS))
async def test_an_open_for_one_of_our_own_ports_is_refused(
    port: int, pair: Pair, app: App, forge: Forge, tmp_path: Path
) -> None:
    leaf = forge.leaf(str(WEB), ips=["127.0.0.1"])
    context = attacker_context(tmp_path, ssl.PROTOCOL_TLS_CLIENT, leaf.key_pem, leaf.chain_pem)
    pair.app_port = port
    answer = await dial_and_open(pair, context)
    assert answer[:1] != bytes((2,)), "not ACCEPT"
    record = await pair.far.record()
    assert (record.verdict, record.reason) == ("denied", "own_port")


@pytest.mark.attack_row(20)
async def test_a_redirected_tunnel_reaches_only_the_port_it_was_dialled_for(
    pair: Pair, app: App, forge: Forge, tmp_path: Path
) -> None:
    pair.far.plane.tunnel_only = False  # as in redirect mode: the connection's own port counts
    leaf = forge.leaf(str(WEB), ips=["127.0.0.1"])
    context = attacker_context(tmp_path, ssl.PROTOCOL_TLS_CLIENT, leaf.key_pem, leaf.chain_pem)
    await dial_and_open(pair, context)
    record = await pair.far.record()
    assert (record.verdict, record.reason) == ("denied", "own_port")
    assert app.connections == 0


@pytest.mark.attack_row(21)
@pytest.mark.parametrize(
    "frames",
    [
        encode(DATA, b"before open"),
        bytes((99, 0, 0, 0)),
        bytes((OPEN, 0xFF, 0xFF, 0xFF)),
        encode(OPEN, b"short"),
        encode(OPEN, Opening(1, b"t" * 16, b"s" * 8).encode()) * 2,
    ],
    ids=["data first", "unknown kind", "giant length", "malformed open", "open twice"],
)
async def test_a_peer_that_breaks_the_protocol_loses_its_tunnel(
    frames: bytes, pair: Pair, app: App, forge: Forge, tmp_path: Path
) -> None:
    leaf = forge.leaf(str(WEB), ips=["127.0.0.1"])
    context = attacker_context(tmp_path, ssl.PROTOCOL_TLS_CLIENT, leaf.key_pem, leaf.chain_pem)
    with contextlib.suppress(OSError):
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection(*inbound_address(pair), ssl=context)
            writer.write(frames)
            while await reader.read(100):
                pass
            writer.close()
    assert not pair.arrivals.tunnels
    assert app.connections == 0
    await honest_link_works(pair)


@pytest.mark.attack_row(24)
async def test_strangers_that_say_nothing_are_bounded_and_a_good_client_is_served(
    pair: Pair, app: App
) -> None:
    quiet = []
    for _ in range(pair.far.plane.limits.strangers_per_source + 50):
        sock = socket.socket()
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect(inbound_address(pair))
        quiet.append(sock)
    await asyncio.sleep(0.2)
    assert pair.far.plane.turned_away == {"strangers_per_source": 50}
    # The honest peer comes from another address of loopback, as it would from another pod.
    reader, writer = await asyncio.open_connection(
        *inbound_address(pair), local_addr=("127.0.0.2", 0)
    )
    writer.write(b"GET")
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    assert (await pair.far.record()).reason == "plaintext_denied"
    writer.close()
    for sock in quiet:
        sock.close()
    await asyncio.sleep(0.1)
    await honest_link_works(pair)


@pytest.mark.attack_row(24)
@pytest.mark.parametrize("each", [4, 1])
async def test_strangers_from_everywhere_give_way_to_who_comes_now(
    pair: Pair, app: App, each: int
) -> None:
    """One limit for each address holds nobody back who has many: together they would take every place
    until their time is up, and start over."""
    plane = pair.far.plane
    plane.limits = replace(plane.limits, strangers=16, strangers_per_source=4)
    hello, quiet = client_hello(), []
    for number in range(32):
        sock = socket.create_connection(
            inbound_address(pair), 1, source_address=(f"127.0.3.{1 + number // each}", 0)
        )
        if number % 2:
            sock.sendall(hello)  # and never the second flight
        quiet.append(sock)
    await asyncio.sleep(0.1)
    assert pair.arrivals.strangers == 16
    assert plane.turned_away == {"strangers": 16}
    await honest_link_works(pair)
    for sock in quiet:
        sock.close()
    await asyncio.sleep(0.1)
    assert pair.arrivals.strangers == 0


def client_hello() -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([ALPN])
    out = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out).do_handshake()
    return out.read()


@pytest.mark.attack_row(23)
async def test_a_network_outside_the_cluster_is_one_source_however_many_addresses_it_has(
    pair: Pair,
) -> None:
    """A host has a /64 of IPv6 at least (RFC 6177); a pod has the addresses that the cluster gave it."""
    plane = pair.far.plane
    plane.cluster_networks = (ip_network("fd00::/16"), ip_network("10.0.0.0/8"))
    assert plane.source_of("2001:db8::1") == plane.source_of("2001:db8::dead:beef")
    assert plane.source_of("2001:db8::1") != plane.source_of("2001:db8:0:1::1")
    assert plane.source_of("fd00::1") != plane.source_of("fd00::2")
    assert plane.source_of("192.0.2.1") != plane.source_of("192.0.2.2")


@pytest.mark.attack_row(24)
async def test_a_handshake_that_trickles_ends_at_its_deadline(
    pair: Pair, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival, "TIMEOUT_S", 0.3)
    reader, writer = await asyncio.open_connection(*inbound_address(pair))
    sent = 0
    with contextlib.suppress(ConnectionError):
        for byte in b"\x16\x03\x01\x02\x00\x01" * 10:
            sent += 1
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(0.05)
            if reader.at_eof():
                break
        await reader.read()
    assert sent < 60, "no byte starts the deadline anew"
    assert (await pair.far.record()).reason == "handshake_timeout"
    writer.close()
