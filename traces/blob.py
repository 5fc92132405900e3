"""A span's message as the store keeps it: squeezed against a dictionary of what every span says.

A link's span is some 1.3 KiB, most of it names of attributes and values that repeat from span to
span; against the dictionary it is a few hundred bytes. Pure. (RFC 1951; zlib's preset dictionary.)
"""

import zlib
from typing import Final

from opentelemetry.proto.trace.v1.trace_pb2 import Span

_RAW: Final = b"\0"
_DICTIONARY_1: Final = b"\1"
"""First byte of what is kept. Another dictionary gets another number: old files stay readable."""
_MAX_BYTES: Final = 1 << 20
_WINDOW_BITS: Final = -13

# Most frequent last, as zlib wants it. Never change it: a test holds its hash.
_TEXTS: Final = (
    ("error.type", "policy_denied"),
    ("error.message", "no rule of the policies that select this pod allows it"),
    ("podlink.reason", "plaintext_denied"),
    ("podlink.reason", "unmeshed_peer"),
    ("podlink.reason", "external"),
    ("podlink.nearest_rule", "allow[0]: port "),
    ("podlink.policy", "default/"),
    ("podlink.rule", "default:allow-meshed"),
    ("podlink.rule", "allow[0]"),
    ("podlink.security", "plaintext"),
    ("podlink.security", "none"),
    ("podlink.verdict", "denied"),
    ("podlink.verdict", "failed"),
    ("podlink.close", "refused"),
    ("podlink.close", "reset"),
    ("podlink.endpoint.choice", "pod-ip"),
    ("podlink.endpoint.choice", "least-open"),
    ("podlink.direction", "inbound"),
    ("podlink.direction", "outbound"),
    ("podlink.security", "mtls"),
    ("podlink.verdict", "allowed"),
    ("client.address", "10.244.0."),
    ("podlink.source.pod", "default/"),
    ("podlink.source.identity", "spiffe://cluster.local/ns/default/sa/default"),
    ("server.address", "10.96.0."),
    ("server.port", ""),
    ("podlink.service", ".default"),
    ("podlink.destination.address", "10.244.0."),
    ("podlink.destination.port", ""),
    ("podlink.destination.pod", "default/"),
    ("podlink.destination.identity", "spiffe://cluster.local/ns/default/sa/"),
    ("podlink.endpoint.choice", "only"),
    ("podlink.attempts", ""),
    ("podlink.pooled", ""),
    ("podlink.direct", ""),
    ("podlink.close", "fin"),
    ("network.transport", "tcp"),
    ("network.peer.address", "10.244.0."),
    ("network.type", "ipv6"),
    ("network.type", "ipv4"),
    ("network.peer.port", ""),
    ("tls.established", ""),
    ("tls.protocol.name", "tls"),
    ("tls.protocol.version", "1.3"),
    ("tls.cipher", "TLS_AES_128_GCM_SHA256"),
    ("tls.cipher", "TLS_AES_256_GCM_SHA384"),
    ("tls.next_protocol", "podlink/1"),
    ("podlink.certificate.serial", "0123456789abcdef"),
    ("tls.server.hash.sha256", "0123456789ABCDEF"),
    ("tls.server.not_after", "2027-01-01T00:00:00Z"),
    ("tls.client.hash.sha256", ""),
    ("tls.client.not_after", ""),
    ("client.port", ""),
    ("podlink.bytes.sent", ""),
    ("podlink.bytes.received", ""),
    ("podlink.chain.id", "0123456789abcdef"),
    ("podlink.chain.sequence", ""),
    ("podlink.chain.previous", "0123456789abcdef"),
)


def _attribute(key: str, value: str) -> bytes:
    """As protobuf writes an attribute of a Span; every length here is below 128."""
    any_value = b"\x0a%c%b" % (len(value), value.encode()) if value else b"\x18"
    pair = b"\x0a%c%b\x12%c%b" % (len(key), key.encode(), len(any_value), any_value)
    return b"\x4a%c%b" % (len(pair), pair)


DICTIONARY: Final = b"".join(_attribute(*text) for text in _TEXTS)
_FRESH: Final = zlib.compressobj(
    1, zlib.DEFLATED, _WINDOW_BITS, 5, zlib.Z_DEFAULT_STRATEGY, DICTIONARY
)


class BlobUnreadable(ValueError):
    """This was not written by `pack`: the file was changed or is of a later version."""

    reason = "blob_unreadable"


def pack(message: bytes) -> bytes:
    """The bytes to keep for a serialised span."""
    squeezer = _FRESH.copy()
    squeezed = squeezer.compress(message) + squeezer.flush()
    return _DICTIONARY_1 + squeezed if len(squeezed) < len(message) else _RAW + message


def unpack(kept: bytes) -> bytes:
    """The serialised span. Raises BlobUnreadable."""
    if kept[:1] == _RAW:
        return kept[1:]
    if kept[:1] != _DICTIONARY_1:
        raise BlobUnreadable("not a span of this version")
    opener = zlib.decompressobj(_WINDOW_BITS, DICTIONARY)
    try:
        message = opener.decompress(kept[1:], _MAX_BYTES)
    except zlib.error as e:
        raise BlobUnreadable(str(e)) from e
    if not opener.eof:
        raise BlobUnreadable("cut short, or too long")
    return message


def read_span(kept: bytes) -> Span:
    """The span that a row keeps. Raises BlobUnreadable, or protobuf's DecodeError."""
    return Span.FromString(unpack(kept))
