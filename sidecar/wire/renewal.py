"""A new leaf for a running tunnel: the frames, and which may come when. `podlink/2` alone.

    RENEW      32 bytes    a nonce: the sender has a new leaf
    CHALLENGE  32 bytes    the nonce of whoever is to believe it
    PROOF      u16 length, then a signature; then once or more: u16 length, then a certificate (DER)
    RENEWED     1 byte     a code: believed from now on, or why not

And over a new tunnel, for an old one in which no proof is heard:

    CONTINUE   u16 the dialler's port of the old one, 32 bytes that only its two ends know
    CONTINUED   1 byte     a code

Either side may begin a renewal, and both at once: the two run beside each other. Of one side's only one
is under way at a time. Nothing here judges a proof: certs.trust.possession does.
"""

import enum
from collections.abc import Sequence

from sidecar.errors import ProtocolViolation
from sidecar.wire.frames import CHALLENGE, KIND_NAMES, MAX_PROOF, PROOF, RENEW, RENEWED

NONCE_BYTES = 32
CHANNEL_BYTES = 32
MAX_CERTIFICATES = 4
_MAX_SIGNATURE = 72
"""ECDSA on P-256, DER."""

BELIEVED, NOT_NOW, UNTRUSTED, NOT_LATER, OTHER_WORKLOAD = range(5)
OUTCOMES = {
    BELIEVED: "believed",
    NOT_NOW: "not_now",
    UNTRUSTED: "untrusted",
    NOT_LATER: "not_later",
    OTHER_WORKLOAD: "other_workload",
}
"""Codes of RENEWED. Part of the wire format: only ever added to."""
WORTH_ANOTHER_TRY = frozenset({NOT_NOW, UNTRUSTED})
"""Outcomes that may be another a moment later: the peer was busy, or has not heard of a new root."""


class Proving(enum.Enum):
    """How far our own renewal is."""

    RESTING = "resting"
    ASKED = "asked"
    PROVED = "proved"


class Judging(enum.Enum):
    """How far the peer's is."""

    RESTING = "resting"
    CHALLENGED = "challenged"


RECEIVABLE: dict[int, frozenset[Proving | Judging]] = {
    RENEW: frozenset({Judging.RESTING}),
    CHALLENGE: frozenset({Proving.ASKED}),
    PROOF: frozenset({Judging.CHALLENGED}),
    RENEWED: frozenset({Proving.ASKED, Proving.PROVED}),
}
"""The states in which each kind may come, of the renewal that it belongs to. RENEWED in place of a
CHALLENGE says why there is none."""


def check_order(kind: int, proving: Proving, judging: Judging) -> None:
    """Raise ProtocolViolation for a frame that nobody asked for."""
    if RECEIVABLE[kind].isdisjoint((proving, judging)):
        raise ProtocolViolation(f"{KIND_NAMES[kind]} that nobody asked for")


def check_nonce(payload: bytes) -> bytes:
    """The payload of RENEW or CHALLENGE; raises ProtocolViolation."""
    if len(payload) != NONCE_BYTES:
        raise ProtocolViolation(f"a nonce of {len(payload)} bytes")
    return payload


def encode_proof(signature: bytes, chain_der: Sequence[bytes]) -> bytes:
    """The payload of PROOF: the signature, then the chain, leaf first."""
    return b"".join(len(each).to_bytes(2, "big") + each for each in (signature, *chain_der))


def fits(chain_der: Sequence[bytes]) -> bool:
    """Whether a proof with this chain is short enough for its frame."""
    return len(encode_proof(bytes(_MAX_SIGNATURE), chain_der)) <= MAX_PROOF


def decode_proof(payload: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """Signature and chain; raises ProtocolViolation."""
    fields: list[bytes] = []
    at = 0
    while at < len(payload):
        start = at + 2
        at = start + int.from_bytes(payload[at:start], "big")
        if at > len(payload) or at == start or len(fields) > MAX_CERTIFICATES:
            raise ProtocolViolation("PROOF with a malformed field")
        fields.append(payload[start:at])
    if len(fields) < 2:
        raise ProtocolViolation("PROOF without a certificate")
    return fields[0], tuple(fields[1:])


def encode_continue(port: int, channel: bytes) -> bytes:
    """The payload of CONTINUE: the dialler's port of the tunnel meant, and what its two ends know."""
    return port.to_bytes(2, "big") + channel


def decode_continue(payload: bytes) -> tuple[int, bytes]:
    """Raises ProtocolViolation."""
    if len(payload) != 2 + CHANNEL_BYTES:
        raise ProtocolViolation(f"CONTINUE of {len(payload)} bytes")
    return int.from_bytes(payload[:2], "big"), payload[2:]


def encode_outcome(code: int) -> bytes:
    """The payload of RENEWED and CONTINUED."""
    return bytes((code,))


def decode_outcome(payload: bytes) -> int:
    """Raises ProtocolViolation. A code unknown to this version is passed on as it is."""
    if len(payload) != 1:
        raise ProtocolViolation(f"an outcome of {len(payload)} bytes")
    return payload[0]
