"""Waits for many sockets, as part of the event loop itself. HOT PATH.

libuv spends five system calls to begin watching a socket and two to stop, and any event loop wraps
each callback in a handle with a context of its own. For a link that lives a millisecond that is most
of its cost (docs/performance.md). Here it is one call to begin and none to stop: closing a socket
takes it out of an epoll. The loop is asyncio's own, waiting through the same epoll: one wait per
batch of events, and the callbacks of links run before anything else of the loop gets its turn.
"""

import asyncio
import functools
import os
import select
import selectors
from collections.abc import Callable
from typing import Final, Protocol, runtime_checkable

_IN: Final = select.EPOLLIN | select.EPOLLRDHUP
_OUT: Final = select.EPOLLOUT
_READS: Final = ~_OUT
_WRITES: Final = _OUT | select.EPOLLERR | select.EPOLLHUP
_HUNG_UP: Final = select.EPOLLRDHUP | select.EPOLLHUP
_BATCH: Final = 256

Ready = Callable[[], None]
Work = Callable[..., object]


@runtime_checkable
class Owner(Protocol):
    """Whose methods are callbacks of the poller."""

    def broken(self, error: Exception) -> None:
        """One of its callbacks raised `error`. End what it serves, and be watched no more."""


Events = list[tuple[int, int]]


class Poller:
    """`add_reader` and friends as an event loop has them, level-triggered, and timers of the loop.

    Each `DataLoop` has one. Whoever closes a watched socket calls `forget` first.
    """

    __slots__ = (
        "_epoll",
        "_hung_up",
        "_loop",
        "_readers",
        "_writers",
        "bugs",
        "hung_up",
    )

    def __init__(self, loop: "DataLoop", epoll_fd: int) -> None:
        self._loop = loop
        # A descriptor of our own for the same epoll: each of the two is closed once.
        self._epoll = select.epoll.fromfd(os.dup(epoll_fd))
        self._readers: dict[int, Ready] = {}
        self._writers: dict[int, Ready] = {}
        self._hung_up: dict[int, Ready] = {}
        """Of sockets that are not read for now."""
        self.hung_up = False
        """During a reader's call: the other side has sent its FIN, so an end follows the data."""
        self.bugs = 0
        """How often a callback failed."""

    def close(self) -> None:
        """Stop watching. Sockets that are still watched stay open."""
        self._readers.clear()
        self._writers.clear()
        self._hung_up.clear()
        self._epoll.close()

    def add_reader(self, fd: int, ready: Ready) -> None:
        if fd in self._readers:
            self._readers[fd] = ready
            return
        self._readers[fd] = ready
        if fd in self._writers:
            self._hung_up.pop(fd, None)
            self._epoll.modify(fd, _IN | _OUT)
        elif self._hung_up.pop(fd, None) is not None:
            self._epoll.modify(fd, _IN)
        else:
            self._epoll.register(fd, _IN)

    def remove_reader(self, fd: int) -> None:
        paused = self._hung_up.pop(fd, None)
        if self._readers.pop(fd, paused) is not None:
            if fd in self._writers:
                self._epoll.modify(fd, _OUT)
            else:
                self._epoll.unregister(fd)

    def pause_reader(self, fd: int, hung_up: Ready) -> None:
        """Read no more for now, but hear of a connection that is reset or breaks meanwhile: then
        `hung_up` is called once, and the socket is watched no more."""
        if self._readers.pop(fd, None) is not None:
            self._hung_up[fd] = hung_up
            # EPOLLERR and EPOLLHUP are told without being asked for (epoll_ctl(2)).
            self._epoll.modify(fd, _OUT if fd in self._writers else 0)

    def watch_hang_up(self, fd: int, hung_up: Ready) -> None:
        """As `pause_reader`, of a socket that nobody has read yet. May be called again."""
        if fd in self._hung_up:
            return
        self._hung_up[fd] = hung_up
        self._epoll.register(fd, 0)

    def add_writer(self, fd: int, ready: Ready) -> None:
        if fd in self._writers:
            self._writers[fd] = ready
            return
        self._writers[fd] = ready
        if fd in self._readers:
            self._epoll.modify(fd, _IN | _OUT)
        elif fd in self._hung_up:
            self._epoll.modify(fd, _OUT)
        else:
            self._epoll.register(fd, _OUT)

    def remove_writer(self, fd: int) -> None:
        if self._writers.pop(fd, None) is not None:
            if fd in self._readers:
                self._epoll.modify(fd, _IN)
            elif fd in self._hung_up:
                self._epoll.modify(fd, 0)
            else:
                self._epoll.unregister(fd)

    def forget(self, fd: int) -> None:
        """The socket is about to be closed, which takes it out of the epoll by itself."""
        self._readers.pop(fd, None)
        self._writers.pop(fd, None)
        self._hung_up.pop(fd, None)

    def call_later(self, delay_s: float, work: Work, *args: object) -> asyncio.TimerHandle:
        """As the loop's; what `work` raises ends its owner alone (see `blame`)."""
        return self._loop.call_later(delay_s, self.call, work, *args)

    def call_soon(self, work: Work, *args: object) -> None:
        """As the loop's; what `work` raises ends its owner alone (see `blame`)."""
        self._loop.call_soon(self.call, work, *args)

    def call(self, work: Work, *args: object) -> None:
        """Call `work` now; what it raises ends its owner alone (see `blame`)."""
        try:
            work(*args)
        except Exception as e:
            self.blame(work, e)

    def blame(self, work: Work, error: Exception) -> bool:
        """A callback failed: tell the object whose method it is, by `broken(error)`. That object ends
        what it serves, one link or one connection, and everything else goes on.

        Returns whether there was such an owner and it could do so.
        """
        self.bugs += 1
        owner = _owner_of(work)
        name = type(owner).__name__ if owner is not None else repr(work)
        self._log("a callback failed", name, error)
        return self.tell(work, error)

    def tell(self, work: Work, error: Exception) -> bool:
        """Pass a failure on, by an owner to the owner of what it would have called next."""
        owner = _owner_of(work)
        if not isinstance(owner, Owner):
            return False
        try:
            owner.broken(error)
        except Exception as e:
            self._log("could not end what had failed", type(owner).__name__, e)
            return False
        return True

    def _log(self, message: str, owner: str, error: Exception) -> None:
        """One line with the traceback, by the loop's own handler."""
        self._loop.call_exception_handler({"message": message, "owner": owner, "exception": error})

    def turn(self, wait_s: float) -> Events:
        """One wait and the callbacks of all that came of it; returns the events of other sockets."""
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
                    ready = self._hung_up.pop(fd, None)
                    if ready is None:
                        others.append((fd, events))
                    else:
                        self._epoll.unregister(fd)
                        ready()
                    continue
                if events & _WRITES and (ready := writers.get(fd)) is not None:
                    ready()
            except Exception as e:
                if ready is None or not self.blame(ready, e):
                    # Watched no more: the callback would be called, and fail, for ever.
                    self.remove_reader(fd)
                    self.remove_writer(fd)
        return others


def _owner_of(work: Work) -> object:
    """The object whose method this is, also where some arguments are given already; else None."""
    while isinstance(work, functools.partial):
        work = work.func
    return getattr(work, "__self__", None)


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
