"""Bring one OTLP request to a collector: over gRPC, or over HTTP with a protobuf body.

A sender does one request at a time and keeps its connection. Whatever goes wrong is a SendFailed that
says whether trying again makes sense (OTLP specification, "Failures" of either transport).
"""

import asyncio
import gzip
import ssl
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

import grpc

from certs.client.rpc import NoCertificate, RenewingChannel
from certs.client.source import SvidSource
from kit.contract import VERSION
from sidecar.telemetry.config import TelemetryConfig

_EXPORT: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_TRANSIENT: Final = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""What the OTLP specification calls retryable; anything else would fail again."""
_RETRYABLE_STATUS: Final = frozenset({429, 502, 503, 504})
_MAX_HEAD: Final = 64 * 1024
_MAX_BODY: Final = 1 << 20


class SendFailed(Exception):
    """The collector did not take the request. `code` is a short word for the log."""

    reason = "send_failed"

    def __init__(self, code: str, *, transient: bool, timed_out: bool = False) -> None:
        super().__init__(code)
        self.code, self.transient, self.timed_out = code, transient, timed_out


class Sender(Protocol):
    async def send(self, payload: bytes) -> bytes:
        """Returns the answer's message. Raises SendFailed."""

    async def redial(self) -> None:
        """Give the connection up: it may be to a node that vanished."""

    async def close(self) -> None:
        """Let go of everything. It may be used again."""


def sender_for(config: TelemetryConfig, source: SvidSource | None) -> Sender:
    """`source` lends the certificate where the endpoint is podlink's own store."""
    if config.protocol == "http":
        return HttpSender(config)
    if config.workload_tls and source is not None:
        return WorkloadSender(config, source)
    return GrpcSender(config)


_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # or a new channel gets the old, dead connection
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5000),
)


class GrpcSender:
    """OTLP/gRPC, in plaintext or over TLS with the roots of a file."""

    def __init__(self, config: TelemetryConfig) -> None:
        self._config = config
        self._channel: grpc.aio.Channel | None = None

    async def send(self, payload: bytes) -> bytes:
        channel = await self._connected()
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_EXPORT)
        config = self._config
        try:
            return await call(
                payload,
                timeout=config.timeout_s,
                metadata=config.headers or None,
                compression=grpc.Compression.Gzip if config.gzip else None,
            )
        except grpc.aio.AioRpcError as e:
            code = e.code()
            if code is grpc.StatusCode.UNAVAILABLE and self._reads_files:
                # A channel never looks at its files again, and what it has may be what is refused.
                await self.close()
            raise SendFailed(
                code.name,
                transient=code in _TRANSIENT,
                timed_out=code is grpc.StatusCode.DEADLINE_EXCEEDED,
            ) from e

    @property
    def _reads_files(self) -> bool:
        config = self._config
        return bool(config.ca_path or config.client_cert_path)

    async def _connected(self) -> grpc.aio.Channel:
        if self._channel is None:
            config = self._config
            if config.plaintext:
                self._channel = grpc.aio.insecure_channel(config.endpoint, _OPTIONS)
            else:
                roots, key, chain = await _files(config)
                credentials = grpc.ssl_channel_credentials(roots, key, chain)
                self._channel = grpc.aio.secure_channel(config.endpoint, credentials, _OPTIONS)
        return self._channel

    async def redial(self) -> None:
        await self.close()

    async def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close(None)


class WorkloadSender(GrpcSender):
    """OTLP/gRPC to podlink's own store: mutual TLS with the workload's leaf, renewed with it, so that
    the store knows who speaks."""

    def __init__(self, config: TelemetryConfig, source: SvidSource) -> None:
        super().__init__(config)
        self._renewing = RenewingChannel(source, config.endpoint, options=_OPTIONS)

    async def _connected(self) -> grpc.aio.Channel:
        try:
            return self._renewing.get()
        except NoCertificate as e:
            raise SendFailed("NO_CERTIFICATE", transient=True) from e

    async def close(self) -> None:
        await self._renewing.close()


