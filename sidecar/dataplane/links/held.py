"""What a tunnel brings for a link before its app has answered."""

from collections.abc import Callable

from sidecar.dataplane.tunnels.tunnel import Tunnel
from sidecar.errors import SidecarError


class Held:
    """The tunnel's user meanwhile. Bounded: with the first frame it keeps it stops the reading."""

    __slots__ = ("_lost", "_tunnel", "control", "data")

    def __init__(self, tunnel: Tunnel, lost: Callable[[SidecarError], None]) -> None:
        self._tunnel, self._lost = tunnel, lost
        self.data = bytearray()
        self.control: list[tuple[int, bytes]] = []

    def tunnel_data(self, piece: memoryview) -> None:
        self.data += piece
        self._tunnel.pause()

    def tunnel_control(self, kind: int, payload: bytes) -> None:
        self.control.append((kind, payload))
        self._tunnel.pause()

    def tunnel_writable(self) -> None:
        """ACCEPT is all that will be written."""

    def tunnel_lost(self, error: SidecarError) -> None:
        self._lost(error)
