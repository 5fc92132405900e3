"""A splice that lets somebody look on: for ports that ask for request spans, and no others.

The watcher is shown what was moved, after it was moved: it can neither hold nor change a byte. On the
dialler's side the requests come from the near socket, on the acceptor's from the tunnel.
"""

import socket
from collections.abc import Callable

from sidecar.dataplane.links import splice
from sidecar.dataplane.links.splice import TunnelSplice
from sidecar.dataplane.loop.poller import Poller
from sidecar.dataplane.tunnels.tunnel import Tunnel
from sidecar.errors import SidecarError
from sidecar.report import Watcher


class HttpSplice(TunnelSplice):
    """As TunnelSplice, byte for byte."""

    __slots__ = ("_show_far", "_show_near", "_shown", "_watcher")

    def __init__(
        self,
        poller: Poller,
        near: socket.socket,
        tunnel: Tunnel,
        ended: "Callable[[TunnelSplice, str, SidecarError | None], None]",
        watcher: Watcher,
        *,
        outbound: bool = False,
    ) -> None:
        super().__init__(poller, near, tunnel, ended)
        self._watcher, self._shown = watcher, 0
        shows = (watcher.request, watcher.answer)
        self._show_near, self._show_far = shows if outbound else shows[::-1]

    def sent_before(self, held: bytes) -> None:
        """What the near side had said before there was a splice."""
        self._shown = len(held)
        if held:
            self._show_near(memoryview(held))

    def _near_readable(self) -> None:
        super()._near_readable()
        size = self.from_near - self._shown
        if size:
            self._shown = self.from_near
            self._show_near(splice._PAYLOAD[:size])

    def _finish_with(self, size: int) -> None:
        # This may end the link, and who is told of the end wants the last bytes first.
        self._shown = self.from_near
        self._show_near(splice._PAYLOAD[:size])
        super()._finish_with(size)

    def tunnel_data(self, piece: memoryview) -> None:
        mine = self._next is None  # else it is of the tunnel's next link
        super().tunnel_data(piece)
        if mine:
            self._show_far(piece)

    def _finish(self, close: str, error: SidecarError | None, *, cut: bool = False) -> None:
        if not self.over:
            self._watcher.end()
        super()._finish(close, error, cut=cut)
