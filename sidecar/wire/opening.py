"""What a dialler says to open a link, and what the acceptor answers.

OPEN, version 1 (all integers big-endian):

    version    u8   1
    port       u16  destination port in the acceptor's pod
    trace_id   16 bytes, not all zero      the dialler's span: the parent of the acceptor's
    span_id    8 bytes, not all zero
    service    u8 length, then ASCII "name.namespace", or nothing for a pod IP
    choice     u8 length, then ASCII: why this endpoint was chosen

Nothing in it is a claim of identity: who the dialler is comes from its leaf alone. `service` and
`choice` are claims for the trace and decide nothing. A record with another version or with bytes
left over is refused: a later form negotiates its own ALPN.
"""

import struct
from typing import NamedTuple, Self

from sidecar.errors import ProtocolViolation

VERSION = 1
_FIXED = struct.Struct("!BH16s8s")
_ANSWER = struct.Struct("!16s8s")
_NO_TRACE, _NO_SPAN = bytes(16), bytes(8)
_PRINTABLE = frozenset(range(0x21, 0x7F))

DENIED, UNREACHABLE, DRAINING, BAD_PORT, BUSY, LIMIT = 1, 2, 3, 4, 5, 6
REFUSALS = {
    DENIED: "policy_denied",
    UNREACHABLE: "app_unreachable",
    DRAINING: "draining",
    BAD_PORT: "bad_port",
    BUSY: "busy",
    LIMIT: "limit",
}
"""Codes of REFUSE, and the reason slug of each. Part of the wire format: only ever added to."""

APP_RESET, CUT_BY_POLICY, CUT_AT_EXPIRY, SHUTDOWN, MALFORMED, CUT_BY_BAN = 1, 2, 3, 4, 5, 6
RESETS = {
    APP_RESET: "reset",
    CUT_BY_POLICY: "policy",
    CUT_AT_EXPIRY: "expired",
    SHUTDOWN: "drain",
    MALFORMED: "protocol_error",
    CUT_BY_BAN: "banned",
}
"""Codes of RESET, and how a link closed by it is reported."""


class Opening(NamedTuple):
    port: int
    trace_id: bytes
    span_id: bytes
    claimed_service: str = ""
    claimed_choice: str = ""

    def encode(self) -> bytes:
        service, choice = self.claimed_service.encode("ascii"), self.claimed_choice.encode("ascii")
        fixed = _FIXED.pack(VERSION, self.port, self.trace_id, self.span_id)
        return b"%b%c%b%c%b" % (fixed, len(service), service, len(choice), choice)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Raises ProtocolViolation."""
        if len(payload) < _FIXED.size + 2:
            raise ProtocolViolation(f"OPEN of {len(payload)} bytes")
        version, port, trace_id, span_id = _FIXED.unpack_from(payload)
        if version != VERSION:
            raise ProtocolViolation(f"OPEN version {version}")
        if port == 0 or trace_id == _NO_TRACE or span_id == _NO_SPAN:
            raise ProtocolViolation("OPEN with an empty port, trace or span")
        service, at = _text(payload, _FIXED.size)
        choice, at = _text(payload, at)
        if at != len(payload):
            raise ProtocolViolation(f"OPEN with {len(payload) - at} bytes left over")
        return cls(port, trace_id, span_id, service, choice)


def encode_accept(trace_id: bytes, span_id: bytes) -> bytes:
    """The payload of ACCEPT: the acceptor's span context."""
    return _ANSWER.pack(trace_id, span_id)


def decode_accept(payload: bytes) -> tuple[bytes, bytes]:
    """The acceptor's trace and span id; raises ProtocolViolation."""
    if len(payload) != _ANSWER.size:
        raise ProtocolViolation(f"ACCEPT of {len(payload)} bytes")
    trace_id, span_id = _ANSWER.unpack(payload)
    return trace_id, span_id


def encode_code(code: int) -> bytes:
    """The payload of REFUSE and RESET."""
    return bytes((code,))


def decode_code(payload: bytes) -> int:
    """Raises ProtocolViolation. A code unknown to this version is passed on as it is."""
    if len(payload) != 1:
        raise ProtocolViolation(f"reason of {len(payload)} bytes")
    return payload[0]


def _text(payload: bytes, at: int) -> tuple[str, int]:
    start = at + 1
    end = start + payload[at] if at < len(payload) else len(payload) + 1
    raw = payload[start:end]
    if end > len(payload) or not _PRINTABLE.issuperset(raw):
        raise ProtocolViolation("OPEN with a malformed text")
    return raw.decode("ascii"), end
