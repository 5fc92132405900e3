"""The health port, asked by real sockets, politely and not."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from kit.buckets import Buckets
from sidecar import health, pages
from sidecar.health import HealthServer, check
from tests.patience import PATIENCE_S


@pytest.fixture
async def port(unused_tcp_port: int) -> AsyncIterator[int]:
    server = HealthServer()
    server.routes.add("/livez", check(lambda: (True, "ok\n")))
    server.routes.add("/readyz", check(lambda: (False, "no certificate\n")))
    await server.start(unused_tcp_port)
    yield unused_tcp_port
    await server.close()


async def answer(port: int, request: bytes, host: str = "127.0.0.1") -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    got = b""
    with contextlib.suppress(ConnectionError):
        writer.write(request)
        got = await asyncio.wait_for(reader.read(), PATIENCE_S)
    writer.close()
    return got


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_well_is_200_and_not_well_is_503_with_the_reason(host: str, port: int) -> None:
    well = await answer(port, get("/livez"), host)
    assert well.startswith(b"HTTP/1.1 200 OK\r\n")
    assert well.endswith(b"\r\n\r\nok\n")
    ill = await answer(port, get("/readyz?verbose"), host)
    assert ill.startswith(b"HTTP/1.1 503 ")
    assert ill.endswith(b"Content-Length: 15\r\nConnection: close\r\n\r\nno certificate\n")


@pytest.mark.attack_row(32)
@pytest.mark.parametrize(
    "request_", [get("/"), get("/debug"), get("/livez/../etc"), b"POST /livez HTTP/1.1\r\n\r\n"]
)
async def test_nothing_else_is_served(request_: bytes, port: int) -> None:
    assert (await answer(port, request_)).startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize(
    "junk",
    [b"\r\n\r\n", b"\x16\x03\x01\x00\x05hello\r\n\r\n", b"GET\r\n\r\n", b"\xff" * 50 + b"\r\n\r\n"],
)
async def test_garbage_is_answered_with_404_and_hurts_nobody(junk: bytes, port: int) -> None:
    assert (await answer(port, junk)).startswith(b"HTTP/1.1 404 ")
    assert (await answer(port, get("/livez"))).startswith(b"HTTP/1.1 200 ")


async def test_an_endless_head_is_cut_off_without_an_answer(port: int) -> None:
    assert await answer(port, b"GET /livez HTTP/1.1\r\nX: " + b"a" * 500_000) == b""
    assert (await answer(port, get("/livez"))).startswith(b"HTTP/1.1 200 ")


async def test_a_slow_request_ends_at_its_deadline_and_holds_nobody_up(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "TIMEOUT_S", 0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /livez")
    assert (await answer(port, get("/livez"))).startswith(b"HTTP/1.1 200 ")
    assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
    writer.close()


@pytest.mark.attack_row(24)
async def test_an_answer_that_nobody_reads_is_dropped(
    unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "TIMEOUT_S", 0.2)
    size, server = 64 << 20, HealthServer()

    async def large(_: pages.Request) -> pages.Answer:
        return pages.Answer(b"x" * size)

    server.routes.add("/large", large)
    await server.start(unused_tcp_port)
    reader, writer = await asyncio.open_connection("127.0.0.1", unused_tcp_port, limit=1 << 10)
    writer.write(get("/large"))
    await asyncio.sleep(1.0)  # two limits of 0.2 s: one for the sending, one for the rest
    got = 0
    with contextlib.suppress(ConnectionError):
        while some := await asyncio.wait_for(reader.read(1 << 20), PATIENCE_S):
            got += len(some)
    assert 0 < got < size
    writer.close()
    await server.close()


async def test_a_head_in_pieces_is_one_request(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for byte in get("/livez"):
        writer.write(bytes((byte,)))
        await writer.drain()
    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()


@pytest.mark.attack_row(24)
async def test_one_address_can_neither_fill_the_port_nor_ask_without_end(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PER_SOURCE", 3)
    silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
    assert (await answer(port, get("/livez"), "::1")).startswith(b"HTTP/1.1 200 "), "another one"
    assert await answer(port, get("/livez")) == b""
    for _, writer in silent:
        writer.close()
    async with asyncio.timeout(PATIENCE_S):
        while not (await answer(port, get("/livez"))).startswith(b"HTTP/1.1 200 "):
            await asyncio.sleep(0.01)
    monkeypatch.setattr(health, "IN_ALL", 0)
    assert await answer(port, get("/livez")) == b""


@pytest.mark.attack_row(24)
async def test_questions_of_one_address_have_a_rate(unused_tcp_port: int) -> None:
    server = HealthServer(Buckets(0.0, 2.0))
    server.routes.add("/livez", check(lambda: (True, "ok\n")))
    await server.start(unused_tcp_port)
    for host in ("127.0.0.1", "::1"):
        got = [await answer(unused_tcp_port, get("/livez"), host) for _ in range(3)]
        assert [bool(each) for each in got] == [True, True, False]
    await server.close()
