"""Two sockets and nothing in between: every byte arrives, whoever is slow, gone, or late."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from sidecar.dataplane.links.splice import RawSplice
from sidecar.dataplane.loop.poller import poller_of
from sidecar.errors import SidecarError
from tests.patience import PATIENCE_S

MUCH = 12 * 1024 * 1024
"""More than two sockets and all between them hold."""


@dataclass
class Spliced:
    """`client` and `server` are the outer ends; the splice stands between the other two."""

    splice: RawSplice
    client: socket.socket
    server: socket.socket
    ends: list[tuple[str, SidecarError | None]] = field(default_factory=list)

    async def end(self) -> tuple[str, SidecarError | None]:
        async with asyncio.timeout(PATIENCE_S):
            while not self.ends:
                await asyncio.sleep(0.005)
        assert len(self.ends) == 1
        return self.ends[0]


def connection() -> tuple[socket.socket, socket.socket]:
    """The two ends of a TCP connection on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        one = socket.create_connection(listening.getsockname())
        other, _ = listening.accept()
    one.setblocking(False)
    other.setblocking(False)
    return one, other


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.fixture
async def spliced() -> AsyncIterator[Spliced]:
    (client, near), (server, other) = connection(), connection()
    ends: list[tuple[str, SidecarError | None]] = []
    splice = RawSplice(
        poller_of(asyncio.get_running_loop()),
        near,
        other,
        lambda _, close, error: ends.append((close, error)),
    )
    yield Spliced(splice, client, server, ends)
    if not splice.over:
        splice.cut("drain")
    client.close()
    server.close()


async def receive_all(sock: socket.socket, slowly: bool) -> bytes:
    loop, found = asyncio.get_running_loop(), bytearray()
    while piece := await loop.sock_recv(sock, 100_000):
        found += piece
        if slowly and len(found) < 1_000_000:
            await asyncio.sleep(0.005)
    return bytes(found)


@pytest.mark.parametrize("back", [False, True])
async def test_a_slow_reader_gets_every_byte_and_then_the_end(spliced: Spliced, back: bool) -> None:
    loop = asyncio.get_running_loop()
    source, target = spliced.client, spliced.server
    if back:
        source, target = target, source
    sent = bytes(range(256)) * (MUCH // 256)
    for sock in (spliced.splice._near, spliced.splice._other):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # what waits leaves in parts
    spliced.splice.start()

    async def send() -> None:
        await loop.sock_sendall(source, sent)
        source.shutdown(socket.SHUT_WR)

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(send())
        got = tasks.create_task(receive_all(target, slowly=True))
    assert got.result() == sent
    assert not spliced.ends, "the other direction is open still"
    await loop.sock_sendall(target, b"answer")
    target.shutdown(socket.SHUT_WR)
    assert await asyncio.wait_for(receive_all(source, slowly=False), PATIENCE_S) == b"answer"
    assert await spliced.end() == ("fin", None)
    moved = (spliced.splice.from_near, spliced.splice.to_near)
    assert moved == ((6, MUCH) if back else (MUCH, 6))


async def test_bytes_that_were_read_before_come_first(spliced: Spliced) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(spliced.client, b" second")
    spliced.splice.start(b"first")
    async with asyncio.timeout(PATIENCE_S):
        got = b""
        while len(got) < 12:
            got += await loop.sock_recv(spliced.server, 100)
    assert got == b"first second"


async def test_first_bytes_wait_for_a_target_that_takes_none(spliced: Spliced) -> None:
    loop, filled = asyncio.get_running_loop(), 0
    try:
        while True:
            filled += spliced.splice._other.send(bytes(65536))
    except BlockingIOError:
        spliced.splice.start(b"first")
    spliced.client.shutdown(socket.SHUT_WR)
    got = await asyncio.wait_for(receive_all(spliced.server, slowly=False), PATIENCE_S)
    assert (len(got), got[-5:]) == (filled + 5, b"first")
    await loop.sock_sendall(spliced.server, b"back")
    assert await asyncio.wait_for(loop.sock_recv(spliced.client, 9), PATIENCE_S) == b"back"


async def is_reset(sock: socket.socket) -> None:
    with pytest.raises(ConnectionResetError):
        async with asyncio.timeout(PATIENCE_S):
            while await asyncio.get_running_loop().sock_recv(sock, 100_000):
                pass


@pytest.mark.parametrize("back", [False, True])
async def test_a_reset_of_one_side_is_passed_on(spliced: Spliced, back: bool) -> None:
    gone, other = spliced.client, spliced.server
    if back:
        gone, other = other, gone
    spliced.splice.start()
    reset(gone)
    await is_reset(other)
    assert await spliced.end() == ("reset", None)


async def test_a_target_that_is_reset_while_bytes_wait_for_it_ends_the_link(
    spliced: Spliced,
) -> None:
    loop = asyncio.get_running_loop()
    spliced.splice.start()
    sending = loop.create_task(loop.sock_sendall(spliced.client, bytes(MUCH)))
    async with asyncio.timeout(PATIENCE_S):
        while spliced.splice._out._backlog is None:
            await asyncio.sleep(0.005)
    # Its end is read first, so that only the writing can find the reset.
    spliced.splice._in.stop()
    spliced.splice._poller.remove_reader(spliced.splice._other.fileno())
    reset(spliced.server)
    assert await spliced.end() == ("reset", None)
    await asyncio.wait_for(asyncio.gather(sending, return_exceptions=True), PATIENCE_S)


async def test_a_target_that_is_gone_before_the_first_bytes_ends_the_link(spliced: Spliced) -> None:
    reset(spliced.server)
    spliced.splice.start(b"first")
    assert await spliced.end() == ("reset", None)


async def test_a_late_event_of_another_socket_changes_nothing(spliced: Spliced) -> None:
    loop = asyncio.get_running_loop()
    spliced.splice.start()
    spliced.splice._out._readable()  # nothing has come
    sending = loop.create_task(loop.sock_sendall(spliced.client, bytes(MUCH)))
    async with asyncio.timeout(PATIENCE_S):
        while spliced.splice._out._backlog is None:
            await asyncio.sleep(0.005)
        for _ in range(3):
            spliced.splice._out._writable()  # nothing more fits
        got = 0
        while got < MUCH:
            got += len(await loop.sock_recv(spliced.server, 1_000_000))
        await sending
    assert not spliced.ends


@pytest.mark.parametrize("which", ["_near", "_other"])
async def test_a_side_that_answers_nothing_any_more_ends_the_link(
    spliced: Spliced, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent: list[Any] = []
    answers_nothing: Callable[[Any], bool] = lambda sock: sock in silent  # noqa: E731
    monkeypatch.setattr("sidecar.dataplane.links.splice.is_unanswered", answers_nothing)
    spliced.splice.start()
    spliced.splice.look()
    assert not spliced.ends
    silent.append(getattr(spliced.splice, which))
    spliced.splice.look()
    close, error = await spliced.end()
    assert close == "lost"
    assert error is not None and error.reason == "peer_lost"
