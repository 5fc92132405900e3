"""A span for each certificate issued or refused, each ban and each step of a rotation, over OTLP.

A collector that is down costs memory up to the bounds, then spans, which are counted; never a
signature. What was issued, banned and rotated has a queue of its own: who floods the CA with bad
tokens cannot push it out.
"""

import asyncio
import datetime as dt
import logging
import secrets
from collections import deque
from collections.abc import Mapping

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from certs.server.issuance import Issuance
from certs.server.report import BanChange, Item, Refusal, RotationStep
from kit.backoff import Backoff

CERTIFICATE_ISSUED = "certificate issued"
CERTIFICATE_REFUSED = "certificate refused"
BANNED = "ban"
ROOT_ROTATION = "root rotation"
NAMES = (CERTIFICATE_ISSUED, CERTIFICATE_REFUSED, BANNED, ROOT_ROTATION)

ATTRIBUTES: Mapping[str, str] = {
    "podlink.identity": "string",
    "podlink.certificate.serial": "string",
    "podlink.certificate.sha256": "string",
    "podlink.certificate.issuer": "string",
    "podlink.certificate.not_after": "string",
    "podlink.certificate.addresses": "string",
    "podlink.certificate.provisional": "boolean",
    "podlink.direct": "boolean",
    "k8s.namespace.name": "string",
    "k8s.pod.name": "string",
    "k8s.pod.uid": "string",
    "k8s.node.name": "string",
    "network.peer.address": "string",
    "podlink.rpc": "string",
    "podlink.reason": "string",
    "podlink.error": "string",
    "rpc.grpc.status_code": "string",
    "podlink.ban.kind": "string",
    "podlink.ban.value": "string",
    "podlink.ban.by": "string",
    "podlink.ban.why": "string",
    "podlink.ban.lifted": "boolean",
    "podlink.rotation.phase": "string",
    "podlink.rotation.by": "string",
    "podlink.rotation.said": "string",
}
"""Every attribute of these spans and its type (docs/spans.md, "Attributes of the CA's spans")."""

_EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_BATCH = 256
_DELAY_S = 1.0
_TIMEOUT_S = 10.0
_CLOSE_S = 2.0
_MAX_TEXT = 1024
_log = logging.getLogger(__name__)


