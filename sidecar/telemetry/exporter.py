"""Sends link records as OTLP spans over gRPC, in the data plane's own event loop.

`report` is called on the hot path: it appends to a queue and returns. Everything else happens in
one task, in slices short enough that no link notices. A collector that is down, slow or silent
costs memory up to the queues' bounds, then records, which are counted and told of in a span of
their own (`spans dropped`); it never costs a link anything.
"""

import asyncio
import copy
import logging
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from certs.client.source import Svid, SvidSource
from certs.evidence.anchor import Head
from certs.evidence.chain import Chain, Signed, statement
from certs.evidence.signed import WorkloadSigner
from kit.backoff import Backoff
from kit.clock import unix_ns
from kit.tasks import spawn, stop
from sidecar.report import LinkRecord, RequestRecord
from sidecar.telemetry import attributes as a
from sidecar.telemetry.config import TelemetryConfig
from sidecar.telemetry.encode import (
    SpanEncoder,
    encode_checkpoint,
    encode_drops,
    export_request,
    framed,
)
from sidecar.telemetry.encode_request import encode_request
from sidecar.telemetry.queues import RecordQueues, is_ordinary
from sidecar.telemetry.senders import SendFailed, sender_for

_SLICE = 32
"""Records encoded before other work of the loop has its turn: half a millisecond at worst."""
_MAX_REQUEST_BYTES = 1 << 20
"""A quarter of what a gRPC server takes by default."""
_REDIAL_AFTER = 3
"""Time-outs in a row after which the connection is given up: a node that vanished sends no RST."""
_RECORDS_PER_CHECKPOINT = 1000
_CHECKPOINT_EVERY_NS = 30 * 10**9
_ALSO_TOLD = frozenset({"reported", "sampled_out", "unencodable"})

_log = logging.getLogger(__name__)


class Signer(Protocol):
    """Signs a statement with the workload's key; `certs.evidence.signed.WorkloadSigner` is one."""

    def sign(self, statement: str) -> Signed: ...


@dataclass(frozen=True, slots=True)
class _Batch:
    payload: bytes
    spans: int
    head: Head | None
    """How far the chain has come with it."""
    drops: Mapping[str, int]
    """The drop counts that the batch tells of; empty if it tells of none."""


