"""OTLP over gRPC: `TraceService.Export`. (OTLP specification, "OTLP/gRPC".)"""

import logging
from collections.abc import Callable
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service

from certs.trust.bans import Banned
from certs.trust.svid import SvidRefused
from kit.clock import monotonic
from traces.config import TracesConfig
from traces.rows import count_spans
from traces.secured import Secured
from traces.writer import StoreBusy, StoreFailed, Writer

_AT_ONCE = 256
_SAY_EVERY_S = 10.0
_log = logging.getLogger(__name__)


Who = Callable[[Any], str]
"""The identity that a call's connection proved. Raises SvidRefused or Banned."""


def nobody(_context: Any) -> str:
    """Where anybody may send."""
    return ""


class TraceService(service.TraceServiceServicer):
    def __init__(self, writer: Writer, who: Who = nobody) -> None:
        self._writer, self._who = writer, who
        self._refusals = Refusals()

    async def Export(  # noqa: N802 - the protocol's name
        self, request: messages.ExportTraceServiceRequest, context: Any
    ) -> messages.ExportTraceServiceResponse:
        try:
            sender = self._who(context)
        except (SvidRefused, Banned) as e:
            self._refusals.log("sender refused", str(e), count_spans(request))
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "show the leaf of a workload")
        try:
            rejected = await self._writer.write(request, sender)
        except StoreBusy:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the store is behind")
        except StoreFailed:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the store cannot write")
        if rejected:
            self._refusals.log("spans refused", sender, rejected)
        return answer(rejected)


class Refusals:
    """Says in the log who was refused, once in a while: who is refused may try without end."""

    def __init__(self) -> None:
        self._next, self._unsaid = 0.0, 0

    def log(self, text: str, who: str, spans: int) -> None:
        self._unsaid += spans
        if monotonic() >= self._next:
            self._next = monotonic() + _SAY_EVERY_S
            _log.warning(text, extra={"sender": who, "spans": self._unsaid})
            self._unsaid = 0


def answer(rejected: int) -> messages.ExportTraceServiceResponse:
    """Full success, or how many spans were refused."""
    said = messages.ExportTraceServiceResponse()
    if rejected:
        said.partial_success.rejected_spans = rejected
        said.partial_success.error_message = (
            "ids must be 16 bytes (trace) and 8 bytes (span), and a sender tells of itself alone"
        )
    return said


async def start_grpc(
    config: TracesConfig, writer: Writer, secured: Secured | None = None
) -> tuple[grpc.aio.Server, int]:
    """Listen; returns the server and its port (which the kernel chose if the setting is 0)."""
    server = grpc.aio.server(
        options=(
            ("grpc.max_receive_message_length", config.max_request_bytes),
            ("grpc.so_reuseport", 0),  # a second store on this port is a mistake: say so
            ("grpc.max_concurrent_streams", 100),
        ),
        maximum_concurrent_rpcs=_AT_ONCE,
    )
    who = secured.of_call if secured is not None else nobody
    add = service.add_TraceServiceServicer_to_server
    add(TraceService(writer, who), server)  # type: ignore[no-untyped-call]  # generated
    host = config.host or "::"  # the wildcard means both families to gRPC
    host = f"[{host}]" if ":" in host else host
    address = f"{host}:{config.grpc_port}"
    if secured is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, secured.credentials())
    await server.start()
    return server, port
