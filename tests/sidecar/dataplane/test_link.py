"""A whole link: app, dialler, tunnel, acceptor, app. Real sockets, real TLS."""

import asyncio
import hashlib
import random
import socket
import struct
from typing import Any

import pytest

from policy.rules import PolicySet
from tests.patience import PATIENCE_S
from tests.sidecar.dataplane.conftest import StartPair

Serve = Any


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def test_bytes_go_there_and_back_and_both_sides_record_one_trace(
    start_pair: StartPair, serve: Serve
) -> None:
    pair = start_pair(await serve(echo))
    reader, writer = await pair.client()
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    near, far = await pair.near.record(), await pair.far.record()
    assert (near.verdict, near.security, near.close) == ("allowed", "mtls", "fin")
    assert (far.verdict, far.security, far.close) == ("allowed", "mtls", "fin")
    assert far.trace_id == near.trace_id
    assert far.parent_span_id == near.span_id != far.span_id
    assert near.destination_identity == far.destination_identity == str(pair_identity("api"))
    assert near.source_identity == far.source_identity == str(pair_identity("web"))
    assert near.bytes_sent == near.bytes_received == far.bytes_sent == far.bytes_received == 5
    assert near.direct is far.direct is True


def pair_identity(name: str) -> str:
    return f"spiffe://cluster.local/ns/shop/sa/{name}"


async def test_a_second_link_takes_the_idle_tunnel(start_pair: StartPair, serve: Serve) -> None:
    pair = start_pair(await serve(echo))
    for n in range(5):
        reader, writer = await pair.client()
        writer.write(b"%d" % n)
        assert await reader.readexactly(1) == b"%d" % n
        writer.close()
        await pair.near.record(n + 1)
        await pair.far.record(n + 1)
    assert [r.pooled for r in pair.near.records] == [False, True, True, True, True]
    assert len(pair.near.plane.pool) == 1


async def test_a_server_that_speaks_first_is_heard_at_once(
    start_pair: StartPair, serve: Serve
) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\r\n")
        await reader.read(1)
        writer.close()

    pair = start_pair(await serve(greet))
    reader, writer = await pair.client()
    async with asyncio.timeout(PATIENCE_S):
        assert await reader.readline() == b"220 ready\r\n"
    writer.close()
    await pair.near.record()


async def test_a_client_may_half_close_and_then_read_ten_megabytes(
    start_pair: StartPair, serve: Serve
) -> None:
    body = random.Random(7).randbytes(10_000_000)

    async def after_eof(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.read()
        assert asked == b"give"
        writer.write(body)
        await writer.drain()
        writer.close()

    pair = start_pair(await serve(after_eof))
    reader, writer = await pair.client()
    writer.write(b"give")
    writer.write_eof()
    got = await reader.read()
    writer.close()
    assert hashlib.sha256(got).digest() == hashlib.sha256(body).digest()
    assert (await pair.far.record()).bytes_received == len(body)


async def test_many_links_at_once_with_random_sizes_are_byte_exact(
    start_pair: StartPair, serve: Serve
) -> None:
    pair = start_pair(await serve(echo))

    async def one(seed: int) -> None:
        draw = random.Random(seed)
        body = draw.randbytes(draw.choice([0, 1, 3, 1000, 16384, 65536, 300_000]))
        reader, writer = await pair.client()
        at = 0

        async def send() -> None:
            nonlocal at
            while at < len(body):
                step = draw.randrange(1, 70_000)
                writer.write(body[at : at + step])
                at += step
                await writer.drain()
            writer.write_eof()

        got, _ = await asyncio.gather(reader.read(), send())
        writer.close()
        assert got == body

    await asyncio.gather(*(one(seed) for seed in range(200)))
    await pair.near.record(200)
    assert {r.close for r in pair.near.records} == {"fin"}
    assert not pair.near.plane.live
    assert not pair.far.plane.live


async def test_a_refused_app_port_ends_in_a_reset_and_a_reason(
    start_pair: StartPair,
) -> None:
    pair = start_pair(1)  # nothing listens on port 1
    reader, writer = await pair.client()
    with pytest.raises(ConnectionResetError):
        writer.write(b"x")
        await reader.readexactly(1)
    writer.close()
    near, far = await pair.near.record(), await pair.far.record()
    assert (near.verdict, near.reason) == ("failed", "app_unreachable")
    assert (far.verdict, far.reason) == ("failed", "app_unreachable")
    assert len(pair.near.plane.pool) == 1, "the tunnel stays usable after REFUSE"


async def test_a_denied_link_is_reset_and_never_reaches_the_app(
    start_pair: StartPair, serve: Serve
) -> None:
    reached: list[int] = []

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.append(1)
        writer.close()

    pair = start_pair(await serve(app))
    pair.far.plane.policy = PolicySet(mesh_default="deny")
    reader, writer = await pair.client()
    with pytest.raises(ConnectionResetError):
        writer.write(b"secret")
        await reader.readexactly(1)
    writer.close()
    near, far = await pair.near.record(), await pair.far.record()
    assert (near.verdict, near.reason) == ("denied", "policy_denied")
    assert (far.verdict, far.reason) == ("denied", "policy_denied")
    assert not reached


async def test_a_client_reset_becomes_a_reset_at_the_app(
    start_pair: StartPair, serve: Serve
) -> None:
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(10):
                pass
            seen.put_nowait("fin")
        except ConnectionResetError:
            seen.put_nowait("reset")
        writer.close()

    pair = start_pair(await serve(app))
    _, writer = await pair.client()
    writer.write(b"x")
    await asyncio.sleep(0.1)
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    async with asyncio.timeout(PATIENCE_S):
        assert await seen.get() == "reset"
    assert (await pair.near.record()).close == "reset"
    assert (await pair.far.record()).close == "reset"


async def test_a_slow_reader_stops_the_writer_and_loses_nothing(
    start_pair: StartPair, serve: Serve
) -> None:
    body = random.Random(3).randbytes(48_000_000)  # the kernels of the three hops keep up to 20 MB
    go_on = asyncio.Event()
    got: list[bytes] = []

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        got.append(await reader.read())
        writer.close()

    pair = start_pair(await serve(slow))
    reader, writer = await pair.client()
    writer.write(body)
    await asyncio.sleep(0.5)
    (link,) = pair.near.plane.live
    stuck_at, _ = link.moved
    assert stuck_at < len(body) / 2, "the sender was not stopped"
    go_on.set()
    await writer.drain()
    writer.write_eof()
    await reader.read()
    writer.close()
    assert got[0] == body
