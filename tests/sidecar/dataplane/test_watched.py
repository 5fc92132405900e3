"""Links to ports that ask for request spans: the same bytes as ever, and the requests told."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kit.clock import unix_ns
from kit.ports import PortSet
from sidecar.dataplane.links import http_splice as watched
from sidecar.directory import Endpoint, Service, Workload
from sidecar.report import LinkRecord, RequestRecord
from sidecar.telemetry.requests import RequestWatcher
from sidecar.wire.http2 import PREFACE
from tests.patience import PATIENCE_S
from tests.sidecar.dataplane.conftest import Pair, StartPair

GET = b"GET /orders HTTP/1.1\r\nHost: x\r\n\r\n"


def watching(pair: Pair, *, near: bool = True) -> list[RequestRecord]:
    """Both sides watch, or the far one alone."""
    found: list[RequestRecord] = []
    ports = PortSet.parse(str(pair.app_port))
    pair.far.plane.http_ports = ports
    pair.far.plane.watch = lambda link: RequestWatcher(link, found.append, unix_ns)
    if near:
        entries = pair.near.directory.entries
        pod = entries["api.shop"]
        assert isinstance(pod, Workload)
        entries["api.shop"] = replace(pod, http_ports=ports)
        pair.near.plane.watch = pair.far.plane.watch
    return found


def of_side(found: list[RequestRecord], direction: str) -> list[RequestRecord]:
    return [one for one in found if one.link.direction == direction]


async def http_app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers each request with its own size, and closes after the third: data and FIN together."""
    for number in range(3):
        try:
            await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            break
        body = b"x" * (number * 100_000)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    writer.close()


async def test_requests_of_a_link_are_told_with_the_link_that_carried_them(
    start_pair: StartPair, serve: Callable[..., Any]
) -> None:
    pair = start_pair(await serve(http_app))
    found = watching(pair)
    reader, writer = await pair.client()
    for number in range(3):
        writer.write(GET)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert len(await reader.readexactly(number * 100_000)) == number * 100_000
    assert await reader.read() == b""
    writer.close()
    links = await pair.near.record(), await pair.far.record()
    for link in links:
        told = of_side(found, link.direction)
        assert [(one.method, one.path, one.status) for one in told] == [("GET", "/orders", 200)] * 3
        assert all(one.link is link for one in told)
        assert link.verdict == "allowed"
    assert len({link.trace_id for link in links}) == 1


async def test_a_service_that_says_http_is_watched_by_the_dialler_too(
    start_pair: StartPair, serve: Callable[..., Any]
) -> None:
    app_port = await serve(http_app)
    pair = start_pair(app_port)
    found = watching(pair, near=False)
    pair.near.plane.watch = lambda link: RequestWatcher(link, found.append, unix_ns)
    pod = pair.near.directory.entries["api.shop"]
    assert isinstance(pod, Workload)
    endpoint = Endpoint("127.0.0.1", {app_port: app_port}, pod)
    service = Service("shop", "api", (), frozenset({app_port}), (endpoint,))
    for number, http_ports in enumerate((frozenset({app_port}), frozenset[int]()), 1):
        pair.near.directory.entries["api.shop"] = replace(service, http_ports=http_ports)
        reader, writer = await pair.client()
        writer.write(GET)
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await pair.near.record(number)
        await pair.far.record(number)
    assert [one.link.service for one in of_side(found, "outbound")] == ["api.shop"]
    assert len(of_side(found, "inbound")) == 2


async def test_ports_that_do_not_ask_are_not_watched(
    start_pair: StartPair, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("watched")

    monkeypatch.setattr(watched.HttpSplice, "__init__", never)
    pair = start_pair(await serve(http_app))
    found = watching(pair, near=False)
    pair.near.plane.watch = pair.far.plane.watch
    pair.far.plane.http_ports = PortSet.parse("1")
    reader, writer = await pair.client()
    writer.write(GET)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    writer.close()
    await pair.far.record()
    assert found == []


@pytest.mark.attack_row(42)
@pytest.mark.parametrize("seed", range(6))
async def test_whatever_is_sent_arrives_byte_for_byte_while_somebody_looks_on(
    start_pair: StartPair, serve: Callable[..., Any], seed: int
) -> None:
    draw = random.Random(seed)
    parts = [
        GET,
        PREFACE,
        b"\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 101 X\r\n\r\n",
    ]

    def stream() -> bytes:
        made = bytearray()
        while len(made) < 300_000:
            made += (
                draw.choice(parts) if draw.random() < 0.5 else draw.randbytes(draw.randrange(9999))
            )
        return bytes(made)

    asked, answered = stream(), stream()
    got: list[bytes] = []

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def answer() -> None:
            for at in range(0, len(answered), 7_777):
                writer.write(answered[at : at + 7_777])
                await writer.drain()
            writer.write_eof()

        _, said = await asyncio.gather(answer(), reader.read())
        got.append(said)
        writer.close()

    pair = start_pair(await serve(app))
    watching(pair)
    reader, writer = await pair.client()

    async def ask() -> None:
        for at in range(0, len(asked), 5_555):
            writer.write(asked[at : at + 5_555])
            await writer.drain()
        writer.write_eof()

    async with asyncio.timeout(PATIENCE_S):
        _, said = await asyncio.gather(ask(), reader.read())
    writer.close()
    link = await pair.far.record()
    assert got == [asked]
    assert said == answered
    assert (link.bytes_sent, link.bytes_received) == (len(asked), len(answered))


async def test_a_watcher_that_fails_costs_its_spans_and_not_the_link(
    start_pair: StartPair, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object, link: LinkRecord) -> None:
        raise RuntimeError("a bug")

    pair = start_pair(await serve(http_app))
    found = watching(pair)
    monkeypatch.setattr("sidecar.wire.http1.Http1._request_head", fail)
    reader, writer = await pair.client()
    writer.write(GET)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    writer.close()
    assert (await pair.far.record()).verdict == "allowed"
    assert found == []