class HttpSender:
    """OTLP/HTTP with a protobuf body, one kept connection, HTTP/1.1. (RFC 9112.)"""

    def __init__(self, config: TelemetryConfig) -> None:
        self._config = config
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        where = urlsplit(f"//{config.endpoint}")
        self._host, self._port = where.hostname or "", where.port or 4318
        head = {
            "Host": config.endpoint,
            "User-Agent": f"podlink/{VERSION}",
            "Content-Type": "application/x-protobuf",
            **({"Content-Encoding": "gzip"} if config.gzip else {}),
            **dict(config.headers),
        }
        lines = [f"POST {config.path} HTTP/1.1", *(f"{k}: {v}" for k, v in head.items())]
        self._head = "\r\n".join(lines).encode("ascii")

    async def send(self, payload: bytes) -> bytes:
        body = gzip.compress(payload, 1) if self._config.gzip else payload
        request = b"%b\r\nContent-Length: %d\r\n\r\n%b" % (self._head, len(body), body)
        kept = self._streams is not None
        try:
            async with asyncio.timeout(self._config.timeout_s):
                try:
                    status, answer = await self._exchange(request)
                except (ConnectionError, asyncio.IncompleteReadError):
                    if not kept:
                        raise
                    # The collector had closed the kept connection: nothing was taken.
                    await self.close()
                    status, answer = await self._exchange(request)
        except TimeoutError as e:
            await self.close()
            raise SendFailed("TIMEOUT", transient=True, timed_out=True) from e
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as e:
            await self.close()
            raise SendFailed(type(e).__name__, transient=True) from e
        except BaseException:
            await self.close()
            raise
        if 200 <= status < 300:
            return answer
        raise SendFailed(f"HTTP_{status}", transient=status in _RETRYABLE_STATUS)

    async def _exchange(self, request: bytes) -> tuple[int, bytes]:
        reader, writer = await self._connected()
        writer.write(request)
        await writer.drain()
        status, fields = _read_head(await reader.readuntil(b"\r\n\r\n"))
        body = await _read_body(reader, fields)
        if fields.get("connection", "").lower() == "close":
            await self.close()
        return status, body

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            context = None
            if not self._config.plaintext:
                context = await asyncio.to_thread(_context, self._config)
            self._streams = await asyncio.open_connection(
                self._host, self._port, ssl=context, limit=_MAX_HEAD
            )
        return self._streams

    async def redial(self) -> None:
        await self.close()

    async def close(self) -> None:
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].transport.abort()


def _read_head(raw: bytes) -> tuple[int, dict[str, str]]:
    """Status and fields, their names in lower case. Raises ValueError if it is no answer."""
    first, *lines = raw.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    status = rest[:3]
    if not version.startswith("HTTP/1.") or not status.isdigit():
        raise ValueError("no HTTP answer")
    fields = {}
    for line in filter(None, lines):
        name, _, value = line.partition(":")
        fields[name.strip().lower()] = value.strip()
    return int(status), fields


async def _read_body(reader: asyncio.StreamReader, fields: dict[str, str]) -> bytes:
    if fields.get("transfer-encoding", "").lower() == "chunked":
        whole = b""
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            if size < 0 or len(whole) + size > _MAX_BODY:
                raise ValueError("the answer is too long")
            whole += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
        return whole
    size = int(fields.get("content-length", "0"))
    if not 0 <= size <= _MAX_BODY:
        raise ValueError("the answer is too long")
    return await reader.readexactly(size)


def _context(config: TelemetryConfig) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=config.ca_path or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if config.client_cert_path:
        context.load_cert_chain(config.client_cert_path, config.client_key_path or None)
    return context


async def _files(config: TelemetryConfig) -> tuple[bytes | None, bytes | None, bytes | None]:
    """Roots, key and chain, as far as they are given. Raises SendFailed if one cannot be read."""

    def read(path: str) -> bytes | None:
        return Path(path).read_bytes() if path else None

    paths = (config.ca_path, config.client_key_path, config.client_cert_path)
    try:
        return tuple(await asyncio.to_thread(lambda: [read(path) for path in paths]))  # type: ignore[return-value]
    except OSError as e:
        raise SendFailed(f"UNREADABLE {e.filename}", transient=True) from e
