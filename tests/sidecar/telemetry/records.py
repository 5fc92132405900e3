"""Link records as the data plane would hand them over."""

import secrets
import time

from sidecar.report import LinkRecord

API = "spiffe://cluster.local/ns/shop/sa/api"
DB = "spiffe://cluster.local/ns/prod/sa/db"


def outbound(**changes: object) -> LinkRecord:
    """An allowed mTLS link from shop/api-1 to the Service db.prod, seen by its source."""
    r = LinkRecord("outbound")
    r.trace_id, r.span_id = secrets.token_bytes(16), secrets.token_bytes(8)
    r.end_ns = time.time_ns()
    r.start_ns = r.end_ns - 5_000_000
    r.security, r.verdict, r.close = "mtls", "allowed", "fin"
    r.policy, r.rule = "prod/db", "allow[0]"
    r.source_ip, r.source_port, r.source_pod, r.source_identity = (
        "10.1.0.7",
        43122,
        "shop/api-1",
        API,
    )
    r.original_ip, r.original_port, r.service = "10.96.0.12", 5432, "db.prod"
    r.destination_ip, r.destination_port = "10.1.0.9", 5433
    r.destination_pod, r.destination_identity = "prod/db-0", DB
    r.endpoint_choice, r.attempts, r.direct = "least-open", 1, True
    r.peer_serial, r.peer_sha256, r.peer_not_after = "5f" * 16, "ab" * 32, 1_800_003_600
    r.tls_cipher, r.alpn = "TLS_AES_128_GCM_SHA256", "podlink/2"
    r.bytes_sent, r.bytes_received = 350, 81_920
    return changed(r, changes)


def inbound_of(other: LinkRecord, **changes: object) -> LinkRecord:
    """The same link seen by its destination."""
    r = LinkRecord("inbound")
    for name in LinkRecord.__slots__:
        if name not in ("direction", "span_id", "endpoint_choice", "attempts", "pooled"):
            setattr(r, name, getattr(other, name))
    r.span_id, r.parent_span_id = secrets.token_bytes(8), other.span_id
    r.original_ip, r.original_port = other.destination_ip, other.destination_port
    r.start_ns += 1_000_000
    return changed(r, changes)


def denied(**changes: object) -> LinkRecord:
    return outbound(
        **{
            "verdict": "denied",
            "security": "none",
            "reason": "policy_denied",
            "error": "no rule allows shop/api",
            "close": "refused",
            "bytes_sent": 0,
            "bytes_received": 0,
            **changes,
        }
    )


def changed(record: LinkRecord, changes: dict[str, object]) -> LinkRecord:
    for name, value in changes.items():
        setattr(record, name, value)
    return record
