"""An OTLP request to rows of the store. Pure.

What arrives was written by whoever could reach the port: every value is data, none is trusted to be
short, well-formed or of the expected type. Text is cut, numbers are held to what SQLite can keep,
and a span with impossible ids is refused, alone.
"""

import hashlib
import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

from certs.evidence.chain import CHECKPOINT
from certs.ledger import BAN_LIFTED, BANNED, NAMES, ROTATED
from certs.trust.identity import IdentityMalformed, WorkloadIdentity

MAX_TEXT = 1024
"""Characters kept of a text in a column."""
MAX_NAME = 320
"""Likewise where it names an edge or a way: `namespace/name` takes 317."""
MAX_SPAN_BYTES = 16 * 1024
"""Bytes of one span that are kept; of a longer one only its head (ids, name, times, status) is, and what
of its attributes is short. Ours take 2 KiB, a checkpoint with its certificates 4."""
MAX_RESOURCE_BYTES = 8 * 1024
SECURITIES = frozenset({"mtls", "plaintext", "self", "none"})
VERDICTS = frozenset({"allowed", "denied", "audited", "failed"})
_CHAIN = re.compile(r"[0-9a-f]{32}", re.ASCII)
MAX_ATTRIBUTES = 128
_MAX_INT64 = (1 << 63) - 1

LINK, LINK_OPENED = "link", "link opened"
LINK_NAMES = frozenset({LINK, LINK_OPENED})
LEDGER = frozenset(NAMES)
UNBANNED = "ban lifted"
_OWN = {"outbound": "podlink.source.identity", "inbound": "podlink.destination.identity"}
"""Which end a side is itself."""
_NOTABLE = LEDGER | {CHECKPOINT, ROTATED}
"""Besides links that are not allowed mTLS: what is told of them is deleted last."""


class EdgeKey(NamedTuple):
    """Who talks to whom, and what was asked for. An end is known by the best name there is: its
    identity, else its pod, else (a destination) the Service, else its address."""

    source_kind: str
    source: str
    source_namespace: str
    destination_kind: str
    destination: str
    destination_namespace: str
    service: str
    port: int


class WayKey(NamedTuple):
    """How a link went, and what decided it."""

    security: str
    verdict: str
    reason: str
    policy: str
    rule: str
    nearest_rule: str


class Certificate(NamedTuple):
    """One line of the CA's ledger."""

    event: str
    """`issued`, `refused`, `banned` or `ban lifted`."""
    at_ns: int
    serial: str
    identity: str
    pod: str
    pod_uid: str
    node: str
    issuer: str
    not_before_ns: int
    not_after_ns: int
    reason: str


class SpanRow(NamedTuple):
    digest: bytes
    """Of sender, resource and span: the same span sent twice (a retry after a time-out) is one span.
    Anything else is kept: a forged span with a real one's ids must not keep the real one out."""
    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes | None
    name: str
    start_ns: int
    end_ns: int
    direction: str
    edge: EdgeKey | None
    way: WayKey | None
    source_pod: str
    destination_pod: str
    bytes_sent: int
    bytes_received: int
    is_ordinary: bool
    chain: str
    sequence: int
    certificate: Certificate | None
    own: str | None
    """The identity of the side that tells, as it says itself; None for what is of no side of a link."""
    span: bytes


@dataclass(frozen=True, slots=True)
class ResourceRows:
    """The spans of one resource, which one sender vouches for (or nobody)."""

    digest: bytes
    resource: bytes
    sender: str
    rows: list[SpanRow]


@dataclass(frozen=True, slots=True)
class Rows:
    resources: list[ResourceRows]
    rejected: Counter[str]
    """Spans that were left out, by reason: `ids` (of another length), `malformed` (a link's security or
    verdict is none of ours), `not_its_own` (the sender may not say this)."""


Believes = Callable[[str, str, SpanRow], bool]
"""May this sender say this? By sender, the resource's namespace, and the row (`traces.vouch`)."""


