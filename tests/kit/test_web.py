"""What one address may hold of an HTTP port: real sockets, real TLS."""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from kit.web import BoundedServer, Bounds
from tests.certs.forge import Forge
from tests.patience import PATIENCE_S

QUICK = Bounds(per_source=8, in_all=12, head_within_s=0.2, request_within_s=0.4, idle_s=0.3)
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def serving(
    bounds: Bounds = QUICK, context: ssl.SSLContext | None = None, host: str | None = "127.0.0.1"
) -> AsyncIterator[BoundedServer]:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=str(len(await request.read())))

    async def never(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        raise AssertionError

    async def large(_: web.Request) -> web.Response:
        return web.Response(body=b"x" * (64 << 20))

    app = web.Application()
    app.add_routes([web.get("/", answer), web.post("/", answer), web.get("/never", never)])
    app.add_routes([web.get("/large", large)])
    server = BoundedServer(app, bounds, shutdown_timeout_s=0.1)
    await server.listen(host, 0, context)
    try:
        yield server
    finally:
        await server.close()
        assert server.connections == 0


class Caller:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, request: bytes = GET) -> bytes:
        self.writer.write(request)
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""

    async def ended(self) -> bool:
        try:
            async with asyncio.timeout(PATIENCE_S):
                while await self.reader.read(1 << 16):
                    pass
        except ConnectionError:
            pass
        except TimeoutError:
            return False
        return True


@asynccontextmanager
async def calling(server: BoundedServer, source: str = "127.0.0.1") -> AsyncIterator[Caller]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, local_addr=(source, 0))
    try:
        yield Caller(reader, writer)
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


async def answered(server: BoundedServer, trust: ssl.SSLContext | None = None) -> None:
    """An honest caller is answered: at once, or again where a slow machine met the quick bounds."""
    name = "x" if trust else None
    async with asyncio.timeout(PATIENCE_S):
        said = b""
        while b"200 OK" not in said:
            with contextlib.suppress(ConnectionError):
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", server.port, ssl=trust, server_hostname=name
                )
                said = await Caller(reader, writer).ask()
                writer.close()
                await writer.wait_closed()


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            await asyncio.sleep(0.01)


@pytest.mark.attack_row(52)
@pytest.mark.parametrize("sent", [b"", b"G", b"GET / HTTP/1.1\r\nHost:", GET[:-2], b"\x16\x03\x01"])
async def test_a_head_that_does_not_come_is_not_waited_for(sent: bytes) -> None:
    async with serving() as server, calling(server) as slow:
        slow.writer.write(sent)
        assert await slow.ended()
        await eventually(lambda: server.connections == 0)
        await answered(server)


@pytest.mark.attack_row(52)
async def test_a_head_that_comes_byte_by_byte_has_no_longer() -> None:
    bounds = Bounds(head_within_s=0.3, idle_s=300.0)  # aiohttp's own limit is that of idling
    async with serving(bounds) as server, calling(server) as slow:
        slow.writer.write(b"GET / HTTP/1.1\r\nHost: ")
        async with asyncio.timeout(PATIENCE_S):
            while not slow.reader.at_eof() and slow.reader.exception() is None:
                slow.writer.write(b"x")
                await asyncio.sleep(0.01)
        assert server.connections == 0


@pytest.mark.attack_row(52)
@pytest.mark.parametrize(
    "sent",
    [
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nhalf",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n",
        GET + GET[:-2],
        GET,
    ],
    ids=["half a body", "half a chunk", "no answer", "half a second head", "idle"],
)
async def test_nothing_that_stands_still_is_kept(sent: bytes) -> None:
    async with serving() as server, calling(server) as slow:
        slow.writer.write(sent)
        assert await slow.ended()
        await eventually(lambda: server.connections == 0)


@pytest.mark.attack_row(52)
async def test_an_answer_that_nobody_reads_is_dropped() -> None:
    async with serving() as server, calling(server) as slow:
        slow.writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await eventually(lambda: server.connections == 0)


@pytest.mark.attack_row(52)
async def test_one_address_holds_only_so_many_connections_and_others_are_answered() -> None:
    async with serving(Bounds(per_source=8, in_all=12)) as server:
        held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(40)]
        await eventually(lambda: server.turned_away == 32)
        assert server.connections == 8
        async with calling(server, "127.0.0.2") as honest:
            assert b"200 OK" in await honest.ask()
        for _, writer in held:
            writer.transport.abort()


@pytest.mark.attack_row(52)
async def test_when_all_are_taken_whoever_has_sent_nothing_for_longest_gives_way() -> None:
    async with serving(Bounds(per_source=8, in_all=12)) as server:
        held = [
            await asyncio.open_connection(
                "127.0.0.1", server.port, local_addr=(f"127.0.0.{n // 8 + 2}", 0)
            )
            for n in range(16)
        ]
        for number in range(20):
            async with calling(server, f"127.0.1.{number + 1}") as honest:
                assert b"200 OK" in await honest.ask()
        assert server.connections <= 12
        for _, writer in held:
            writer.transport.abort()


@pytest.mark.attack_row(52)
@pytest.mark.parametrize("hello", [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01", b"GET / HTTP/1.1\r\n"])
async def test_tls_that_does_not_come_about_is_not_waited_for(
    hello: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forge = Forge()
    leaf = forge.leaf("spiffe://cluster.local/ns/a/sa/b", dns=["x"])
    chain, key = tmp_path / "chain", tmp_path / "key"
    chain.write_bytes(leaf.chain_pem)
    key.write_bytes(leaf.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    async with serving(context=context) as server, calling(server) as slow:
        slow.writer.write(hello)
        assert await slow.ended()
        await eventually(lambda: server.connections == 0)
        trust = ssl.create_default_context(cadata=forge.root_pem.decode())
        await answered(server, trust)
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]


@pytest.mark.attack_row(52)
@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xfe\x00\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 10_000 + b"\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
async def test_malformed_http_is_told_in_one_line_that_is_no_error(
    garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as server:
        for _ in range(60):
            async with calling(server) as caller:
                caller.writer.write(garbage)
                assert await caller.ended()
    lines = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(lines) <= 25
    assert not [one for one in lines if one.levelno >= logging.ERROR or one.exc_info]
