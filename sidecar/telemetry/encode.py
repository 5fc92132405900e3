"""A LinkRecord to the bytes of one OTLP Span (docs/spans.md). Pure, and warm: one call per link.

Most of a link's attributes are those of the link before it (same pods, same policy, same peer), so
they are encoded once and remembered under the tuple of their values; ids, times, the source port
and the byte counts are encoded each time.
"""

import datetime as dt
import secrets
from functools import lru_cache
from operator import attrgetter

from certs.evidence import chain as evidence
from certs.evidence.chain import Chain, Signed
from kit.contract import VERSION
from sidecar.report import LinkRecord
from sidecar.telemetry import attributes as a
from sidecar.telemetry import wire
from sidecar.telemetry.traceparent import parse_claimed

_REMEMBERED_LINKS = 256
"""Sets of attributes remembered, about 1 KiB each."""
_REMEMBERED_ATTRIBUTES = 1024
"""Single attributes remembered, about 100 bytes each, for a link that is new but for its parts."""

# Field numbers of Span, Span.Link and Status in opentelemetry/proto/trace/v1/trace.proto.
_TRACE_ID, _SPAN_ID, _PARENT, _NAME, _KIND = 1, 2, 4, 5, 6
_START, _END, _ATTRIBUTES, _LINKS, _STATUS, _FLAGS = 7, 8, 9, 13, 15, 16
_KIND_INTERNAL, _KIND_SERVER, _KIND_CLIENT = 1, 2, 3
_STATUS_ERROR = 2
_SAMPLED, _PARENT_KNOWN, _PARENT_REMOTE = 0x1, 0x100, 0x200

_ID16 = wire.tag(_TRACE_ID, 2) + b"\x10"
_ID8 = wire.tag(_SPAN_ID, 2) + b"\x08"
_PARENT8 = wire.tag(_PARENT, 2) + b"\x08"

_repeating = attrgetter(
    "direction",
    "security",
    "verdict",
    "reason",
    "error",
    "policy",
    "rule",
    "nearest_rule",
    "source_ip",
    "source_pod",
    "source_identity",
    "original_ip",
    "original_port",
    "service",
    "destination_ip",
    "destination_port",
    "destination_pod",
    "destination_identity",
    "endpoint_choice",
    "attempts",
    "pooled",
    "direct",
    "renewed",
    "renewals",
    "peer_serial",
    "peer_sha256",
    "peer_not_after",
    "tls_cipher",
    "alpn",
    "close",
    "still_open",
)


def span_attribute(name: str, value: str | int | bool) -> bytes:
    return wire.length_delimited(_ATTRIBUTES, wire.key_value(name, value))


_LEN_KEY = wire.text(1, a.CLIENT_PORT), wire.text(1, a.BYTES_SENT), wire.text(1, a.BYTES_RECEIVED)
_ATTRIBUTE_TAG = wire.tag(_ATTRIBUTES, 2)


def _number_attribute(key: bytes, number: int) -> bytes:
    """As span_attribute, from an encoded key; every length here is below 128: one byte."""
    digits = wire.varint(number)
    size = len(digits) + 1
    return b"%b%c%b\x12%c\x18%b" % (_ATTRIBUTE_TAG, len(key) + 2 + size, key, size, digits)


_ONE_PREVIOUS = wire.key_value(a.CHAIN_PREVIOUS, "0" * 64)
_PREVIOUS_HEAD = _ATTRIBUTE_TAG + wire.varint(len(_ONE_PREVIOUS)) + _ONE_PREVIOUS[:-64]
_SEQUENCE_KEY = wire.text(1, a.CHAIN_SEQUENCE)