class SpanExporter:
    """Give it items by calling it; run `run` in a task. An empty endpoint keeps and sends nothing."""

    def __init__(self, endpoint: str, replica: str, namespace: str, room: int = 4096) -> None:
        self._endpoint = endpoint
        self._resource = _resource(replica, namespace)
        self._kept: deque[Span] = deque()
        self._refusals: deque[Span] = deque()
        self._room = room
        self._wake = asyncio.Event()
        self.exported, self.dropped = 0, 0

    def __call__(self, item: Item) -> None:
        if not self._endpoint:
            return
        queue = self._refusals if isinstance(item, Refusal) else self._kept
        if len(queue) >= self._room:
            self.dropped += 1
            return
        queue.append(to_span(item))
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled; what is left then gets two seconds."""
        if not self._endpoint:
            return
        options = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))
        async with grpc.aio.insecure_channel(self._endpoint, options) as channel:
            call: grpc.aio.UnaryUnaryMultiCallable[
                ExportTraceServiceRequest, ExportTraceServiceResponse
            ] = channel.unary_unary(
                _EXPORT,
                request_serializer=ExportTraceServiceRequest.SerializeToString,
                response_deserializer=ExportTraceServiceResponse.FromString,
            )
            try:
                await self._send_forever(call)
            finally:
                try:
                    async with asyncio.timeout(_CLOSE_S):
                        while batch := self._batch():
                            await call(self._request(batch), timeout=_CLOSE_S)
                            self.exported += len(batch)
                except (TimeoutError, grpc.aio.AioRpcError):
                    _log.warning("spans of the CA were not sent")

    async def _send_forever(
        self,
        call: "grpc.aio.UnaryUnaryMultiCallable[ExportTraceServiceRequest, ExportTraceServiceResponse]",
    ) -> None:
        backoff = Backoff(first_s=0.5, longest_s=15.0)
        while True:
            await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(_DELAY_S)
            while batch := self._batch():
                try:
                    await call(self._request(batch), timeout=_TIMEOUT_S)
                except grpc.aio.AioRpcError as e:
                    if backoff.failures == 0:
                        _log.warning("collector takes no spans", extra={"code": e.code().name})
                    self._put_back(batch)
                    await asyncio.sleep(backoff.next_s())
                    continue
                backoff.reset()
                self.exported += len(batch)

    def _batch(self) -> list[Span]:
        batch: list[Span] = []
        for queue in (self._kept, self._refusals):
            while queue and len(batch) < _BATCH:
                batch.append(queue.popleft())
        return batch

    def _put_back(self, batch: list[Span]) -> None:
        for span in reversed(batch):
            queue = self._refusals if span.name == CERTIFICATE_REFUSED else self._kept
            if len(queue) < self._room:
                queue.appendleft(span)
            else:
                self.dropped += 1

    def _request(self, batch: list[Span]) -> ExportTraceServiceRequest:
        scoped = ScopeSpans(spans=batch)
        return ExportTraceServiceRequest(
            resource_spans=[ResourceSpans(resource=self._resource, scope_spans=[scoped])]
        )


def to_span(item: Item) -> Span:
    """A root span of its own trace, as long as a moment."""
    name, found, failed = _describe(item)
    at_ns = _ns(item.at)
    span = Span(
        trace_id=secrets.token_bytes(16),
        span_id=secrets.token_bytes(8),
        name=name,
        kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=at_ns,
        end_time_unix_nano=at_ns,
        attributes=[_attribute(key, value) for key, value in found.items() if value != ""],
    )
    if failed:
        span.status.CopyFrom(Status(code=Status.STATUS_CODE_ERROR, message=failed[:_MAX_TEXT]))
    return span


def _describe(item: Item) -> tuple[str, dict[str, str | bool], str]:
    match item:
        case Issuance():
            return CERTIFICATE_ISSUED, _issued(item), ""
        case Refusal():
            return CERTIFICATE_REFUSED, _refused(item), item.reason
        case BanChange():
            ban = item.note.ban
            found: dict[str, str | bool] = {
                "podlink.ban.kind": ban.kind,
                "podlink.ban.value": ban.value,
                "podlink.ban.by": item.note.by,
                "podlink.ban.why": item.note.why,
                "podlink.ban.lifted": item.lifted,
            }
            return BANNED, found, ""
        case RotationStep():
            return (
                ROOT_ROTATION,
                {
                    "podlink.rotation.phase": item.phase,
                    "podlink.rotation.by": item.by,
                    "podlink.rotation.said": item.said,
                },
                "",
            )


def _issued(item: Issuance) -> dict[str, str | bool]:
    return {
        "podlink.identity": item.identity,
        "podlink.certificate.serial": item.serial,
        "podlink.certificate.sha256": item.sha256,
        "podlink.certificate.issuer": item.issuer,
        "podlink.certificate.not_after": _text_time(item.not_after),
        "podlink.certificate.addresses": ",".join(item.ips),
        "podlink.certificate.provisional": item.provisional,
        "podlink.direct": item.direct,
        "k8s.namespace.name": item.namespace,
        "k8s.pod.name": item.pod_name,
        "k8s.pod.uid": item.pod_uid,
        "k8s.node.name": item.node,
        "network.peer.address": item.source_ip,
    }


def _refused(item: Refusal) -> dict[str, str | bool]:
    found: dict[str, str | bool] = {
        "podlink.rpc": item.rpc,
        "podlink.reason": item.reason,
        "podlink.error": item.detail,
        "rpc.grpc.status_code": item.code,
        "network.peer.address": item.source_ip,
    }
    if item.caller is not None:
        found |= {
            "podlink.identity": str(item.caller.identity),
            "k8s.namespace.name": item.caller.identity.namespace,
            "k8s.pod.name": item.caller.pod_name,
            "k8s.pod.uid": item.caller.pod_uid,
        }
    return found


def _resource(replica: str, namespace: str) -> Resource:
    found = {
        "service.name": "podlink-ca",
        "service.namespace": namespace,
        "service.instance.id": replica,
        "k8s.pod.name": replica,
        "k8s.namespace.name": namespace,
    }
    return Resource(attributes=[_attribute(key, value) for key, value in found.items()])


def _attribute(key: str, value: str | bool) -> KeyValue:
    if isinstance(value, bool):
        return KeyValue(key=key, value=AnyValue(bool_value=value))
    cut = value[:_MAX_TEXT].encode("utf-8", "replace").decode()
    return KeyValue(key=key, value=AnyValue(string_value=cut))


def _ns(at: dt.datetime) -> int:
    return int(at.timestamp() * 1e6) * 1000


def _text_time(at: dt.datetime) -> str:
    return at.replace(microsecond=0).isoformat().replace("+00:00", "Z")
