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
    """Keeps what it gets, once it `may_answer`; refuses with `refuses` while that is set."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.refuses: grpc.StatusCode | None = None
        self.rejects = 0
        self.spans: list[Span] = []
        self.calls = 0
        self.metadata: dict[str, str] = {}

    async def Export(self, request: Any, context: Any) -> Any:
        self.calls += 1
        self.metadata = dict(context.invocation_metadata())
        await self.may_answer.wait()
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
async def collecting(
    credentials: grpc.ServerCredentials | None = None,
) -> AsyncIterator[tuple[Collector, str]]:
    collector = Collector()
    server = grpc.aio.server()
    service.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
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


class Relay:
    """A path to a collector that can lose the connections it carries, as a node does that vanishes:
    no byte and no RST any more, while new connections go through."""

    def __init__(self, endpoint: str) -> None:
        self._host, _, self._port = endpoint.partition(":")
        self._lost: set[int] = set()
        self._next = 0

    def lose_connections(self) -> None:
        self._lost.update(range(self._next))

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self._next = self._next, self._next + 1
        far_reader, far_writer = await asyncio.open_connection(self._host, int(self._port))
        try:
            await asyncio.gather(
                self._copy(number, reader, far_writer), self._copy(number, far_reader, writer)
            )
        except ConnectionError:
            pass
        finally:
            writer.close()
            far_writer.close()

    async def _copy(
        self, number: int, source: asyncio.StreamReader, to: asyncio.StreamWriter
    ) -> None:
        while data := await source.read(65536):
            if number not in self._lost:
                to.write(data)
                await to.drain()
        to.close()


@asynccontextmanager
async def relaying(endpoint: str) -> AsyncIterator[tuple[Relay, str]]:
    relay = Relay(endpoint)
    server = await asyncio.start_server(relay.carry, "127.0.0.1", 0)
    try:
        yield relay, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await asyncio.sleep(0.1)  # the carried connections end with the collector's
