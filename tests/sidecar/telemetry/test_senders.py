"""OTLP over HTTP, and over TLS of each kind, against a real store and against answers from hell."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from certs.trust.contexts import TlsMaterial
from sidecar.telemetry.config import TelemetryConfig
from sidecar.telemetry.exporter import LinkExporter
from sidecar.telemetry.senders import GrpcSender, HttpSender, SendFailed
from tests.certs.forge import Forge, Pair
from tests.patience import PATIENCE_S
from tests.sidecar.telemetry.collectors import black_hole, collecting, nobody
from tests.sidecar.telemetry.records import denied, outbound
from tests.traces.process import StoreProcess
from tests.traces.spans import payload_of

OUTAGE = "collector-down"
HTTP = TelemetryConfig(protocol="http", plaintext=True, timeout_s=5.0)
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def answering(answer: Answer, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0.1)


def always(raw: bytes, *, close: bool = False) -> Answer:
    """The same bytes to each request, on a kept connection unless `close`."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length:")[2].split()[0])
                await reader.readexactly(size)
                writer.write(raw)
                await writer.drain()
                if close:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    return answer


@pytest.mark.parametrize("gzip", [False, True])
async def test_links_reach_a_real_store_over_http(store: StoreProcess, gzip: bool) -> None:
    exporter = LinkExporter(replace(HTTP, endpoint=f"127.0.0.1:{store.http_port}", gzip=gzip))
    exporter.start()
    for _ in range(600):
        exporter.report(outbound())
    exporter.report(denied())
    await exporter.close()
    assert exporter.stats()["exported"] == 601
    assert len(await asyncio.to_thread(store.links, "verdict=denied")) == 1


async def test_https_is_verified_by_the_roots_given_and_shows_the_clients_certificate(
    tmp_path: Path,
) -> None:
    forge, other = Forge(), Forge(name="another root")
    server = forge.leaf("spiffe://cluster.local/ns/o/sa/otel", ips=["127.0.0.1"], dns=["otel"])
    context = TlsMaterial(server.key_pem, server.chain_pem, forge.root_pem).server_context()
    client = forge.leaf()
    for name, content in (
        ("key", client.key_pem),
        ("cert", client.chain_pem),
        ("root", forge.root_pem),
        ("other", other.root_pem),
    ):
        (tmp_path / name).write_bytes(content)
    async with answering(always(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), context) as where:
        good = replace(
            HTTP,
            endpoint=where,
            plaintext=False,
            ca_path=str(tmp_path / "root"),
            client_cert_path=str(tmp_path / "cert"),
            client_key_path=str(tmp_path / "key"),
        )
        for config, accepted in (
            (good, True),
            (replace(good, ca_path=str(tmp_path / "other")), False),
            (replace(good, client_cert_path="", client_key_path=""), False),
            (replace(good, ca_path="/nowhere"), False),
        ):
            sender = HttpSender(config)
            if accepted:
                assert await sender.send(b"x") == b""
                assert await sender.send(b"y") == b""
            else:
                with pytest.raises(SendFailed):
                    await sender.send(b"x")
            await sender.close()


async def test_renewed_files_count_at_the_next_attempt_over_grpc_too(tmp_path: Path) -> None:
    forge, other = Forge(), Forge(name="another root")
    server = forge.leaf("spiffe://cluster.local/ns/o/sa/otel", ips=["127.0.0.1"])
    credentials = grpc.ssl_server_credentials(
        [(server.key_pem, server.chain_pem)], forge.root_pem, require_client_auth=True
    )

    def renew(client: Pair) -> None:
        (tmp_path / "key").write_bytes(client.key_pem)
        (tmp_path / "cert").write_bytes(client.chain_pem)

    (tmp_path / "root").write_bytes(forge.root_pem)
    renew(other.leaf())  # as good as one that has expired
    async with collecting(credentials) as (collector, where):
        sender = GrpcSender(
            TelemetryConfig(
                endpoint=where,
                timeout_s=3.0,
                ca_path=str(tmp_path / "root"),
                client_cert_path=str(tmp_path / "cert"),
                client_key_path=str(tmp_path / "key"),
            )
        )
        with pytest.raises(SendFailed) as failed:
            await sender.send(payload_of(outbound()))
        assert failed.value.transient
        renew(forge.leaf())
        await sender.send(payload_of(outbound()))
        assert len(collector.spans) == 1
        await sender.close()


@pytest.mark.parametrize(
    ("answer", "transient"),
    [
        (b"HTTP/1.1 400 Bad\r\nContent-Length: 2\r\n\r\nno", False),
        (b"HTTP/1.1 429 Busy\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 503 Away\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 301 Moved\r\nLocation: http://evil/\r\nContent-Length: 0\r\n\r\n", False),
        (b"SSH-2.0-OpenSSH\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFF\r\n", True),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000, True),
    ],
)
async def test_an_answer_that_is_no_yes_fails_and_says_whether_to_try_again(
    answer: bytes, transient: bool
) -> None:
    async with answering(always(answer, close=True)) as where:
        sender = HttpSender(replace(HTTP, endpoint=where))
        with pytest.raises(SendFailed) as failed:
            await sender.send(b"x")
        assert failed.value.transient is transient
        await sender.close()


async def test_chunks_and_a_connection_that_was_closed_meanwhile_are_no_failure() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    async with answering(always(chunked, close=True)) as where:
        sender = HttpSender(replace(HTTP, endpoint=where))
        for _ in range(3):
            assert await sender.send(b"x") == b"abc"
            await asyncio.sleep(0.05)  # the collector has closed by now, without having said so
        await sender.close()


@pytest.mark.fault_row(OUTAGE)
async def test_one_byte_at_a_time_silence_and_nobody_end_at_the_time_out() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for _ in range(40):
                writer.write(b"H")
                await writer.drain()
                await asyncio.sleep(0.02)
        except ConnectionError:
            pass
        writer.close()

    async with answering(drip) as slow:
        with black_hole() as silent, nobody() as dead:
            for where in (slow, silent, dead):
                sender = HttpSender(replace(HTTP, endpoint=where, timeout_s=0.3))
                with pytest.raises(SendFailed) as failed:
                    await sender.send(payload_of(outbound()) * 1000)
                assert failed.value.transient
                await sender.close()
            exporter = LinkExporter(
                replace(HTTP, endpoint=silent, timeout_s=3600.0, close_timeout_s=0.5)
            )
            exporter.start()
            exporter.report(outbound())
            async with asyncio.timeout(PATIENCE_S):
                await exporter.close()
            assert exporter.stats()["dropped_export"] == 1
