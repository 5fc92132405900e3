"""Waits for many sockets through one epoll of its own, inside the event loop. HOT PATH.

libuv spends five system calls to begin watching a socket and two to stop, and the event loop wraps
each callback in a handle with a context of its own. For a link that lives a millisecond that is most
of its cost (docs/performance.md). Here it is one call to begin and none to stop: closing a socket
takes it out of an epoll. The loop itself watches only this epoll.
"""

import asyncio
import select
from collections.abc import Callable
from typing import Final

_IN: Final = select.EPOLLIN | select.EPOLLRDHUP
_OUT: Final = select.EPOLLOUT
_READS: Final = ~_OUT
_WRITES: Final = _OUT | select.EPOLLERR | select.EPOLLHUP
_HUNG_UP: Final = select.EPOLLRDHUP | select.EPOLLHUP
_BATCH: Final = 256

Ready = Callable[[], None]


class Poller:
    """`add_reader` and friends as an event loop has them, level-triggered, and timers of the loop.

    Whoever closes a watched socket calls `forget` first.
    """

    __slots__ = ("_epoll", "_loop", "_readers", "_writers", "call_later", "call_soon", "hung_up")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._readers: dict[int, Ready] = {}
        self._writers: dict[int, Ready] = {}
        self.hung_up = False
        """During a reader's call: the other side has sent its FIN, so an end follows the data."""
        self.call_later = loop.call_later
        self.call_soon = loop.call_soon
        loop.add_reader(self._epoll.fileno(), self._wake)

    def close(self) -> None:
        """Stop watching. Sockets that are still watched stay open."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def add_reader(self, fd: int, ready: Ready) -> None:
        if fd in self._readers:
            self._readers[fd] = ready
            return
        self._readers[fd] = ready
        if fd in self._writers:
            self._epoll.modify(fd, _IN | _OUT)
        else:
            self._epoll.register(fd, _IN)

    def remove_reader(self, fd: int) -> None:
        if self._readers.pop(fd, None) is not None:
            if fd in self._writers:
                self._epoll.modify(fd, _OUT)
            else:
                self._epoll.unregister(fd)

    def add_writer(self, fd: int, ready: Ready) -> None:
        if fd in self._writers:
            self._writers[fd] = ready
            return
        self._writers[fd] = ready
        if fd in self._readers:
            self._epoll.modify(fd, _IN | _OUT)
        else:
            self._epoll.register(fd, _OUT)

    def remove_writer(self, fd: int) -> None:
        if self._writers.pop(fd, None) is not None:
            if fd in self._readers:
                self._epoll.modify(fd, _IN)
            else:
                self._epoll.unregister(fd)

    def forget(self, fd: int) -> None:
        """The socket is about to be closed, which takes it out of the epoll by itself."""
        self._readers.pop(fd, None)
        self._writers.pop(fd, None)

    def _wake(self) -> None:
        readers, writers = self._readers, self._writers
        # A callback may close a socket whose event is in this batch, and another may get its number:
        # such a late event finds no callback, or one that must bear being called for nothing.
        for fd, events in self._epoll.poll(0, _BATCH):
            try:
                if events & _READS and (ready := readers.get(fd)) is not None:
                    self.hung_up = events & _HUNG_UP != 0
                    ready()
                if events & _WRITES and (ready := writers.get(fd)) is not None:
                    ready()
            except Exception as e:
                self._broken(fd, e)

    def _broken(self, fd: int, error: Exception) -> None:
        """Our own code failed. Tell the loop, and watch that socket no more: its callback would be
        called, and fail, forever."""
        told = {"message": f"a callback of socket {fd} failed", "exception": error}
        self._loop.call_exception_handler(told)
        self.remove_reader(fd)
        self.remove_writer(fd)
