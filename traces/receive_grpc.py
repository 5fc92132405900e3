"""OTLP over gRPC: `TraceService.Export`. (OTLP specification, "OTLP/gRPC".)"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages

from certs.trust.bans import Banned
from certs.trust.svid import SvidRefused
from kit.clock import monotonic
from traces.calls import NOBODY, Caller, Calls, TooManyCalls
from traces.config import TracesConfig
from traces.secured import Secured
from traces.writer import StoreBusy, StoreFailed, Writer

_AT_ONCE = 1024
"""Calls of all senders; each of them may hold few, so that the rest is always free for others."""
_SAY_EVERY_S = 10.0
EXPORT = "opentelemetry.proto.collector.trace.v1.TraceService"
_log = logging.getLogger(__name__)


Who = Callable[[Any], Caller]
"""Who called, as its connection proved. Raises SvidRefused or Banned."""

Context = grpc.aio.ServicerContext[bytes, bytes]


def nobody(_context: Any) -> Caller:
    """Where anybody may send."""
    return NOBODY


class TraceService:
    """`Export`, read by hand: a call that is opened and says nothing, or says it slowly, holds one of
    its sender's few places and no longer than a call may take. Nothing is parsed of who has no room."""

    def __init__(self, writer: Writer, who: Who = nobody, calls: Calls | None = None) -> None:
        self._writer, self._who = writer, who
        self._calls = calls or Calls()
        self._refusals = Refusals()

    def handler(self) -> grpc.GenericRpcHandler:
        export: Any = grpc.stream_unary_rpc_method_handler(self.export, None, None)
        return grpc.method_handlers_generic_handler(EXPORT, {"Export": export})

    async def export(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        try:
            caller = self._who(context)
        except (SvidRefused, Banned) as e:
            self._refusals.log("sender refused", str(e), {"unauthenticated": 1})
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "show the leaf of a workload")
        try:
            with self._calls.one(caller):
                return await self._export(requests, context, caller.identity)
        except TooManyCalls:
            self._refusals.log("sender refused", caller.identity, {"too_many_calls": 1})
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls at once")
            raise

    async def _export(self, requests: AsyncIterator[bytes], context: Context, sender: str) -> bytes:
        try:
            async with asyncio.timeout(self._calls.read_s):
                raw = await anext(aiter(requests))
        except (TimeoutError, StopAsyncIteration):
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the request did not come")
        if not self._writer.has_room(sender, len(raw)):
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the store is behind")
        try:
            request = messages.ExportTraceServiceRequest.FromString(raw)
        except DecodeError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not a request of OTLP traces")
        try:
            rejected = await self._writer.write(request, sender)
        except StoreBusy:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the store is behind")
        except StoreFailed:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the store cannot write")
        if rejected:
            self._refusals.log("spans refused", sender, rejected)
        return bytes(answer(rejected).SerializeToString())


class Refusals:
    """Says in the log who was refused and why, once in a while: who is refused may try without end."""

    def __init__(self) -> None:
        self._next, self._unsaid = 0.0, Counter[str]()

    def log(self, text: str, who: str, why: Mapping[str, int]) -> None:
        self._unsaid.update(why)
        if monotonic() >= self._next:
            self._next = monotonic() + _SAY_EVERY_S
            said = ", ".join(f"{reason} {count}" for reason, count in sorted(self._unsaid.items()))
            _log.warning(text, extra={"sender": who, "refused": said})
            self._unsaid.clear()


def answer(rejected: Mapping[str, int]) -> messages.ExportTraceServiceResponse:
    """Full success, or how many spans were refused."""
    said = messages.ExportTraceServiceResponse()
    if rejected:
        said.partial_success.rejected_spans = sum(rejected.values())
        said.partial_success.error_message = "; ".join(_WHY[reason] for reason in sorted(rejected))
    return said


_WHY = {
    "ids": "ids must be 16 bytes (trace) and 8 bytes (span)",
    "malformed": "the security or the verdict of a link is none that there is",
    "not_its_own": "a sender tells of its own side of its own links alone",
}


async def start_grpc(
    config: TracesConfig, writer: Writer, secured: Secured | None = None, calls: Calls | None = None
) -> tuple[grpc.aio.Server, int]:
    """Listen; returns the server and its port (which the kernel chose if the setting is 0)."""
    server = grpc.aio.server(
        options=(
            ("grpc.max_receive_message_length", config.max_request_bytes),
            ("grpc.so_reuseport", 0),  # a second store on this port is a mistake: say so
            ("grpc.max_concurrent_streams", 100),
            ("grpc.server_handshake_timeout_ms", 10_000),
        ),
        maximum_concurrent_rpcs=_AT_ONCE,
    )
    who = secured.of_call if secured is not None else nobody
    server.add_generic_rpc_handlers((TraceService(writer, who, calls).handler(),))
    host = config.host or "::"  # the wildcard means both families to gRPC
    host = f"[{host}]" if ":" in host else host
    address = f"{host}:{config.grpc_port}"
    if secured is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, secured.credentials())
    await server.start()
    return server, port
