"""Faults under load: storms, slow readers, drains, swaps of certificates. What is counted is what stays:
descriptors, memory, records."""

import asyncio
import contextlib
import random
import socket
from pathlib import Path
from typing import Any

import pytest

from sidecar.dataplane.links.outbound import OutboundLink
from sidecar.dataplane.links.splice import MAX_READ
from sidecar.dataplane.tunnels.tunnel import MAX_CHUNK
from sidecar.wire.opening import SHUTDOWN
from tests.certs.forge import Forge
from tests.patience import PATIENCE_S
from tests.sidecar.dataplane.conftest import API, WEB, Pair, StartPair, connected, trust_from
from tests.sidecar.dataplane.test_link import echo

Serve = Any
RESET = b"\x01\x00\x00\x00\x00\x00\x00\x00"


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def settled(pair: Pair) -> None:
    """Until no link lives on either side."""
    async with asyncio.timeout(PATIENCE_S):
        while pair.near.plane.live or pair.far.plane.live:
            await asyncio.sleep(0.02)


async def round_trip(pair: Pair, body: bytes = b"hello") -> bytes:
    reader, writer = await connected(pair.upstream, body)
    writer.write_eof()
    got = await reader.read()
    writer.close()
    return got


async def test_a_thousand_connections_opened_and_closed_at_once_all_succeed(
    start_pair: StartPair, serve: Serve
) -> None:
    pair = start_pair(await serve(echo))
    before = descriptors()
    got = await asyncio.gather(*(round_trip(pair, b"%d" % n) for n in range(1000)))
    assert got == [b"%d" % n for n in range(1000)]
    await settled(pair)
    assert [r.close for r in pair.near.records] == ["fin"] * 1000
    assert [r.verdict for r in pair.far.records] == ["allowed"] * 1000
    pair.near.plane.pool.drop_all()
    await asyncio.sleep(0.3)
    assert descriptors() <= before + 2


@pytest.mark.fault_row("rst-storm")
async def test_a_storm_of_resets_leaves_no_descriptor_and_no_link(
    start_pair: StartPair, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while await reader.read(1000):
                pass
        writer.close()

    pair = start_pair(await serve(swallow))
    before, draw = descriptors(), random.Random(5)
    for _ in range(40):
        burst = [socket.create_connection(pair.upstream) for _ in range(50)]
        for sock in burst:
            # Each reset costs a tunnel: the far side's limit on handshakes may turn some away.
            with contextlib.suppress(ConnectionError):
                sock.send(b"x" * draw.choice([1, 1000, 60_000]))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            if draw.random() < 0.5:
                await asyncio.sleep(0)
            sock.close()
        await asyncio.sleep(0.01)
    await settled(pair)
    pair.near.plane.pool.drop_all()
    async with asyncio.timeout(PATIENCE_S):
        while descriptors() > before:
            await asyncio.sleep(0.05)
    assert len(pair.near.records) == 2000
    assert not pair.near.plane.open_links
    assert not [r for r in caplog.records if r.name != "asyncio"]


@pytest.mark.fault_row("slow-reader")
async def test_a_reader_that_stops_costs_a_bounded_amount_of_memory_in_both_directions(
    start_pair: StartPair, serve: Serve
) -> None:
    body = bytes(30_000_000)
    go_on = asyncio.Event()

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(body)
        await go_on.wait()
        writer.transport.abort()

    pair = start_pair(await serve(flood))
    sock = socket.create_connection(pair.upstream)  # reads nothing
    await asyncio.sleep(1.0)
    (near,), (far,) = pair.near.plane.live, pair.far.plane.live
    assert isinstance(near, OutboundLink)
    splice: Any = near._splice
    assert len(splice._backlog or b"") <= 2 * MAX_CHUNK
    tunnel: Any = far.tunnel
    unsent = len(tunnel._backlog or b"") + tunnel._outgoing.pending
    assert 0 < unsent <= 2 * MAX_READ
    assert far.moved[1] < len(body), "the app was not stopped"
    sock.close()
    go_on.set()
    await settled(pair)


@pytest.mark.fault_row("slow-reader")
async def test_a_tunnel_whose_link_ended_slowly_serves_the_next_one(
    start_pair: StartPair, serve: Serve
) -> None:
    """The client has ended, the answer and its END wait in our backlog, then all goes at once."""
    body = bytes(4_000_000)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.read()
        writer.write(body if asked == b"much" else b"ok")
        writer.close()

    pair = start_pair(await serve(answer))
    for _ in range(5):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 200_000)
        sock.connect(pair.upstream)
        sock.sendall(b"much")
        reader, writer = await asyncio.open_connection(sock=sock, limit=1000)
        writer.write_eof()
        await asyncio.sleep(0.1)
        assert len(await reader.read()) == len(body)
        writer.close()
        await settled(pair)
        assert await asyncio.wait_for(round_trip(pair), PATIENCE_S) == b"ok"