class LinkExporter:
    """Give it records by `report`; `start` it once in the running loop, `close` it at the end."""

    def __init__(
        self,
        config: TelemetryConfig,
        source: SvidSource | None = None,
        *,
        clock_ns: Callable[[], int] = unix_ns,
        backoff: Backoff | None = None,
    ) -> None:
        self._config, self._source, self._clock_ns = config, source, clock_ns
        self._backoff = backoff or Backoff(first_s=0.2, longest_s=10.0)
        self._enabled = bool(config.endpoint)
        self._queues = RecordQueues(config.allowed_room, config.reserved_room)
        self._chain = Chain(secrets.token_bytes(16)) if config.evidence else None
        self._encoder = SpanEncoder(self._chain)
        self.signer: Signer | None = None
        """Signs checkpoints, since the first leaf. Without one there are none."""
        self._identity = ""
        self._signed_sequence = -1
        """An empty chain is signed too: who has a leaf and no link at all has a chain nevertheless."""
        self._said_last = False
        self.head: Head | None = None
        """How far our chain has come in the collector; None before it has taken anything of it."""
        self._signed_ns = clock_ns()
        self._resource = config.resource.encode()
        self._threshold = round(config.ratio * (1 << 64))
        self._samples = config.ratio < 1.0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._sender = sender_for(config, source)
        self._requests: deque[RequestRecord] = deque()
        self._dropped_requests = 0
        self._spans: list[bytes] = []
        self._pending: _Batch | None = None
        self._timeouts = 0
        self._started_ns = 0
        self._closing = False
        self._told: Mapping[str, int] = {}
        self.reported = 0
        self._sampled_out = 0
        self._exported = 0
        self._export_failures = 0
        self._dropped_export = 0
        self._rejected = 0
        self._unencodable = 0

    def report(self, record: LinkRecord) -> None:
        """Take one record. Never blocks, never raises; belongs to the loop's thread.

        The record of an open link (`still_open`) is copied, because the link goes on writing into
        it; any other is the exporter's from here on.
        """
        try:
            self.reported += 1
            if self._enabled:
                self._take(record)
        except Exception:  # whatever is wrong with a record, the link that ended is not to blame
            self._unencodable += 1

    def report_request(self, request: RequestRecord) -> None:
        """Take one request of a link. Never blocks, never raises; sampled with its link."""
        self.reported += 1
        if not self._enabled:
            return
        if self._samples and self._sampled_away(request.link):
            self._sampled_out += 1
            return
        if len(self._requests) >= self._config.allowed_room:
            self._requests.popleft()
            self._dropped_requests += 1
        self._requests.append(request)
        if len(self._requests) >= self._config.batch_size:
            self._wake.set()

    def _sampled_away(self, record: LinkRecord) -> bool:
        return int.from_bytes(record.trace_id[8:], "big") >= self._threshold

    def _take(self, record: LinkRecord) -> None:
        if record.still_open:
            record = copy.copy(record)
            record.end_ns = record.end_ns or self._clock_ns()
        queues = self._queues
        if not is_ordinary(record):
            queues.put_reserved(record)
        elif self._samples and self._sampled_away(record):
            self._sampled_out += 1
            return
        else:
            queues.put_allowed(record)
        if len(queues) >= self._config.batch_size:
            self._wake.set()

    def svid_came(self, svid: Svid) -> None:
        """Sign with the new leaf's key from here on."""
        self._identity = str(svid.facts.identity)
        try:
            self.signer = WorkloadSigner(svid.material)
        except ValueError as e:  # no link depends on it
            self.signer = None
            _log.warning("records are not signed", extra={"error": str(e)})

    def start(self) -> None:
        """Start exporting, in the running loop. Without an endpoint this does nothing."""
        if self._enabled and self._task is None:
            self._started_ns = self._clock_ns()
            self._task = spawn(self._run(), name="span-exporter", vital=True)

    async def close(self) -> None:
        """Send what is left, within `close_timeout_s` whatever the collector does, and stop."""
        await stop(self._task)
        self._task = None
        self._closing = True
        try:
            async with asyncio.timeout(self._config.close_timeout_s):
                while self._enabled and (batch := await self._next_batch()) is not None:
                    if not await self._attempt(batch):
                        break
        except TimeoutError:
            _log.warning("collector did not take the last spans in time")
        finally:
            if self._pending is not None:
                self._dropped_export += self._pending.spans
                self._pending = None
            self._dropped_export += len(self._spans)
            self._spans = []
            self._queues.drop_all()
            self._dropped_requests += len(self._requests)
            self._requests.clear()
            await self._sender.close()

    @property
    def encoding(self) -> int:
        """Spans encoded for a batch that is not whole yet."""
        return len(self._spans)

    def stats(self) -> dict[str, int]:
        """Counts since the start; `queued` is of now. Every reported record is in one of them."""
        queues = self._queues
        return {
            "reported": self.reported,
            "queued": len(queues)
            + len(self._requests)
            + self.encoding
            + (self._pending.spans if self._pending else 0),
            "sampled_out": self._sampled_out,
            "exported": self._exported,
            "export_failures": self._export_failures,
            "dropped_allowed": queues.dropped_allowed,
            "dropped_notable": queues.dropped_notable,
            "dropped_denied": queues.dropped_denied,
            "dropped_requests": self._dropped_requests,
            "dropped_export": self._dropped_export,
            "rejected_by_collector": self._rejected,
            "unencodable": self._unencodable,
        }

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._config.delay_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            while (batch := await self._next_batch()) is not None:
                if not await self._attempt(batch):
                    await asyncio.sleep(self._backoff.next_s())

    async def _next_batch(self) -> _Batch | None:
        """The batch that failed before, or a new one from the queues, or None if all is sent. None too
        while there is no leaf to show: what is encoded then could not say whose it is."""
        if not self._identity and self._source is not None and self._source.current is not None:
            self._identity = str(self._source.current.facts.identity)
        if self._config.workload_tls and not self._identity:
            return None
        if self._pending is None:
            self._pending = await self._encode_batch()
        return self._pending

    async def _encode_batch(self) -> _Batch | None:
        spans = self._spans  # what was encoded before a cancellation is here still
        size_bytes = sum(map(len, spans))
        while len(spans) < self._config.batch_size and size_bytes < _MAX_REQUEST_BYTES:
            record = self._queues.pop() or (self._requests.popleft() if self._requests else None)
            if record is None:
                break
            try:
                self._sign_own_side(record)
                if isinstance(record, RequestRecord):
                    spans.append(framed(encode_request(record)))
                else:
                    spans.append(framed(self._encoder.encode(record)))
                size_bytes += len(spans[-1])
            except Exception:
                self._unencodable += 1
                _log.exception("link record cannot be encoded")
            if len(spans) % _SLICE == 0:
                await asyncio.sleep(0)
        count, drops, told = len(spans), self._drops(), list[bytes]()
        telling: Mapping[str, int] = {}
        if drops != self._told and any(drops.values()):
            told = [framed(encode_drops(drops, self._started_ns, self._clock_ns()))]
            telling = drops
        elif not spans and not self._checkpoint_is_due():
            return None
        self._spans = []
        if (checkpoint := self._checkpoint()) is not None:
            told.append(checkpoint)
        chain = self._chain
        head = Head(chain.id.hex(), chain.sequence, chain.hash.hex()) if chain is not None else None
        return _Batch(export_request(self._resource, spans + told), count, head, telling)

    def _sign_own_side(self, record: LinkRecord | RequestRecord) -> None:
        """A link that ended before our first leaf is ours all the same: the store believes each side of
        what it names as its own identity and of nothing else."""
        link = record.link if isinstance(record, RequestRecord) else record
        if link.direction == "outbound":
            link.source_identity = link.source_identity or self._identity
        else:
            link.destination_identity = link.destination_identity or self._identity

    def _checkpoint_is_due(self) -> bool:
        chain = self._chain
        if chain is None or self.signer is None:
            return False
        if self._closing:
            return not self._said_last
        if chain.sequence == self._signed_sequence:
            return False
        return (
            chain.sequence - self._signed_sequence >= _RECORDS_PER_CHECKPOINT
            or self._clock_ns() - self._signed_ns >= _CHECKPOINT_EVERY_NS
        )

    def _checkpoint(self) -> bytes | None:
        """A signed word of how far the chain has come, if it is time for one."""
        if not self._checkpoint_is_due():
            return None
        assert self._chain is not None and self.signer is not None
        pod, counts = self._config.resource, self.stats()
        not_in_it = {k: v for k, v in counts.items() if k.startswith("dropped") or k in _ALSO_TOLD}
        now_ns = self._clock_ns()
        self._said_last = self._closing and not len(self._queues)
        said = statement(
            self._chain,
            now_ns,
            f"{pod.namespace}/{pod.pod}",
            pod.pod_uid,
            not_in_it,
            last=self._said_last,
        )
        self._signed_sequence, self._signed_ns = self._chain.sequence, now_ns
        try:
            signed = self.signer.sign(said)
        except Exception:  # no key may stop the spans
            _log.exception("checkpoint cannot be signed")
            return None
        return framed(encode_checkpoint(self._chain, said, signed, now_ns))

    def _drops(self) -> dict[str, int]:
        return {
            a.DROPPED_ALLOWED: self._queues.dropped_allowed,
            a.DROPPED_NOTABLE: self._queues.dropped_notable,
            a.DROPPED_DENIED: self._queues.dropped_denied,
            a.DROPPED_REQUESTS: self._dropped_requests,
            a.DROPPED_EXPORT: self._dropped_export,
        }

    async def _attempt(self, batch: _Batch) -> bool:
        """Send once. True if the batch is done with: taken, or refused for good."""
        try:
            answer = await self._sender.send(batch.payload)
        except SendFailed as e:
            return await self._failed(batch, e)
        self._timeouts = 0
        self._backoff.reset()
        self._pending = None
        self._told = batch.drops or self._told
        rejected = min(_rejected_spans(answer), batch.spans) if answer else 0
        self._rejected += rejected
        self.head = batch.head or self.head
        self._exported += batch.spans - rejected
        return True

    async def _failed(self, batch: _Batch, error: SendFailed) -> bool:
        self._export_failures += 1
        if self._backoff.failures == 0:  # once per outage, not once per attempt
            _log.warning(
                "collector does not take spans",
                extra={"endpoint": self._config.endpoint, "code": error.code},
            )
        self._timeouts = self._timeouts + 1 if error.timed_out else 0
        if self._timeouts >= _REDIAL_AFTER:
            self._timeouts = 0
            await self._sender.redial()
        if error.transient:
            return False
        self._pending = None
        self._dropped_export += batch.spans
        self._backoff.next_s()  # so that a collector that refuses everything is logged once
        return True


def _rejected_spans(answer: bytes) -> int:
    # Only a collector that complains makes us load the message classes.
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    try:
        said = ExportTraceServiceResponse.FromString(answer).partial_success
    except DecodeError:
        return 0
    return max(0, int(said.rejected_spans))
