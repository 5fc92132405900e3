"""An OTLP request to rows of the store. Pure.

What arrives was written by whoever could reach the port: every value is data, none is trusted to be
short, well-formed or of the expected type. Text is cut, numbers are held to what SQLite can keep,
and a span with impossible ids is refused, alone.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

MAX_TEXT = 1024
"""Characters kept of a text in a column."""
MAX_SPAN_BYTES = 64 * 1024
"""Bytes of one span that are kept; of a longer one only its head (ids, name, times, status) is."""
MAX_ATTRIBUTES = 128
_MAX_INT64 = (1 << 63) - 1

LINK, LINK_OPENED = "link", "link opened"
_NAMES = frozenset({LINK, LINK_OPENED})

TEXT_COLUMNS: Mapping[str, str] = {
    "direction": "podlink.direction",
    "security": "podlink.security",
    "verdict": "podlink.verdict",
    "source_pod": "podlink.source.pod",
    "source_identity": "podlink.source.identity",
    "destination_pod": "podlink.destination.pod",
    "destination_identity": "podlink.destination.identity",
    "service": "podlink.service",
}
"""Columns that questions select by, and the attribute each one is a copy of (docs/spans.md)."""

COLUMNS = (
    "digest",
    "received_ns",
    "trace_id",
    "span_id",
    "parent_span_id",
    "name",
    "start_ns",
    "end_ns",
    "is_link",
    "is_ordinary",
    *TEXT_COLUMNS,
    "source_namespace",
    "destination_namespace",
    "resource_digest",
    "span",
)

Cell = str | int | bytes | None


@dataclass(frozen=True, slots=True)
class Rows:
    spans: list[tuple[Cell, ...]]
    resources: dict[bytes, bytes]
    """Digest to the bytes of the Resource message."""
    rejected: int


def rows_of(request: ExportTraceServiceRequest, received_ns: int) -> Rows:
    """Every span of the request as a tuple in the order of COLUMNS."""
    rows = Rows([], {}, 0)
    rejected = 0
    for resource_spans in request.resource_spans:
        resource = resource_spans.resource.SerializeToString()
        if len(resource) > MAX_SPAN_BYTES:
            resource = b""
        resource_digest = _digest(resource)
        rows.resources[resource_digest] = resource
        for span in _spans_of(resource_spans):
            if len(span.trace_id) != 16 or len(span.span_id) != 8:
                rejected += 1
                continue
            rows.spans.append(_row(span, resource_digest, received_ns))
    return Rows(rows.spans, rows.resources, rejected)


def count_spans(request: ExportTraceServiceRequest) -> int:
    return sum(1 for resource_spans in request.resource_spans for _ in _spans_of(resource_spans))


def _spans_of(resource_spans: ResourceSpans) -> Iterator[Span]:
    for scope_spans in resource_spans.scope_spans:
        yield from scope_spans.spans


def _row(span: Span, resource_digest: bytes, received_ns: int) -> tuple[Cell, ...]:
    blob = _bounded_blob(span)
    found = dict(_texts(span.attributes)) if span.name in _NAMES else {}
    is_link = found.get("podlink.direction") in ("outbound", "inbound")
    texts = [found.get(name) for name in TEXT_COLUMNS.values()]
    ordinary = found.get("podlink.verdict") == "allowed" and found.get("podlink.security") in (
        "mtls",
        "self",
    )
    parent = span.parent_span_id if len(span.parent_span_id) == 8 else None
    return (
        # The same span sent twice (a retry after a time-out) is one span. Anything else is kept:
        # a forged span with a real one's ids must not keep the real one out.
        _digest(resource_digest + blob),
        received_ns,
        span.trace_id,
        span.span_id,
        parent,
        span.name[:MAX_TEXT],
        min(span.start_time_unix_nano, _MAX_INT64),
        min(span.end_time_unix_nano, _MAX_INT64),
        int(is_link),
        int(ordinary),
        *texts,
        _namespace(found.get("podlink.source.pod"), found.get("podlink.source.identity")),
        _namespace(found.get("podlink.destination.pod"), found.get("podlink.destination.identity")),
        resource_digest,
        blob,
    )


def _bounded_blob(span: Span) -> bytes:
    if len(span.attributes) <= MAX_ATTRIBUTES and span.ByteSize() <= MAX_SPAN_BYTES:
        blob: bytes = span.SerializeToString()
        return blob
    kept = Span(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_span_id[:8],
        name=span.name[:MAX_TEXT],
        kind=span.kind,
        start_time_unix_nano=span.start_time_unix_nano,
        end_time_unix_nano=span.end_time_unix_nano,
        dropped_attributes_count=min(len(span.attributes), (1 << 32) - 1),
    )
    kept.status.code = span.status.code
    kept.status.message = span.status.message[:MAX_TEXT]
    for attribute in span.attributes[:MAX_ATTRIBUTES]:
        if attribute.ByteSize() <= 4 * MAX_TEXT and kept.ByteSize() < MAX_SPAN_BYTES // 2:
            kept.attributes.append(attribute)
            kept.dropped_attributes_count -= 1
    return bytes(kept.SerializeToString())


def _texts(attributes: Iterable[KeyValue]) -> Iterator[tuple[str, str]]:
    for attribute in attributes:
        if attribute.value.WhichOneof("value") == "string_value":
            # NUL is legal in protobuf text, but ends a text for some of SQLite's functions.
            yield attribute.key, attribute.value.string_value[:MAX_TEXT].replace("\0", "\ufffd")


def _namespace(pod: str | None, identity: str | None) -> str | None:
    """From `namespace/name`, else from `spiffe://<trust domain>/ns/<namespace>/sa/...`."""
    if pod and "/" in pod:
        return pod.partition("/")[0]
    if identity and len(parts := identity.split("/")) > 4 and parts[3] == "ns":
        return parts[4]
    return None


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:16]


def plain(value: AnyValue, depth: int = 8) -> object:
    """An AnyValue as JSON can say it: bytes in hex, nesting held to `depth`."""
    kind = value.WhichOneof("value")
    if kind is None or depth == 0:
        return None
    if kind == "bytes_value":
        return value.bytes_value.hex()
    if kind == "array_value":
        return [plain(item, depth - 1) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {item.key: plain(item.value, depth - 1) for item in value.kvlist_value.values}
    content = getattr(value, kind)
    if isinstance(content, float) and (content != content or abs(content) == float("inf")):
        return str(content)  # JSON has no word for it
    return content if isinstance(content, str | bool | int | float) else str(content)


def plain_attributes(attributes: Iterable[KeyValue]) -> dict[str, object]:
    return {attribute.key: plain(attribute.value) for attribute in attributes}
