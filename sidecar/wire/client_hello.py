"""Is a fresh inbound connection a peer of ours, somebody else's TLS, or plaintext?

Decided by the ALPN names inside the first TLS record, never by its first byte alone: an app's own
HTTPS must not be mistaken for a tunnel (RFC 8446 section 4.1.2, RFC 7301 section 3.1). A
ClientHello split over several records counts as foreign: ours fits into one.
"""

import enum
from collections.abc import Iterable

_HANDSHAKE, _CLIENT_HELLO = 0x16, 0x01
_EXT_ALPN = 16
_RECORD_HEADER = 5
MAX_HELLO = 16384 + _RECORD_HEADER


class FirstBytes(enum.Enum):
    INCOMPLETE = "incomplete"
    MESH = "mesh"
    """A ClientHello that offers an ALPN name of ours."""
    FOREIGN_TLS = "foreign_tls"
    """A ClientHello that does not: the app's own TLS, so plaintext as far as the mesh goes."""
    PLAINTEXT = "plaintext"


class _Short(Exception):
    """The bytes end before a field does."""


def classify(head: bytes | bytearray | memoryview, alpns: Iterable[bytes]) -> FirstBytes:
    """What the first bytes of a connection are, `alpns` being the names of ours. Never raises; garbage
    is PLAINTEXT or FOREIGN_TLS."""
    if not head:
        return FirstBytes.INCOMPLETE
    if head[0] != _HANDSHAKE:
        return FirstBytes.PLAINTEXT
    if len(head) > 1 and head[1] != 3:
        return FirstBytes.PLAINTEXT
    if len(head) < _RECORD_HEADER:
        return FirstBytes.INCOMPLETE
    size = head[3] << 8 | head[4]
    if not 4 <= size <= MAX_HELLO - _RECORD_HEADER:
        return FirstBytes.PLAINTEXT
    if len(head) > _RECORD_HEADER and head[_RECORD_HEADER] != _CLIENT_HELLO:
        return FirstBytes.PLAINTEXT
    if len(head) < _RECORD_HEADER + size:
        return FirstBytes.INCOMPLETE
    record = bytes(head[_RECORD_HEADER : _RECORD_HEADER + size])
    try:
        offered = _alpn_names(record)
    except _Short:
        return FirstBytes.FOREIGN_TLS
    return FirstBytes.FOREIGN_TLS if offered.isdisjoint(alpns) else FirstBytes.MESH


class _Fields:
    """Reads length-prefixed fields in order; raises _Short past the end."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self._at = raw, 0

    @property
    def left(self) -> int:
        return len(self._raw) - self._at

    def take(self, size: int) -> bytes:
        if self.left < size:
            raise _Short
        self._at += size
        return self._raw[self._at - size : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, length_size: int) -> bytes:
        return self.take(self.number(length_size))


def _alpn_names(record: bytes) -> set[bytes]:
    message = _Fields(record)
    message.take(1)
    hello = _Fields(message.vector(3))
    hello.take(2 + 32)  # legacy_version, random
    hello.vector(1)  # legacy_session_id
    hello.vector(2)  # cipher_suites
    hello.vector(1)  # legacy_compression_methods
    extensions = _Fields(hello.vector(2))
    while extensions.left:
        kind, body = extensions.number(2), extensions.vector(2)
        if kind == _EXT_ALPN:
            names = _Fields(_Fields(body).vector(2))
            found = set[bytes]()
            while names.left:
                found.add(names.vector(1))
            return found
    return set()
