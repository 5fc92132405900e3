"""The frame codec of `podlink/1` and `podlink/2` (docs/protocol.md).

    kind    u8    one of the kinds below
    length  u24   of the payload, big-endian
    payload

DATA may arrive in any number of pieces and is passed on piece by piece; the payload of every other
frame is small, bounded by its kind, and passed on whole. HOT PATH: `FrameReader.feed` runs for
every chunk that arrives.
"""

from collections.abc import Mapping
from typing import Final, Protocol

from sidecar.errors import ProtocolViolation

OPEN, ACCEPT, REFUSE, DATA, END, RESET, PING, PONG, GOAWAY = range(1, 10)
RENEW, CHALLENGE, PROOF, RENEWED, CONTINUE, CONTINUED = range(10, 16)
"""Of `podlink/2` alone."""

KIND_NAMES = {
    OPEN: "OPEN",
    ACCEPT: "ACCEPT",
    REFUSE: "REFUSE",
    DATA: "DATA",
    END: "END",
    RESET: "RESET",
    PING: "PING",
    PONG: "PONG",
    GOAWAY: "GOAWAY",
    RENEW: "RENEW",
    CHALLENGE: "CHALLENGE",
    PROOF: "PROOF",
    RENEWED: "RENEWED",
    CONTINUE: "CONTINUE",
    CONTINUED: "CONTINUED",
}

HEADER = 4
MAX_DATA = (1 << 24) - 1
MAX_OPEN = 4096
MAX_PROOF = 8192
"""A chain of four certificates and a signature: a leaf of ours takes 700 bytes, an intermediate with
RSA 1,300."""
MAX_PAYLOAD: Final = {
    OPEN: MAX_OPEN,
    ACCEPT: 64,
    REFUSE: 64,
    DATA: MAX_DATA,
    END: 0,
    RESET: 64,
    PING: 8,
    PONG: 8,
    GOAWAY: 0,
    RENEW: 32,
    CHALLENGE: 32,
    PROOF: MAX_PROOF,
    RENEWED: 1,
    CONTINUE: 34,
    CONTINUED: 1,
}
LIMITS_1: Final[Mapping[int, int]] = {kind: MAX_PAYLOAD[kind] for kind in range(OPEN, RENEW)}
"""What a reader of `podlink/1` takes."""
LIMITS_2: Final[Mapping[int, int]] = {k: most for k, most in MAX_PAYLOAD.items() if k != PROOF}
"""`podlink/2`, while no proof is awaited: kilobytes are held only for whoever was challenged."""
LIMITS_2_PROOF: Final[Mapping[int, int]] = MAX_PAYLOAD
"""`podlink/2`, from our CHALLENGE to the PROOF."""

FRAMES_BESIDES: Final = 8
"""Frames that one feed may bring beyond those of its TLS records (`tunnel.FRAMES_PER_RECORD`)."""

END_FRAME = bytes((END, 0, 0, 0))
PING_FRAME = bytes((PING, 0, 0, 0))
PONG_FRAME = bytes((PONG, 0, 0, 0))
GOAWAY_FRAME = bytes((GOAWAY, 0, 0, 0))


def encode(kind: int, payload: bytes = b"") -> bytes:
    """One whole frame."""
    return bytes((kind,)) + len(payload).to_bytes(3, "big") + payload


_ANY: Final = 1 << 30


class FrameSink(Protocol):
    """Who takes what a FrameReader found."""

    def data(self, piece: memoryview) -> None:
        """A piece of a DATA payload; valid only during the call."""

    def control(self, kind: int, payload: bytes) -> None:
        """Any other frame, whole."""


class FrameReader:
    """Feed it plaintext as it comes; it calls the sink for every piece and frame in it.

    Raises ProtocolViolation for a kind that `limits` does not list, a payload longer than its kind
    allows, or more frames than `most`, or OPENs than `opens`, in one feed. After that it must not be
    fed again.
    """

    __slots__ = ("_kind", "left", "limits", "partial")

    def __init__(self, limits: Mapping[int, int] = LIMITS_1) -> None:
        self._kind = 0
        self.limits = limits
        """The longest payload of each kind that may come now; set anew when that changes."""
        self.left = 0
        """Payload bytes still to come of the frame in progress; 0 between frames."""
        self.partial = b""
        """A cut header between frames, or what has come of a control payload."""

    def feed(self, view: memoryview, sink: FrameSink, most: int = _ANY, opens: int = _ANY) -> None:
        at, end = 0, len(view)
        while at < end:
            if self.left:
                stop = min(at + self.left, end)
                self.left -= stop - at
                if self._kind == DATA:
                    sink.data(view[at:stop])
                else:
                    self.partial += view[at:stop]
                    if not self.left:
                        payload, self.partial = self.partial, b""
                        sink.control(self._kind, payload)
                at = stop
                continue
            if self.partial or end - at < HEADER:
                take = min(HEADER - len(self.partial), end - at)
                self.partial += view[at : at + take]
                at += take
                if len(self.partial) < HEADER:
                    return
                head, self.partial = self.partial, b""
                kind, size = head[0], head[1] << 16 | head[2] << 8 | head[3]
            else:
                kind = view[at]
                size = view[at + 1] << 16 | view[at + 2] << 8 | view[at + 3]
                at += HEADER
            most -= 1
            opens -= kind == OPEN
            if most < 0 or opens < 0:
                raise ProtocolViolation(
                    "frames by the thousand" if most < 0 else "OPEN before the answer to another"
                )
            limit = self.limits.get(kind)
            if limit is None or size > limit:
                raise ProtocolViolation(
                    f"frame kind {kind} of {size} bytes"
                    if limit is None
                    else f"{KIND_NAMES[kind]} of {size} bytes"
                )
            if size:
                self._kind, self.left = kind, size
            elif kind != DATA:
                sink.control(kind, b"")
