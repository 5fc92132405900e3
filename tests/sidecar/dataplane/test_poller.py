"""The poller calls who watches a socket, whatever was watched of it before."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.dataplane.loop.poller import DataLoop, Poller, poller_of


@dataclass
class Watched:
    """One end of a connection, and what its callbacks were told."""

    poller: Poller
    near: socket.socket
    far: socket.socket
    called: list[str] = field(default_factory=list)

    @property
    def fd(self) -> int:
        return self.near.fileno()

    def turn(self) -> list[str]:
        """Who is called in one turn of the loop."""
        self.called.clear()
        self.poller.turn(0)
        return sorted(self.called)


@contextlib.contextmanager
def watched() -> Iterator[Watched]:
    loop = DataLoop()
    near, far = socket.socketpair()
    try:
        near.setblocking(False)
        yield Watched(loop.poller, near, far)
    finally:
        loop.poller.forget(near.fileno())
        near.close()
        far.close()
        loop.close()


STEPS = ("read", "stop reading", "pause", "watch hang-up", "write", "stop writing")


@given(st.lists(st.sampled_from(STEPS), max_size=14), st.booleans())
@example(["read", "pause", "write", "stop writing", "read", "write", "read"], True)
@example(["write", "read", "pause", "read", "stop reading", "write", "stop writing"], True)
@example(["watch hang-up", "watch hang-up", "write", "stop reading", "read"], False)
def test_reading_and_writing_begin_and_end_in_any_order(steps: list[str], data: bool) -> None:
    with watched() as it:
        reading = writing = ""
        if data:
            it.far.send(b"x")
        for count, step in enumerate(steps):
            name = f"{step} {count}"
            if step == "read":
                it.poller.add_reader(it.fd, lambda name=name: it.called.append(name))  # type: ignore[misc]
                reading = name
            elif step == "stop reading":
                it.poller.remove_reader(it.fd)
                reading = ""
            elif step == "pause":
                it.poller.pause_reader(it.fd, lambda: it.called.append("hung up"))
                reading = "paused" if reading else ""
            elif step == "watch hang-up":
                if reading == "paused" or not (reading or writing):
                    it.poller.watch_hang_up(it.fd, lambda: it.called.append("hung up"))
                    reading = "paused"
            elif step == "write":
                it.poller.add_writer(it.fd, lambda name=name: it.called.append(name))  # type: ignore[misc]
                writing = name
            else:
                it.poller.remove_writer(it.fd)
                writing = ""
            reads = data and reading not in ("", "paused")
            assert it.turn() == sorted(filter(None, (reading if reads else "", writing)))


def test_a_paused_socket_tells_once_that_its_connection_is_gone() -> None:
    with watched() as it:
        it.poller.watch_hang_up(it.fd, lambda: it.called.append("hung up"))
        it.far.send(b"x")
        assert it.turn() == []
        it.far.close()
        assert it.turn() == ["hung up"]
        assert it.turn() == []


def test_a_reader_learns_that_an_end_follows_what_it_reads() -> None:
    with watched() as it:
        told: list[bool] = []
        it.poller.add_reader(it.fd, lambda: told.append(it.poller.hung_up))
        it.far.send(b"x")
        it.turn()
        it.far.shutdown(socket.SHUT_WR)
        it.turn()
        assert told == [False, True]


def test_a_callback_without_an_owner_that_fails_is_called_no_more() -> None:
    with watched() as it:
        it.poller.add_writer(it.fd, lambda: it.called.append("writer"))

        def fails() -> None:
            it.called.append("reader")
            raise ValueError("ours")

        it.poller.add_reader(it.fd, fails)
        it.far.send(b"x")
        assert it.turn() == ["reader"]
        assert it.poller.bugs == 1
        assert it.turn() == []


class _CannotEnd:
    """An owner whose own end fails, too."""

    def __init__(self) -> None:
        self.told = 0

    def ready(self) -> None:
        raise ValueError("ours")

    def broken(self, error: Exception) -> None:
        self.told += 1
        raise error


def test_an_owner_that_cannot_end_is_watched_no_more(caplog: pytest.LogCaptureFixture) -> None:
    with watched() as it:
        owner = _CannotEnd()
        it.poller.add_writer(it.fd, owner.ready)
        it.turn()
        it.turn()
        assert owner.told == 1
    assert [r.message.partition("\n")[0] for r in caplog.records] == [
        "a callback failed",
        "could not end what had failed",
    ]


def test_a_socket_of_asyncio_s_that_a_link_has_stopped_watching_is_not_called() -> None:
    loop = DataLoop()
    (near, far), (other, its_far) = socket.socketpair(), socket.socketpair()
    called: list[str] = []
    try:
        loop.add_reader(other.fileno(), called.append, "asyncio's")

        def link() -> None:
            called.append("link")
            near.recv(1)
            loop.remove_reader(other.fileno())

        loop.poller.add_reader(near.fileno(), link)
        far.send(b"x")
        its_far.send(b"x")  # both events are of one batch
        loop.call_later(0.01, loop.stop)
        loop.run_forever()
        assert called == ["link"]
    finally:
        loop.poller.forget(near.fileno())
        for sock in (near, far, other, its_far):
            sock.close()
        loop.close()


def test_another_loop_has_no_poller() -> None:
    loop = asyncio.SelectorEventLoop()
    try:
        with pytest.raises(TypeError, match="DataLoop"):
            poller_of(loop)
    finally:
        loop.close()


def test_closing_the_loop_closes_the_poller_s_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    loop = DataLoop()
    loop.close()
    loop.close()
    assert len(os.listdir("/proc/self/fd")) == before
