"""The bound on connections of one address, by the descriptors of this very process."""

import logging
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kit.connections import Connections
from kit.limited_log import LimitedLog

MOST = 4


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as it:
        yield it


def pairs(
    stack: ExitStack, listener: socket.socket, source: str, count: int
) -> list[socket.socket]:
    """The far ends of `count` connections that `listener` has accepted."""
    made = []
    for _ in range(count):
        to = ("127.0.0.1", listener.getsockname()[1])
        far = stack.enter_context(socket.create_connection(to, source_address=(source, 0)))
        stack.enter_context(listener.accept()[0])
        made.append(far)
    return made


def lives(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return bool(sock.recv(1))
    except BlockingIOError:
        return True


@pytest.mark.attack_row(52)
def test_the_newest_over_the_bound_are_shut_and_nobody_elses(stack: ExitStack) -> None:
    ours = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    other = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    greedy = pairs(stack, ours, "127.0.0.2", 10)
    honest = pairs(stack, ours, "127.0.0.3", MOST)
    elsewhere = pairs(stack, other, "127.0.0.2", 10)
    it = Connections(ours.getsockname()[1], MOST, LimitedLog(logging.getLogger(__name__)))
    assert it.sweep() == {"127.0.0.2": 6}
    assert [lives(one) for one in greedy] == [True] * MOST + [False] * 6
    assert all(map(lives, [*honest, *elsewhere]))
    assert it.closed == 6


def test_a_listener_a_pair_and_a_file_are_left_alone(stack: ExitStack) -> None:
    ours = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    one, other = socket.socketpair()
    it = Connections(ours.getsockname()[1], 0, LimitedLog(logging.getLogger(__name__)))
    with one, other, Path("/dev/null").open():
        assert it.sweep() == {}
    (far,) = pairs(stack, ours, "127.0.0.1", 1)
    assert it.sweep() == {"127.0.0.1": 1}
    assert not lives(far)