def rows_of(
    request: ExportTraceServiceRequest, sender: str = "", believes: Believes | None = None
) -> Rows:
    """Every span of the request that may be kept. `sender` is the identity that the connection
    proved, or empty; without `believes` anybody may say anything."""
    found: list[ResourceRows] = []
    rejected = Counter[str]()
    for resource_spans in request.resource_spans:
        resource = resource_spans.resource.SerializeToString()
        if len(resource) > MAX_RESOURCE_BYTES:
            resource = b""
        digest = _digest(sender.encode() + b"\0" + resource)
        namespace = ""
        if believes is not None:
            namespace = _text_of(resource_spans.resource.attributes, "k8s.namespace.name")
        rows = []
        for span in _spans_of(resource_spans):
            if len(span.trace_id) != 16 or len(span.span_id) != 8:
                rejected["ids"] += 1
                continue
            row = _row(span, digest)
            if row.way is not None and not _is_ours(row.way):
                rejected["malformed"] += 1
                continue
            if believes is not None and not believes(sender, namespace, row):
                rejected["not_its_own"] += 1
                continue
            rows.append(row)
        found.append(ResourceRows(digest, resource, sender, rows))
    return Rows(found, rejected)


def count_spans(request: ExportTraceServiceRequest) -> int:
    return sum(1 for resource_spans in request.resource_spans for _ in _spans_of(resource_spans))


def _spans_of(resource_spans: ResourceSpans) -> Iterator[Span]:
    for scope_spans in resource_spans.scope_spans:
        yield from scope_spans.spans


def _row(span: Span, resource_digest: bytes) -> SpanRow:
    blob = _bounded_blob(span)
    name = span.name
    texts: dict[str, str] = {}
    numbers: dict[str, int] = {}
    edge = way = certificate = None
    direction = ""
    flags: dict[str, bool] = {}
    _read(span.attributes, texts, numbers, flags)
    start_ns = min(span.start_time_unix_nano, _MAX_INT64)
    end_ns = min(span.end_time_unix_nano, _MAX_INT64)
    if name in LINK_NAMES:
        direction = texts.get("podlink.direction", "")
        if direction in _OWN:
            edge, way = _edge(texts, numbers), _way(texts)
        else:
            direction = ""
    elif name in LEDGER:
        certificate = _certificate(name, texts, flags, end_ns)
    side = _OWN.get(texts.get("podlink.direction", ""))
    return SpanRow(
        _digest(resource_digest + blob),
        span.trace_id,
        span.span_id,
        span.parent_span_id if len(span.parent_span_id) == 8 else None,
        name[:MAX_TEXT],
        start_ns,
        end_ns,
        direction,
        edge,
        way,
        texts.get("podlink.source.pod", ""),
        texts.get("podlink.destination.pod", ""),
        max(0, numbers.get("podlink.bytes.sent", 0)),
        max(0, numbers.get("podlink.bytes.received", 0)),
        _is_ordinary(name, way),
        chain if _CHAIN.fullmatch(chain := texts.get("podlink.chain.id", "")) else "",
        max(0, numbers.get("podlink.chain.sequence", 0)),
        certificate,
        None if side is None else texts.get(side, ""),
        blob,
    )


def _is_ordinary(name: str, way: WayKey | None) -> bool:
    """Whether it is deleted first when there is too much: allowed mTLS links, and what is told of
    requests within links or of anything else, since apps decide how much that is."""
    if way is None:
        return name not in _NOTABLE
    return way.verdict == "allowed" and way.security in ("mtls", "self")


def _edge(texts: Mapping[str, str], numbers: Mapping[str, int]) -> EdgeKey:
    identity = _identity(texts.get("podlink.source.identity", ""))
    pod = texts.get("podlink.source.pod", "")[:MAX_NAME]
    if identity:
        source_kind, source = "identity", identity
    elif pod:
        source_kind, source = "pod", pod
    else:
        source_kind, source = "address", _address(texts.get("client.address", ""))
    source_namespace = _namespace(pod, identity)
    identity = _identity(texts.get("podlink.destination.identity", ""))
    pod = texts.get("podlink.destination.pod", "")[:MAX_NAME]
    service = texts.get("podlink.service", "")[:MAX_NAME]
    if identity:
        destination_kind, destination = "identity", identity
    elif pod:
        destination_kind, destination = "pod", pod
    elif service:
        destination_kind, destination = "service", service
    else:
        destination_kind = "address"
        destination = _address(texts.get("podlink.destination.address", ""))
        destination = destination or _address(texts.get("server.address", ""))
    destination_namespace = _namespace(pod, identity)
    if not destination_namespace and service:
        destination_namespace = service.rpartition(".")[2]
    port = numbers.get("podlink.destination.port") or numbers.get("server.port", 0)
    return EdgeKey(
        source_kind,
        source,
        source_namespace,
        destination_kind,
        destination,
        destination_namespace,
        service,
        port if 0 <= port <= 65535 else 0,
    )


