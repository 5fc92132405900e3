"""One TCP connection in progress: to a peer, to the app, or to an address outside the mesh."""

import os
import socket
from collections.abc import Callable
from typing import Final

from sidecar.dataplane.loop.deadlines import Deadline
from sidecar.dataplane.plane import Plane
from sidecar.dataplane.sources import NOT_BOUND, SHOWN
from sidecar.errors import EndpointUnreachable, Overloaded, SidecarError
from sidecar.sockets import (
    OUT_OF_RESOURCES,
    NotBound,
    connect_error,
    is_connected,
    start_connect,
)
from sidecar.source_address import Source

CONNECT_TIMEOUT_S: Final = 1.5
"""Inside a cluster a pod answers in milliseconds or is gone. Longer than a second, after which the
kernel repeats a lost SYN (RFC 6298, section 2.1): one drop costs a link some time, not its life. Only
where there is another endpoint to try."""
ALONE_TIMEOUT_S: Final = 10.0
"""The same where there is no other: a pod IP, the last endpoint of a Service, an external address."""
APP_TIMEOUT_S: Final = 125.0
"""An app whose queue of waiting connections is full lets our SYN go unanswered, and the kernel asks
again for two minutes (tcp(7), tcp_syn_retries), as it would for the client itself. A port where nobody
listens answers at once."""


Answered = Callable[[socket.socket | None, SidecarError | None], None]


class Connect:
    """One TCP connection in progress. `done(sock, None)` or `done(None, error)` is called once,
    perhaps before `start` returns: on loopback connections mostly come about at once.
    With `source`, an app sees the address that it stands for; if that cannot be, the pod's own.
    """

    __slots__ = (
        "_address",
        "_deadline",
        "_done",
        "_plane",
        "_poller",
        "_sock",
        "_source",
        "_timeout_s",
    )

    def __init__(
        self,
        plane: Plane,
        ip: str,
        port: int,
        timeout_s: float,
        done: Answered,
        source: Source | None = None,
    ) -> None:
        self._plane, self._poller, self._done = plane, plane.poller, done
        self._address, self._timeout_s, self._source = (ip, port), timeout_s, source
        self._sock: socket.socket | None = None
        self._deadline: Deadline | None = None

    def start(self) -> None:
        ip, port = self._address
        try:
            sock = _begin(self._plane, ip, port, self._source)
        except OSError as e:
            if e.errno in OUT_OF_RESOURCES:
                error: SidecarError = Overloaded(f"no descriptor for a connection to {self._to}")
            else:
                error = EndpointUnreachable(f"{self._to}: {e.strerror}")
            return self._done(None, error)
        if is_connected(sock):
            return self._deliver(sock)
        self._sock = sock
        self._deadline = Deadline(self._poller, self._timeout_s, self._too_late)
        return self._poller.add_writer(sock.fileno(), self._writable)

    @property
    def _to(self) -> str:
        return f"{self._address[0]} port {self._address[1]}"

    def _deliver(self, sock: socket.socket) -> None:
        try:
            self._done(sock, None)
        except BaseException:  # whoever was to have it has failed, and may not know of it
            self._poller.forget(sock.fileno())
            sock.close()
            raise

    @property
    def pending(self) -> bool:
        """Whether `done` is still to be called."""
        return self._sock is not None

    def abandon(self) -> None:
        """Nobody waits for the answer any more."""
        if (sock := self._forget()) is not None:
            sock.close()

    def _writable(self) -> None:
        assert self._sock is not None
        code = connect_error(self._sock)
        if not code and not is_connected(self._sock):
            return  # a late event of another socket that had this number before (see Poller)
        sock = self._forget()
        assert sock is not None
        if code:
            sock.close()
            self._done(None, EndpointUnreachable(f"{self._to}: {os.strerror(code)}"))
        else:
            self._deliver(sock)

    def _too_late(self) -> None:
        self.abandon()
        self._done(
            None,
            EndpointUnreachable(
                f"{self._to}: no answer; is a NetworkPolicy in the way?", silent=True
            ),
        )

    def broken(self, error: Exception) -> None:
        """Its own code, or that of whoever waits for it, failed."""
        self.abandon()
        self._poller.tell(self._done, error)

    def _forget(self) -> socket.socket | None:
        sock, self._sock = self._sock, None
        if sock is not None and self._deadline is not None:
            self._deadline.cancel()
            self._poller.remove_writer(sock.fileno())
        return sock


def _begin(plane: Plane, ip: str, port: int, source: Source | None) -> socket.socket:
    """Raises OSError."""
    if source is not None:
        try:
            sock = start_connect(ip, port, plane.mark, source)
        except NotBound as e:
            if e.errno in OUT_OF_RESOURCES:
                raise
            plane.sources.count(NOT_BOUND)
        else:
            plane.sources.count(SHOWN)
            return sock
    return start_connect(ip, port, plane.mark)
