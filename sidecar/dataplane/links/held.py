"""What a tunnel brings for a link before its app has answered."""

from collections.abc import Callable
from typing import Final

from sidecar.errors import PeerLost, ProtocolViolation, SidecarError
from sidecar.wire.frames import RESET
from sidecar.wire.opening import RESETS, decode_code

MAX_HELD: Final = 4 * 16384


class Held:
    """The tunnel's user meanwhile. Bounded by what a dialler may send before ACCEPT: one more byte ends
    the tunnel. It is read all the time, so PING is answered and a dialler knows that somebody waits.
    """

    __slots__ = ("_lost", "control", "data")

    def __init__(self, lost: Callable[[SidecarError], None]) -> None:
        self._lost = lost
        self.data = bytearray()
        self.control: list[tuple[int, bytes]] = []

    def tunnel_data(self, piece: memoryview) -> None:
        if len(self.data) + len(piece) > MAX_HELD:
            raise ProtocolViolation("more than 64 KiB before ACCEPT")
        self.data += piece

    def tunnel_control(self, kind: int, payload: bytes) -> None:
        if kind == RESET:
            word = RESETS.get(decode_code(payload), "reset")
            return self._lost(PeerLost(f"the peer ended the link before the app took it: {word}"))
        return self.control.append((kind, payload))  # END, which comes once

    def tunnel_writable(self) -> None:
        """ACCEPT is all that will be written."""

    def tunnel_lost(self, error: SidecarError) -> None:
        self._lost(error)
