"""Attributes of spans as what docs/spans.md says they are. Pure.

Whoever may send may send a text for a number. A value of another type is left out alone, and named, so
that no page, sum or report meets it and the rest of the span is shown.
"""

from collections.abc import Mapping
from typing import Final

from kit.checked import MAX_PORT

LEFT_OUT: Final = "podlink.left_out"
"""Names of the attributes that were left out, in place of them."""
_MAX_INT64: Final = (1 << 63) - 1
_PORTS: Final = frozenset(
    {"client.port", "server.port", "network.peer.port", "podlink.destination.port"}
)
_NUMBERS: Final = frozenset(
    {
        "http.response.status_code",
        "podlink.attempts",
        "podlink.bytes.received",
        "podlink.bytes.sent",
        "podlink.chain.sequence",
        "podlink.renewed",
        "podlink.dropped.allowed",
        "podlink.dropped.denied",
        "podlink.dropped.export",
        "podlink.dropped.notable",
        "podlink.dropped.requests",
    }
)
_TRUTHS: Final = frozenset({"podlink.direct", "podlink.pooled", "tls.established"})
_TEXTS: Final = frozenset(
    {
        "client.address",
        "error.message",
        "error.type",
        "k8s.namespace.name",
        "k8s.pod.name",
        "podlink.certificate.serial",
        "podlink.close",
        "podlink.destination.address",
        "podlink.destination.identity",
        "podlink.destination.pod",
        "podlink.direction",
        "podlink.endpoint.choice",
        "podlink.nearest_rule",
        "podlink.policy",
        "podlink.reason",
        "podlink.rule",
        "podlink.security",
        "podlink.service",
        "podlink.source.identity",
        "podlink.source.pod",
        "podlink.verdict",
        "server.address",
        "service.name",
        "tls.client.not_after",
        "tls.server.not_after",
    }
)


def understood(said: Mapping[str, object]) -> dict[str, object]:
    """Without the attributes of ours that are of another type than they may be."""
    kept = {name: value for name, value in said.items() if _fits(name, value)}
    if len(kept) < len(said):
        left_out = sorted(name[:64] for name in said if name not in kept)
        kept[LEFT_OUT] = ", ".join(left_out)[:1024]
    return kept


def _fits(name: str, value: object) -> bool:
    if name in _PORTS:
        return _is_number(value, MAX_PORT)
    if name in _NUMBERS:
        return _is_number(value, _MAX_INT64)
    if name in _TRUTHS:
        return isinstance(value, bool)
    return name not in _TEXTS or isinstance(value, str)


def _is_number(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
