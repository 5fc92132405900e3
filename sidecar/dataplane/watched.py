"""A splice that lets somebody look on: for ports that ask for request spans, and no others.

The watcher is shown what was moved, after it was moved: it can neither hold nor change a byte.
"""

import socket
from collections.abc import Callable

from sidecar.dataplane import splice
from sidecar.dataplane.poller import Poller
from sidecar.dataplane.splice import TunnelSplice
from sidecar.dataplane.tunnel import Tunnel
from sidecar.errors import SidecarError
from sidecar.report import Watcher


class WatchedSplice(TunnelSplice):
    """As TunnelSplice, byte for byte."""

    __slots__ = ("_shown", "_watcher")

    def __init__(
        self,
        poller: Poller,
        near: socket.socket,
        tunnel: Tunnel,
        ended: "Callable[[TunnelSplice, str, SidecarError | None], None]",
        watcher: Watcher,
    ) -> None:
        super().__init__(poller, near, tunnel, ended)
        self._watcher, self._shown = watcher, 0

    def _near_readable(self) -> None:
        super()._near_readable()
        size = self.from_near - self._shown
        if size:
            self._shown = self.from_near
            self._watcher.answer(splice._PAYLOAD[:size])

    def _finish_with(self, size: int) -> None:
        # This may end the link, and who is told of the end wants the last answer first.
        self._shown = self.from_near
        self._watcher.answer(splice._PAYLOAD[:size])
        super()._finish_with(size)

    def tunnel_data(self, piece: memoryview) -> None:
        mine = self._next is None  # else it is of the tunnel's next link
        super().tunnel_data(piece)
        if mine:
            self._watcher.request(piece)

    def _finish(self, close: str, error: SidecarError | None, *, cut: bool = False) -> None:
        if not self.over:
            self._watcher.end()
        super()._finish(close, error, cut=cut)
