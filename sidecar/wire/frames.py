"""The frame codec of `podlink/1` (docs/protocol.md).

    kind    u8    one of the kinds below
    length  u24   of the payload, big-endian
    payload

DATA may arrive in any number of pieces and is passed on piece by piece; the payload of every other
frame is small, bounded by its kind, and passed on whole. HOT PATH: `FrameReader.feed` runs for
every chunk that arrives.
"""

from typing import Protocol

from sidecar.errors import ProtocolViolation

OPEN, ACCEPT, REFUSE, DATA, END, RESET, PING, PONG, GOAWAY = range(1, 10)

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
}

HEADER = 4
MAX_DATA = (1 << 24) - 1
MAX_OPEN = 4096
MAX_PAYLOAD = {
    OPEN: MAX_OPEN,
    ACCEPT: 64,
    REFUSE: 64,
    DATA: MAX_DATA,
    END: 0,
    RESET: 64,
    PING: 8,
    PONG: 8,
    GOAWAY: 0,
}

END_FRAME = bytes((END, 0, 0, 0))
PING_FRAME = bytes((PING, 0, 0, 0))
PONG_FRAME = bytes((PONG, 0, 0, 0))
GOAWAY_FRAME = bytes((GOAWAY, 0, 0, 0))


def encode(kind: int, payload: bytes = b"") -> bytes:
    """One whole frame."""
    return bytes((kind,)) + len(payload).to_bytes(3, "big") + payload


def put_data_header(buffer: bytearray, size: int) -> None:
    """Write the header of a DATA frame of `size` bytes into the first four bytes of `buffer`."""
    buffer[0] = DATA
    buffer[1] = size >> 16
    buffer[2] = size >> 8 & 0xFF
    buffer[3] = size & 0xFF


class FrameSink(Protocol):
    """Who takes what a FrameReader found."""

    def data(self, piece: memoryview) -> None:
        """A piece of a DATA payload; valid only during the call."""

    def control(self, kind: int, payload: bytes) -> None:
        """Any other frame, whole."""


class FrameReader:
    """Feed it plaintext as it comes; it calls the sink for every piece and frame in it.

    Raises ProtocolViolation for an unknown kind or a payload longer than its kind allows. After
    that it must not be fed again.
    """

    __slots__ = ("_kind", "left", "partial")

    def __init__(self) -> None:
        self._kind = 0
        self.left = 0
        """Payload bytes still to come of the frame in progress; 0 between frames."""
        self.partial = b""
        """A cut header between frames, or what has come of a control payload."""

    @property
    def between_frames(self) -> bool:
        return not self.left and not self.partial

    def feed(self, view: memoryview, sink: FrameSink) -> None:
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
            limit = MAX_PAYLOAD.get(kind)
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
