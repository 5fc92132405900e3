"""What a tunnel brings for a link before its app has answered."""

from collections.abc import Callable
from typing import Final

from sidecar.dataplane.tunnels.tunnel import Tunnel
from sidecar.errors import PeerLost, SidecarError
from sidecar.wire.frames import RESET
from sidecar.wire.opening import RESETS, decode_code

MAX_HELD: Final = 4 * 16384


class Held:
    """The tunnel's user meanwhile. Bounded: when it keeps as much as a dialler may send before ACCEPT it
    stops the reading. Until then PING is answered, so that the dialler knows that somebody waits."""

    __slots__ = ("_lost", "_tunnel", "control", "data")

    def __init__(self, tunnel: Tunnel, lost: Callable[[SidecarError], None]) -> None:
        self._tunnel, self._lost = tunnel, lost
        self.data = bytearray()
        self.control: list[tuple[int, bytes]] = []

    def tunnel_data(self, piece: memoryview) -> None:
        self.data += piece
        if len(self.data) >= MAX_HELD:
            self._tunnel.pause()

    def tunnel_control(self, kind: int, payload: bytes) -> None:
        if kind == RESET:
            word = RESETS.get(decode_code(payload), "reset")
            return self._lost(PeerLost(f"the peer ended the link before the app took it: {word}"))
        return self.control.append((kind, payload))  # END, which comes once

    def tunnel_writable(self) -> None:
        """ACCEPT is all that will be written."""

    def tunnel_lost(self, error: SidecarError) -> None:
        self._lost(error)