@pytest.mark.fault_row("half-close")
@pytest.mark.parametrize("size", [0, 1, 10_000_000])
async def test_the_server_may_end_first_and_still_read_to_the_end(
    size: int, start_pair: StartPair, serve: Serve
) -> None:
    got: asyncio.Queue[int] = asyncio.Queue()

    async def ends_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        got.put_nowait(len(await reader.read()))
        writer.close()

    pair = start_pair(await serve(ends_first))
    reader, writer = await pair.client()
    assert await reader.read() == b""
    writer.write(bytes(size))
    writer.write_eof()
    assert await asyncio.wait_for(got.get(), PATIENCE_S) == size
    writer.close()
    await settled(pair)
    assert (await pair.near.record()).close == "fin"


@pytest.mark.fault_row("drain")
async def test_a_draining_pod_takes_no_new_link_and_lets_those_that_run_end(
    start_pair: StartPair, serve: Serve
) -> None:
    pair = start_pair(await serve(echo))
    assert await round_trip(pair) == b"hello"
    reader, writer = await pair.client()
    writer.write(b"one")
    assert await reader.readexactly(3) == b"one"
    assert await round_trip(pair) == b"hello"  # leaves an idle tunnel beside the busy one
    pair.far.plane.draining = True
    pair.arrivals.go_away()
    await asyncio.sleep(0.1)
    assert len(pair.near.plane.pool) == 0, "GOAWAY closes idle tunnels"
    with contextlib.suppress(ConnectionResetError):
        assert await round_trip(pair) == b""
    refused = await pair.near.record(3)
    assert (refused.verdict, refused.error) == ("failed", "the peer refused the link: draining")
    writer.write(b"two")
    assert await reader.readexactly(3) == b"two"
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    await settled(pair)
    assert pair.near.records[-1].close == "fin"
    assert len(pair.near.plane.pool) <= 1, "the tunnel that was told to go is not kept"


@pytest.mark.fault_row("drain")
async def test_what_has_not_ended_in_time_is_reset_on_both_sides(
    start_pair: StartPair, serve: Serve
) -> None:
    pair = start_pair(await serve(_patient))
    reader, writer = await connected(pair.upstream, b"hello")
    assert await reader.readexactly(5) == b"hello"
    for link in list(pair.far.plane.live):
        link.cut(SHUTDOWN, "drain")
    with pytest.raises(ConnectionResetError):
        await reader.readexactly(1)
    writer.close()
    assert ((await pair.near.record()).close, (await pair.far.record()).close) == ("drain", "drain")


async def _patient(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        await echo(reader, writer)
    writer.close()


@pytest.mark.fault_row("root-rotation")
async def test_certificates_are_swapped_while_links_run_and_none_fails(
    start_pair: StartPair, serve: Serve, forge: Forge
) -> None:
    pair = start_pair(await serve(echo))
    reader, writer = await pair.client()
    serials = set()
    for turn in range(5):
        writer.write(b"still")
        assert await reader.readexactly(5) == b"still"
        assert await round_trip(pair) == b"hello"
        serials.add(pair.near.records[-1].peer_serial)
        pair.near.plane.trust = trust_from(forge, WEB, "127.0.0.1")
        pair.far.plane.trust = trust_from(forge, API, "127.0.0.1")
        if turn % 2:
            pair.near.plane.pool.drop_all()
    writer.close()
    await settled(pair)
    assert {r.close for r in pair.near.records} == {"fin"}
    assert len(serials) > 1, "new tunnels show the new leaf"


@pytest.mark.fault_row("half-open")
async def test_a_tunnel_notices_a_peer_that_vanished_by_keepalive(
    start_pair: StartPair, serve: Serve
) -> None:
    pair = start_pair(await serve(echo))
    assert await round_trip(pair) == b"hello"
    (idle,) = pair.near.plane.pool._by_age
    (theirs,) = pair.arrivals.tunnels
    for sock in (idle._sock, theirs._tunnel._sock):
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        probes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)
        every_s = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
        idle_s = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        assert idle_s + probes * every_s <= 30
        # By it Linux would end a link whose reader merely takes its time.
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0


@pytest.mark.fault_row("rst-storm")
async def test_a_reset_right_behind_the_data_is_never_told_as_an_end(
    start_pair: StartPair, serve: Serve
) -> None:
    """The kernel tells of a reset once: to look whether an end follows must not swallow it, or what was
    cut short would look whole to the app."""
    ended: asyncio.Queue[str] = asyncio.Queue()

    async def watches(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"+")
        try:
            await reader.read()
            ended.put_nowait("fin")
        except ConnectionResetError:
            ended.put_nowait("reset")
        writer.close()

    pair = start_pair(await serve(watches))
    sock = socket.create_connection(pair.upstream)
    sock.setblocking(False)
    assert await asyncio.get_running_loop().sock_recv(sock, 1) == b"+"
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.send(b"half of it")
    sock.close()  # before anybody has read that
    assert await asyncio.wait_for(ended.get(), PATIENCE_S) == "reset"
    await settled(pair)
    assert (pair.near.records[0].close, pair.far.records[0].close) == ("reset", "reset")
