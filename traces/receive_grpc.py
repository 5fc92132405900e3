"""OTLP over gRPC: `TraceService.Export`. (OTLP specification, "OTLP/gRPC".)"""

from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service

from traces.config import TracesConfig
from traces.writer import StoreBusy, StoreFailed, Writer

_AT_ONCE = 256


class TraceService(service.TraceServiceServicer):
    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def Export(  # noqa: N802 - the protocol's name
        self, request: messages.ExportTraceServiceRequest, context: Any
    ) -> messages.ExportTraceServiceResponse:
        try:
            rejected = await self._writer.write(request)
        except StoreBusy:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the store is behind")
        except StoreFailed:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the store cannot write")
        return answer(rejected)


def answer(rejected: int) -> messages.ExportTraceServiceResponse:
    """Full success, or how many spans were refused for ids that are not 16 and 8 bytes."""
    said = messages.ExportTraceServiceResponse()
    if rejected:
        said.partial_success.rejected_spans = rejected
        said.partial_success.error_message = "ids must be 16 bytes (trace) and 8 bytes (span)"
    return said


async def start_grpc(config: TracesConfig, writer: Writer) -> tuple[grpc.aio.Server, int]:
    """Listen; returns the server and its port (which the kernel chose if the setting is 0)."""
    server = grpc.aio.server(
        options=(
            ("grpc.max_receive_message_length", config.max_request_bytes),
            ("grpc.so_reuseport", 0),  # a second store on this port is a mistake: say so
            ("grpc.max_concurrent_streams", 100),
        ),
        maximum_concurrent_rpcs=_AT_ONCE,
    )
    add = service.add_TraceServiceServicer_to_server
    add(TraceService(writer), server)  # type: ignore[no-untyped-call]  # generated
    host = config.host or "::"  # the wildcard means both families to gRPC
    host = f"[{host}]" if ":" in host else host
    port = server.add_insecure_port(f"{host}:{config.grpc_port}")
    await server.start()
    return server, port
