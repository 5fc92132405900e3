"""What is known of a link when it ends: the one record that spans, metrics and logs are made from.

The data plane fills a LinkRecord while the link lives and hands it over once, when the link ends
(and once more, `still_open` set, when it has lived for a minute). Whoever takes it must neither
block nor raise.
"""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

Security = Literal["mtls", "plaintext", "self", "none"]
"""How the bytes travelled. `none`: the link was refused before any could."""

PlaintextReason = Literal[
    "external", "unmeshed_peer", "host_network", "skip_port", "permissive", "self"
]
"""Why an allowed link has no mutual TLS (docs/reasons.md)."""

Verdict = Literal["allowed", "denied", "audited", "failed"]


class LinkRecord:
    """One side of one link. Times are Unix nanoseconds, byte counts are of the app's payload.

    Plain slots, filled in place: one is made per link on the hot path. Ids are bytes (16 for a
    trace, 8 for a span); `remote_*` is the context the other side sent, empty if none came.
    """

    __slots__ = (
        "alpn",
        "attempts",
        "bytes_received",
        "bytes_sent",
        "claimed_traceparent",
        "close",
        "destination_identity",
        "destination_ip",
        "destination_pod",
        "destination_port",
        "direct",
        "direction",
        "end_ns",
        "endpoint_choice",
        "error",
        "nearest_rule",
        "original_ip",
        "original_port",
        "parent_span_id",
        "peer_not_after",
        "peer_serial",
        "peer_sha256",
        "policy",
        "pooled",
        "reason",
        "renewals",
        "renewed",
        "rule",
        "security",
        "service",
        "source_identity",
        "source_ip",
        "source_pod",
        "source_port",
        "span_id",
        "start_ns",
        "still_open",
        "tls_cipher",
        "trace_id",
        "verdict",
    )

    def __init__(self, direction: Literal["outbound", "inbound"]) -> None:
        self.direction = direction
        self.trace_id = b""
        self.span_id = b""
        self.parent_span_id = b""
        self.start_ns = 0
        self.end_ns = 0
        self.still_open = False
        self.security: Security = "none"
        self.verdict: Verdict = "failed"
        self.reason = ""
        """A slug of docs/reasons.md when the link was denied, failed or plaintext."""
        self.error = ""
        """One line for a person, in addition to `reason`."""
        self.policy = ""
        self.rule = ""
        self.nearest_rule = ""
        """Of a denial: the rule that came nearest to allowing it, and what was missing."""
        self.source_ip = ""
        self.source_port = 0
        self.source_pod = ""
        """`namespace/name`, as far as this side knows it."""
        self.source_identity = ""
        self.original_ip = ""
        """What the app dialled: a pod IP, a ClusterIP, or an external address."""
        self.original_port = 0
        self.service = ""
        """`name.namespace` of the Service asked for; empty when a pod IP was dialled."""
        self.destination_ip = ""
        """The endpoint that was chosen and dialled."""
        self.destination_port = 0
        self.destination_pod = ""
        self.destination_identity = ""
        self.endpoint_choice = ""
        """Why this endpoint: see docs/spans.md, `podlink.endpoint.choice`."""
        self.attempts = 0
        self.pooled = False
        """An idle tunnel was used: no handshake was paid for this link."""
        self.direct: bool | None = None
        """The TCP source equals an IP in the peer's leaf: nothing in between rewrote it."""
        self.peer_serial = ""
        self.peer_sha256 = ""
        self.peer_not_after = 0
        """Unix seconds."""
        self.renewed = 0
        """How often the peer has proved a next leaf while the link ran."""
        self.renewals: tuple[str, ...] = ()
        """The newest of those: serial, a space, and when (UTC)."""
        self.tls_cipher = ""
        self.alpn = ""
        """The tunnel protocol that both sides agreed on."""
        self.bytes_sent = 0
        """App payload that travelled from source to destination."""
        self.bytes_received = 0
        """App payload that travelled from destination to source."""
        self.close = ""
        """How it ended: `fin`, `reset`, `drain`, `policy`, `expired`, `refused`, `timeout`..."""
        self.claimed_traceparent = ""


Report = Callable[[LinkRecord], None]


def utc_text(unix_ns: int) -> str:
    """As RFC 3339, in whole seconds."""
    return dt.datetime.fromtimestamp(unix_ns // 1_000_000_000, dt.UTC).strftime(
        "%Y-%m-%dT%H:%M:%SZ"
    )


@dataclass(slots=True)
class RequestRecord:
    """One HTTP request inside a link, seen in passing on one of its sides. What the app and its
    caller said of it is claimed; whose link it travelled on is checked."""

    link: LinkRecord
    method: str
    path: str
    status: int
    """0: no answer was seen before the link ended."""
    grpc_status: str
    version: str
    start_ns: int
    end_ns: int
    claimed_traceparent: str


ReportRequest = Callable[[RequestRecord], None]


class Watcher(Protocol):
    """Looks on while a link's bytes pass. Raises nothing, keeps no view."""

    def request(self, view: memoryview) -> None:
        """Bytes on their way from the link's source to its destination."""

    def answer(self, view: memoryview) -> None:
        """Bytes on their way back."""

    def end(self) -> None:
        """There will be no more."""
