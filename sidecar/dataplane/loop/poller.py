"""Waits for many sockets, as part of the event loop itself. HOT PATH.

libuv spends five system calls to begin watching a socket and two to stop, and any event loop wraps
each callback in a handle with a context of its own. For a link that lives a millisecond that is most
of its cost (docs/performance.md). Here it is one call to begin and none to stop: closing a socket
takes it out of an epoll. The loop is asyncio's own, waiting through the same epoll: one wait per
batch of events, and the callbacks of links run before anything else of the loop gets its turn.
"""

import asyncio
import os
import select
import selectors
from collections.abc import Callable
from typing import Final

_IN: Final = select.EPOLLIN | select.EPOLLRDHUP
_OUT: Final = select.EPOLLOUT
_READS: Final = ~_OUT
_WRITES: Final = _OUT | select.EPOLLERR | select.EPOLLHUP
_HUNG_UP: Final = select.EPOLLRDHUP | select.EPOLLHUP
_BATCH: Final = 256

Ready = Callable[[], None]
Events = list[tuple[int, int]]


class Poller:
    """`add_reader` and friends as an event loop has them, level-triggered, and timers of the loop.

    Each `DataLoop` has one. Whoever closes a watched socket calls `forget` first.
    """

    __slots__ = (
        "_before_rest",
        "_epoll",
        "_loop",
        "_readers",
        "_writers",
        "call_later",
        "call_soon",
        "hung_up",
    )

    def __init__(self, loop: "DataLoop", epoll_fd: int) -> None:
        self._loop = loop
        # A descriptor of our own for the same epoll: each of the two is closed once.
        self._epoll = select.epoll.fromfd(os.dup(epoll_fd))
        self._readers: dict[int, Ready] = {}
        self._writers: dict[int, Ready] = {}
        self._before_rest: list[Ready] = []
        self.hung_up = False
        """During a reader's call: the other side has sent its FIN, so an end follows the data."""
        self.call_later = loop.call_later
        self.call_soon = loop.call_soon

    def close(self) -> None:
        """Stop watching. Sockets that are still watched stay open."""
        self._readers.clear()
        self._writers.clear()
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

    def before_rest(self, late: Ready) -> None:
        """Call `late` once: after the events that are there already, and before any wait."""
        self._before_rest.append(late)

    def turn(self, wait_s: float) -> Events:
        """One wait and the callbacks of all that came of it; returns the events of other sockets."""
        late = self._before_rest
        if late:
            wait_s = 0.0
            self._before_rest = []
        readers, writers = self._readers, self._writers
        others: Events = []
        # A callback may close a socket whose event is in this batch, and another may get its number:
        # such a late event finds no callback, or one that must bear being called for nothing.
        for fd, events in self._epoll.poll(wait_s, _BATCH):
            try:
                ready = readers.get(fd)
                if ready is not None:
                    if events & _READS:
                        self.hung_up = events & _HUNG_UP != 0
                        ready()
                elif fd not in writers:
                    others.append((fd, events))
                    continue
                if events & _WRITES and (ready := writers.get(fd)) is not None:
                    ready()
            except Exception as e:
                self._broken(fd, e)
        for ready in late:
            try:
                ready()
            except Exception as e:
                self._broken(-1, e)
        return others

    def _broken(self, fd: int, error: Exception) -> None:
        """Our own code failed. Tell the loop, and watch that socket no more: its callback would be
        called, and fail, forever."""
        told = {"message": f"a callback of socket {fd} failed", "exception": error}
        self._loop.call_exception_handler(told)
        self.remove_reader(fd)
        self.remove_writer(fd)


class _Selector(selectors.EpollSelector):
    """What asyncio waits with: through the poller, while there is one."""

    poller: Poller | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert self.poller is not None
        keys = self.get_map()
        found = []
        for fd, events in self.poller.turn(-1.0 if timeout is None else max(timeout, 0.0)):
            try:
                key = keys[fd]
            except KeyError:
                continue  # closed by a callback of the same batch
            asked = 0
            if events & _READS:
                asked |= selectors.EVENT_READ
            if events & ~select.EPOLLIN:
                asked |= selectors.EVENT_WRITE
            found.append((key, asked & key.events))
        return found


class DataLoop(asyncio.SelectorEventLoop):
    """asyncio's own event loop, with the data plane's Poller in its wait."""

    def __init__(self) -> None:
        selector = _Selector()
        super().__init__(selector)
        selector.poller = self.poller = Poller(self, selector.fileno())

    def close(self) -> None:
        if not self.is_closed():
            self.poller.close()
        super().close()


def poller_of(loop: asyncio.AbstractEventLoop) -> Poller:
    """The loop's poller; raises TypeError if the loop has none."""
    if not isinstance(loop, DataLoop):
        raise TypeError("the data plane runs in a DataLoop")
    return loop.poller
