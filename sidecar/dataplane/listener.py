"""Accepts connections and hands them on, many per wake-up, and rests when the process is out of
file descriptors instead of spinning."""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Final

from sidecar.dataplane.poller import Poller

Accepted = Callable[[socket.socket, str, int], None]
"""Takes a non-blocking socket and the peer's address."""

_BATCH: Final = 64
_REST_S: Final = 0.1
_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_log = logging.getLogger(__name__)


class Listener:
    def __init__(self, poller: Poller, sock: socket.socket, accepted: Accepted) -> None:
        self._poller, self._sock, self._accepted = poller, sock, accepted
        self._resume: asyncio.TimerHandle | None = None
        self.pauses = 0
        """How often it had to rest."""
        self._batch = 1
        """How many to take per wake-up: one, for asking once more costs a call in vain, and twice as
        many each time that all of them came."""
        poller.add_reader(sock.fileno(), self._readable)

    def close(self) -> None:
        if self._resume is not None:
            self._resume.cancel()
        self._poller.forget(self._sock.fileno())
        self._sock.close()

    def _readable(self) -> None:
        accept = self._sock.accept
        for _ in range(self._batch):
            try:
                sock, address = accept()
            except BlockingIOError:
                self._batch = 1
                return
            except OSError as e:
                if e.errno in _OUT_OF_RESOURCES:
                    self._rest(e)
                return  # else that one connection died in the queue
            sock.setblocking(False)
            self._accepted(sock, address[0], address[1])
        self._batch = min(_BATCH, self._batch * 2)

    def _rest(self, error: OSError) -> None:
        self.pauses += 1
        _log.warning(
            "accepting no connections for a moment: raise the limit of open files",
            extra={"error": error.strerror},
        )
        self._poller.remove_reader(self._sock.fileno())
        self._resume = self._poller.call_later(_REST_S, self._accept_again)

    def _accept_again(self) -> None:
        self._resume = None
        self._poller.add_reader(self._sock.fileno(), self._readable)
