"""A RequestRecord to the bytes of one OTLP Span (docs/spans.md, "Attributes of requests"). Pure."""

import secrets

from sidecar.report import RequestRecord
from sidecar.telemetry import attributes as a
from sidecar.telemetry import wire
from sidecar.telemetry.encode import claimed_link, span_attribute, span_head
from sidecar.wire.http1 import METHODS

_OTHER = "_OTHER"
_STATUS, _STATUS_ERROR = 15, 2


def encode_request(r: RequestRecord) -> bytes:
    """A child of the link's own span, in its trace. The name is the method alone, and `HTTP` for one
    that is none of HTTP's: names stay few whatever a caller sends."""
    known = r.method in METHODS
    link = r.link
    outbound = link.direction == "outbound"
    error = ""
    if not r.status:
        error = "no_answer"
    elif r.status >= (400 if outbound else 500):  # semantic conventions: 4xx is the caller's error
        error = str(r.status)
    elif r.grpc_status not in ("", "0"):
        error = f"grpc_{r.grpc_status}"
    found: dict[str, str | int | bool | None] = {
        a.HTTP_METHOD: r.method if known else _OTHER,
        a.HTTP_METHOD_ORIGINAL: None if known else r.method[:64],
        a.HTTP_STATUS: r.status or None,
        a.URL_PATH: r.path,
        a.NETWORK_PROTOCOL_NAME: "http",
        a.NETWORK_PROTOCOL_VERSION: r.version,
        a.RPC_GRPC_STATUS: r.grpc_status,
        a.ERROR_TYPE: error,
        a.DIRECTION: link.direction,
        a.SOURCE_IDENTITY: link.source_identity,
        a.DESTINATION_IDENTITY: link.destination_identity,
        a.SERVICE: link.service,
        a.SERVER_PORT: link.destination_port,
    }
    span = span_head(
        link.trace_id,
        secrets.token_bytes(8),
        link.span_id,
        r.method if known else a.HTTP_REQUEST,
        r.start_ns,
        max(r.start_ns, r.end_ns),
        client=outbound,
    )
    parts = [
        span_attribute(name, value)
        for name, value in found.items()
        if value is not None and value != ""
    ]
    if r.claimed_traceparent:
        parts.append(claimed_link(r.claimed_traceparent)[1])
    if error:
        parts.append(wire.length_delimited(_STATUS, wire.integer(3, _STATUS_ERROR)))
    return span + b"".join(parts)