class SpanEncoder:
    """Encodes records, remembering what repeats. Not for sharing between threads.

    With a chain every record is taken into it in the order of the calls, and its span says its number
    and the hash before it.
    """

    def __init__(self, chain: Chain | None = None) -> None:
        self._links: dict[tuple[object, ...], tuple[bytes, bytes]] = {}
        self._attributes: dict[tuple[str, str | int | bool], tuple[bytes, bytes]] = {}
        self._chain = chain
        self._chain_id = span_attribute(a.CHAIN_ID, chain.id.hex()) if chain is not None else b""

    def encode(self, record: LinkRecord) -> bytes:
        """The bytes of one Span message; a record with `still_open` becomes `link opened`."""
        values = _repeating(record)
        repeated = self._links.get(values)
        if repeated is None:
            repeated, worth_remembering = self._encode_repeating(record)
            if len(self._links) >= _REMEMBERED_LINKS:
                self._links.clear()
            if worth_remembering:
                self._links[values] = repeated
        port_key, sent_key, received_key = _LEN_KEY
        ids, head = _identify(record)
        # Whole microseconds: some stores keep no more, and the chain must read the same from them.
        start_ns = record.start_ns // 1000 * 1000
        end_ns = max(record.end_ns // 1000 * 1000, start_ns)
        own = head + wire.fixed64(_START, start_ns) + wire.fixed64(_END, end_ns) + repeated[0]
        if record.source_port:
            own += _number_attribute(port_key, record.source_port)
        own += _number_attribute(sent_key, record.bytes_sent)
        own += _number_attribute(received_key, record.bytes_received)
        claimed = b""
        if record.claimed_traceparent:
            claimed, link = claimed_link(record.claimed_traceparent)
            own += link
        if self._chain is not None:
            numbers = (record.source_port, record.bytes_sent, record.bytes_received)
            sequence, previous = self._chain.append(
                ids, (start_ns, end_ns), numbers, repeated[1], claimed
            )
            own += self._chain_id + _number_attribute(_SEQUENCE_KEY, sequence)
            own += _PREVIOUS_HEAD + previous.hex().encode()
        return own

    def _encode_repeating(self, record: LinkRecord) -> tuple[tuple[bytes, bytes], bool]:
        """The bytes with their digest, and whether every text is short enough to be remembered."""
        short = True
        known = self._attributes
        if len(known) >= _REMEMBERED_ATTRIBUTES:
            known.clear()
        parts, hashed = [], []
        attributes = _attributes(record)
        for item in attributes.items():
            value = item[1]
            if value is None or value == "":
                continue
            part = known.get(item)  # type: ignore[arg-type]  # its value is not None
            if part is None:
                name = item[0]
                long = isinstance(value, str) and len(value) > wire.MAX_TEXT
                if long:
                    short, value = False, str(value)[: wire.MAX_TEXT]
                part = span_attribute(name, value), evidence.canonical(name, value)
                if not long:
                    known[name, value] = part
            parts.append(part[0])
            hashed.append(part[1])
        if record.verdict in ("denied", "failed"):
            message = wire.text(2, record.error or record.reason) + wire.integer(3, _STATUS_ERROR)
            parts.append(wire.length_delimited(_STATUS, message))
        digest = b""
        if self._chain is not None:
            digest = evidence.digest_of(a.LINK_OPENED if record.still_open else a.LINK, hashed)
        return (b"".join(parts), digest), short


_OPENED = wire.text(_NAME, a.LINK_OPENED) + wire.integer(_KIND, _KIND_INTERNAL)
_OUTBOUND = wire.text(_NAME, a.LINK) + wire.integer(_KIND, _KIND_CLIENT)
_INBOUND = wire.text(_NAME, a.LINK) + wire.integer(_KIND, _KIND_SERVER)
_FLAGS_ROOT = wire.fixed32(_FLAGS, _SAMPLED | _PARENT_KNOWN)
_FLAGS_CHILD = wire.fixed32(_FLAGS, _SAMPLED | _PARENT_KNOWN | _PARENT_REMOTE)


_Ids = tuple[bytes, bytes, bytes]


def _identify(record: LinkRecord) -> tuple[_Ids, bytes]:
    """Trace, span and parent id; and the span's ids, name, kind and flags. A missing id is drawn
    here: a link without one is no less real.

    Only an inbound link inside the tunnel has a parent, the peer's own span: nobody else's word
    ever places one of our spans below another (threat model, row 42).
    """
    trace_id = record.trace_id if len(record.trace_id) == 16 else secrets.token_bytes(16)
    span_id = record.span_id if len(record.span_id) == 8 else secrets.token_bytes(8)
    if record.still_open:
        own_id = secrets.token_bytes(8)
        head = (_ID16, trace_id, _ID8, own_id, _PARENT8, span_id, _OPENED, _FLAGS_ROOT)
        return (trace_id, own_id, span_id), b"".join(head)
    if record.direction == "outbound":
        return (trace_id, span_id, b""), b"".join(
            (_ID16, trace_id, _ID8, span_id, _OUTBOUND, _FLAGS_ROOT)
        )
    if len(record.parent_span_id) == 8 and record.security != "plaintext":
        parent = record.parent_span_id
        head = (_ID16, trace_id, _ID8, span_id, _PARENT8, parent, _INBOUND, _FLAGS_CHILD)
        return (trace_id, span_id, parent), b"".join(head)
    return (trace_id, span_id, b""), b"".join(
        (_ID16, trace_id, _ID8, span_id, _INBOUND, _FLAGS_ROOT)
    )


def claimed_link(raw_header: str) -> tuple[bytes, bytes]:
    """The claimed ids, and the span link that tells of them; both empty if there are none."""
    claimed = parse_claimed(raw_header)
    if claimed is None:
        return b"", b""
    link = (
        wire.length_delimited(1, claimed.trace_id)
        + wire.length_delimited(2, claimed.span_id)
        + wire.length_delimited(4, wire.key_value(a.CLAIMED, True))
        + wire.fixed32(6, claimed.flags | _PARENT_KNOWN | _PARENT_REMOTE)
    )
    return claimed.trace_id + claimed.span_id, wire.length_delimited(_LINKS, link)


def span_head(
    trace_id: bytes,
    span_id: bytes,
    parent: bytes,
    name: str,
    start_ns: int,
    end_ns: int,
    *,
    client: bool = False,
) -> bytes:
    """Ids, name, kind, flags and times of a SERVER (or CLIENT) span below another one of ours."""
    return b"".join(
        (
            _ID16,
            trace_id,
            _ID8,
            span_id,
            _PARENT8,
            parent,
            wire.text(_NAME, name),
            wire.integer(_KIND, _KIND_CLIENT if client else _KIND_SERVER),
            wire.fixed64(_START, start_ns),
            wire.fixed64(_END, end_ns),
            _FLAGS_ROOT,
        )
    )


def _attributes(r: LinkRecord) -> dict[str, str | int | bool | None]:
    """The attributes that repeat from link to link, in the order of their names, as the chain hashes
    them; None and empty text are left out."""
    outbound = r.direction == "outbound"
    failed = r.verdict in ("denied", "failed")
    mtls = r.security == "mtls"
    peer = r.destination_ip if outbound else r.source_ip
    sha256 = r.peer_sha256.upper()  # semantic conventions: hashes in upper case
    not_after = _utc(r.peer_not_after) if r.peer_not_after else None
    return {
        a.CLIENT_ADDRESS: r.source_ip,
        a.ERROR_MESSAGE: r.error,
        a.ERROR_TYPE: (r.reason or "unknown") if failed else None,
        a.NETWORK_PEER_ADDRESS: peer,
        a.NETWORK_PEER_PORT: (r.destination_port or None) if outbound else None,
        a.NETWORK_TRANSPORT: "tcp",
        a.NETWORK_TYPE: ("ipv6" if ":" in peer else "ipv4") if peer else None,
        a.ATTEMPTS: r.attempts if outbound else None,
        a.CERTIFICATE_SERIAL: r.peer_serial,
        a.CLOSE: r.close,
        a.DESTINATION_ADDRESS: r.destination_ip,
        a.DESTINATION_IDENTITY: r.destination_identity,
        a.DESTINATION_POD: r.destination_pod,
        a.DESTINATION_PORT: r.destination_port or None,
        a.DIRECT: r.direct,
        a.DIRECTION: r.direction,
        a.ENDPOINT_CHOICE: r.endpoint_choice,
        a.NEAREST_RULE: r.nearest_rule,
        a.POLICY: r.policy,
        a.POOLED: r.pooled if outbound else None,
        a.REASON: r.reason,
        a.RENEWALS: ", ".join(r.renewals),
        a.RENEWED: r.renewed or None,
        a.RULE: r.rule,
        a.SECURITY: r.security,
        a.SERVICE: r.service,
        a.SOURCE_IDENTITY: r.source_identity,
        a.SOURCE_POD: r.source_pod,
        a.VERDICT: r.verdict,
        a.SERVER_ADDRESS: r.original_ip,
        a.SERVER_PORT: r.original_port or None,
        a.TLS_CIPHER: r.tls_cipher,
        a.TLS_CLIENT_SHA256: None if outbound else sha256,
        a.TLS_CLIENT_NOT_AFTER: None if outbound else not_after,
        a.TLS_ESTABLISHED: True if mtls else None,
        a.TLS_NEXT_PROTOCOL: r.alpn,
        a.TLS_PROTOCOL_NAME: "tls" if mtls else None,
        a.TLS_PROTOCOL_VERSION: "1.3" if mtls else None,
        a.TLS_SERVER_SHA256: sha256 if outbound else None,
        a.TLS_SERVER_NOT_AFTER: not_after if outbound else None,
    }


@lru_cache(maxsize=64)
def _utc(unix_s: int) -> str:
    try:
        return dt.datetime.fromtimestamp(unix_s, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return str(unix_s)


def encode_checkpoint(chain: Chain, statement: str, signed: Signed, at_ns: int) -> bytes:
    """The span `chain checkpoint`: the workload's signature over how far its chain has come."""
    return (
        _ID16
        + secrets.token_bytes(16)
        + _ID8
        + secrets.token_bytes(8)
        + wire.text(_NAME, a.CHAIN_CHECKPOINT)
        + wire.integer(_KIND, _KIND_INTERNAL)
        + wire.fixed64(_START, at_ns)
        + wire.fixed64(_END, at_ns)
        + span_attribute(a.CHAIN_ID, chain.id.hex())
        + span_attribute(a.CHAIN_SEQUENCE, chain.sequence)
        + b"".join(
            wire.length_delimited(_ATTRIBUTES, wire.long_key_value(name, value))
            for name, value in (
                (a.CHAIN_STATEMENT, statement),
                (a.CHAIN_SIGNATURE, signed.signature),
                (a.CHAIN_CERTIFICATES, signed.certificates),
            )
        )
        + _FLAGS_ROOT
    )


def encode_drops(counts: dict[str, int], start_ns: int, end_ns: int) -> bytes:
    """The span `spans dropped`: evidence that evidence is missing."""
    return (
        _ID16
        + secrets.token_bytes(16)
        + _ID8
        + secrets.token_bytes(8)
        + wire.text(_NAME, a.SPANS_DROPPED)
        + wire.integer(_KIND, _KIND_INTERNAL)
        + wire.fixed64(_START, start_ns)
        + wire.fixed64(_END, end_ns)
        + b"".join(span_attribute(name, count) for name, count in counts.items())
        + _FLAGS_ROOT
    )


_SCOPE_FIELD = wire.length_delimited(1, wire.text(1, a.SCOPE) + wire.text(2, VERSION))


_SCOPE_SPANS_TAG, _RESOURCE_SPANS_TAG = wire.tag(2, 2), wire.tag(1, 2)


def framed(span: bytes) -> bytes:
    """The span as a field of ScopeSpans, as export_request wants it."""
    return wire.length_delimited(2, span)


def export_request(resource: bytes, framed_spans: list[bytes]) -> bytes:
    """An ExportTraceServiceRequest of one resource (from `resource.py`) and one scope. The spans
    are framed beforehand, so that this, which nothing can interrupt, only joins bytes."""
    scope_size = len(_SCOPE_FIELD) + sum(map(len, framed_spans))
    scope_head = _SCOPE_SPANS_TAG + wire.varint(scope_size) + _SCOPE_FIELD
    whole_size = len(resource) + len(scope_head) - len(_SCOPE_FIELD) + scope_size
    head = (_RESOURCE_SPANS_TAG, wire.varint(whole_size), resource, scope_head)
    return b"".join((*head, *framed_spans))
