"""Accepts connections and hands them on, many per wake-up, and rests when the process is out of
file descriptors instead of spinning."""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from typing import Final

from sidecar.dataplane.loop.poller import Poller
from sidecar.sockets import OUT_OF_RESOURCES, reset

Accepted = Callable[[socket.socket, str, int], None]
"""Takes a non-blocking socket and the peer's address."""

_BATCH: Final = 64
_REST_S: Final = 0.1
_RESTS_BEFORE_SHED: Final = 10
"""After a second without a descriptor those that wait are told so, by a reset."""
_log = logging.getLogger(__name__)


class Listener:
    def __init__(self, poller: Poller, sock: socket.socket, accepted: Accepted) -> None:
        self._poller, self._sock, self._accepted = poller, sock, accepted
        self._resume: asyncio.TimerHandle | None = None
        self.pauses = 0
        """How often it had to rest."""
        self.shed = 0
        """Connections that were reset because no descriptor came free."""
        self._rests = 0
        """How often in a row."""
        self._reserve: int | None = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        """A descriptor to give up when there is no other, so that those who wait can be turned away."""
        self._batch = 1
        """How many to take per wake-up: one, for asking once more costs a call in vain, and twice as
        many each time that all of them came."""
        poller.add_reader(sock.fileno(), self._readable)

    def close(self) -> None:
        if self._resume is not None:
            self._resume.cancel()
        self._poller.forget(self._sock.fileno())
        self._sock.close()
        if self._reserve is not None:
            os.close(self._reserve)

    def _readable(self) -> None:
        accept = self._sock.accept
        for _ in range(self._batch):
            try:
                sock, address = accept()
            except BlockingIOError:
                self._batch = 1
                return
            except OSError as e:
                if e.errno in OUT_OF_RESOURCES:
                    self._rest(e)
                return  # else that one connection died in the queue
            sock.setblocking(False)
            self._rests = 0
            try:
                self._accepted(sock, address[0], address[1])
            except Exception as e:
                self._poller.blame(self._accepted, e)
                reset(sock)
        self._batch = min(_BATCH, self._batch * 2)

    def broken(self, error: Exception) -> None:
        """Its own code failed at one connection: it goes on listening."""

    def _rest(self, error: OSError) -> None:
        self.pauses += 1
        self._rests += 1
        if self._rests == 1:
            _log.warning(
                "accepting no connections for a moment: raise the limit of open files",
                extra={"error": error.strerror},
            )
        elif self._rests >= _RESTS_BEFORE_SHED:
            self._shed()
        self._poller.remove_reader(self._sock.fileno())
        self._resume = self._poller.call_later(_REST_S, self._accept_again)

    def _shed(self) -> None:
        """Reset what waits, a batch at a time, by way of the reserved descriptor."""
        if self._reserve is None:
            return
        os.close(self._reserve)
        self._reserve = None
        try:
            for _ in range(_BATCH):
                sock, _ = self._sock.accept()
                reset(sock)
                self.shed += 1
        except OSError:
            pass  # nobody waits any more, or another part of us took the descriptor
        with contextlib.suppress(OSError):
            self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _accept_again(self) -> None:
        self._resume = None
        self._poller.add_reader(self._sock.fileno(), self._readable)
