"""Sends the few spans that a control-plane program leaves, as OTLP over gRPC.

For programs that tell of events (a certificate issued), not of links: a bounded queue, one request at
a time, and whoever emits never waits. The sidecar has an exporter of its own, made for its hot path.
"""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from kit.backoff import Backoff

EXPORT: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_ROOM: Final = 4096
_BATCH: Final = 256
_TIMEOUT_S: Final = 10.0
_CLOSE_S: Final = 2.0

Value = str | int | bool
_log = logging.getLogger(__name__)


class SpanSender:
    """`emit` from the loop's thread, `await run()` in a task of its own, `await close()` at the end.

    `channel` is asked before each request, so that a renewed certificate counts; it may raise, which
    is one more failure. When the queue is full the oldest span goes, and is counted in `dropped`.
    """

    def __init__(
        self,
        service_name: str,
        channel: Callable[[], grpc.aio.Channel],
        resource: Mapping[str, str] | None = None,
        *,
        room: int = _ROOM,
        backoff: Backoff | None = None,
    ) -> None:
        self._channel = channel
        self._resource = {"service.name": service_name, **(resource or {})}
        self._waiting: deque[Span] = deque()
        self._room = room
        self._backoff = backoff or Backoff(first_s=0.5, longest_s=10.0)
        self._wake = asyncio.Event()
        self.dropped = 0
        self.sent = 0

    def emit(self, name: str, attributes: Mapping[str, Value | None], at_ns: int) -> None:
        """A span of no length at `at_ns` (Unix nanoseconds), in a trace of its own. Never blocks and
        never raises; attributes without a value are left out."""
        span = Span(
            trace_id=secrets.token_bytes(16),
            span_id=secrets.token_bytes(8),
            name=name,
            kind=Span.SPAN_KIND_INTERNAL,
            start_time_unix_nano=at_ns,
            end_time_unix_nano=at_ns,
            attributes=_key_values(attributes),
        )
        if len(self._waiting) >= self._room:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append(span)
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                if not await self._send_some():
                    await asyncio.sleep(self._backoff.next_s())

    async def close(self) -> None:
        """Send what is left within two seconds; cancel `run` first."""
        try:
            async with asyncio.timeout(_CLOSE_S):
                while self._waiting and await self._send_some():
                    pass
        except TimeoutError:
            _log.warning("the trace store did not take the last spans in time")
        self.dropped += len(self._waiting)
        self._waiting.clear()

    async def _send_some(self) -> bool:
        batch = [self._waiting[n] for n in range(min(_BATCH, len(self._waiting)))]
        request = ExportTraceServiceRequest()
        of = request.resource_spans.add()
        of.resource.attributes.extend(_key_values(self._resource))
        of.scope_spans.add().spans.extend(batch)
        try:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel().unary_unary(
                EXPORT
            )
            await call(request.SerializeToString(), timeout=_TIMEOUT_S)
        except Exception as e:
            if self._backoff.failures == 0:  # once per outage, not once per attempt
                code = e.code().name if isinstance(e, grpc.aio.AioRpcError) else type(e).__name__
                _log.warning("the trace store does not take spans", extra={"code": code})
            return False
        self._backoff.reset()
        for span in batch:  # the oldest may have been dropped meanwhile
            if self._waiting and self._waiting[0] is span:
                self._waiting.popleft()
                self.sent += 1
        return True


def _key_values(attributes: Mapping[str, Value | None]) -> list[KeyValue]:
    found = []
    for key, value in attributes.items():
        if value is None or value == "":
            continue
        pair = KeyValue(key=key)
        if isinstance(value, bool):
            pair.value.bool_value = value
        elif isinstance(value, int):
            pair.value.int_value = value
        else:
            pair.value.string_value = value[:1024].encode("utf-8", "replace").decode()
        found.append(pair)
    return found
