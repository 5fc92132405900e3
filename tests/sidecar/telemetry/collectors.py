"""Collectors that misbehave, each a real listener on loopback."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector(service.TraceServiceServicer):
    """Keeps what it gets, after `delay_s`; refuses with `refuses` while that is set."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.refuses: grpc.StatusCode | None = None
        self.rejects = 0
        self.spans: list[Span] = []
        self.calls = 0
        self.metadata: dict[str, str] = {}

    async def Export(self, request: Any, context: Any) -> Any:
        self.calls += 1
        self.metadata = dict(context.invocation_metadata())
        await asyncio.sleep(self.delay_s)
        if self.refuses is not None:
            await context.abort(self.refuses, "no")
        for resource_spans in request.resource_spans:
            for scope_spans in resource_spans.scope_spans:
                self.spans.extend(scope_spans.spans)
        answer = messages.ExportTraceServiceResponse()
        answer.partial_success.rejected_spans = self.rejects
        return answer

    def ids(self) -> set[bytes]:
        return {span.span_id for span in self.spans}


@asynccontextmanager
async def collecting() -> AsyncIterator[tuple[Collector, str]]:
    collector = Collector()
    server = grpc.aio.server()
    service.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield collector, f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@contextmanager
def black_hole() -> Iterator[str]:
    """The kernel takes the connection; nobody ever reads it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def nobody() -> Iterator[str]:
    """A port that refuses: bound, so that no other test gets it, but not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"