def _way(texts: Mapping[str, str]) -> WayKey:
    return WayKey(
        texts.get("podlink.security", ""),
        texts.get("podlink.verdict", ""),
        texts.get("podlink.reason", "")[:MAX_NAME],
        texts.get("podlink.policy", "")[:MAX_NAME],
        texts.get("podlink.rule", "")[:MAX_NAME],
        texts.get("podlink.nearest_rule", "")[:MAX_NAME],
    )


def _is_ours(way: WayKey) -> bool:
    return way.security in SECURITIES and way.verdict in VERDICTS


@lru_cache(maxsize=4096)
def _identity(text: str) -> str:
    """The text if it names a workload; else empty: then the end goes by its next best name."""
    try:
        return str(WorkloadIdentity.parse(text))
    except IdentityMalformed:
        return ""


@lru_cache(maxsize=4096)
def _address(text: str) -> str:
    """In canonical form; empty if it is none."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""


def _certificate(
    name: str, texts: Mapping[str, str], flags: Mapping[str, bool], at_ns: int
) -> Certificate:
    event = name.removeprefix("certificate ")
    if name == BANNED and flags.get(BAN_LIFTED):
        event = UNBANNED
    return Certificate(
        event,
        at_ns,
        texts.get("podlink.certificate.serial", ""),
        texts.get("podlink.certificate.identity", ""),
        texts.get("podlink.certificate.pod", ""),
        texts.get("podlink.certificate.pod_uid", ""),
        texts.get("podlink.certificate.node", ""),
        texts.get("podlink.certificate.issuer", ""),
        _nanoseconds(texts.get("podlink.certificate.not_before", "")),
        _nanoseconds(texts.get("podlink.certificate.not_after", "")),
        texts.get("podlink.reason", ""),
    )


def _nanoseconds(raw_time: str) -> int:
    """An RFC 3339 time in UTC as Unix nanoseconds; 0 for what is none."""
    import datetime as dt

    try:
        at = dt.datetime.fromisoformat(raw_time)
        ns = max(0, int(at.timestamp())) * 1_000_000_000 if at.tzinfo is not None else 0
        return min(ns, _MAX_INT64)  # the year 9999 is beyond what SQLite keeps
    except (ValueError, OverflowError):
        return 0


def _bounded_blob(span: Span) -> bytes:
    if len(span.attributes) <= MAX_ATTRIBUTES:
        blob: bytes = span.SerializeToString()
        if len(blob) <= MAX_SPAN_BYTES:
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


def _read(
    attributes: Iterable[KeyValue],
    texts: dict[str, str],
    numbers: dict[str, int],
    flags: dict[str, bool],
) -> None:
    """Text, whole numbers, yes or no, by name; of a name that comes twice the last counts."""
    for attribute in attributes:
        value = attribute.value
        kind = value.WhichOneof("value")
        if kind == "string_value":
            text = value.string_value[:MAX_TEXT]
            # NUL is legal in protobuf text, but ends a text for some of SQLite's functions.
            texts[attribute.key] = text.replace("\0", "\ufffd") if "\0" in text else text
        elif kind == "int_value":
            numbers[attribute.key] = value.int_value
        elif kind == "bool_value":
            flags[attribute.key] = value.bool_value


def _text_of(attributes: Sequence[KeyValue], name: str) -> str:
    """Of a name that comes twice the last counts, as it does where it is shown."""
    return next((a.value.string_value for a in reversed(attributes) if a.key == name), "")


def _namespace(pod: str | None, identity: str | None) -> str:
    """From `namespace/name`, else from `spiffe://<trust domain>/ns/<namespace>/sa/...`."""
    if pod and "/" in pod:
        return pod.partition("/")[0]
    if identity and len(parts := identity.split("/")) > 4 and parts[3] == "ns":
        return parts[4]
    return ""


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
