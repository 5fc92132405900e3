"""Raw sockets: what listens, what connects, and how addresses are written."""

import contextlib
import select
import socket

import pytest

from sidecar import sockets


def test_a_taken_address_is_named_in_the_error() -> None:
    with contextlib.closing(sockets.listen("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {port}: "):
            sockets.listen("127.0.0.1", port)


def test_both_families_share_one_port() -> None:
    with contextlib.closing(sockets.listen("0.0.0.0", 0)) as four:
        sockets.listen("::", four.getsockname()[1]).close()


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
def test_a_connection_comes_about_and_knows_its_destination(ip: str) -> None:
    with contextlib.closing(sockets.listen(ip, 0)) as listening:
        port = listening.getsockname()[1]
        with contextlib.closing(sockets.start_connect(ip, port)) as sock:
            select.select([], [sock], [], 1)
            assert sockets.is_connected(sock)
            assert sockets.connect_error(sock) == 0
            with contextlib.closing(listening.accept()[0]) as accepted:
                assert sockets.original_dst(accepted) == (ip, port)


def test_a_refused_connection_says_so() -> None:
    with contextlib.closing(sockets.listen("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    try:
        sock = sockets.start_connect("127.0.0.1", port)
    except ConnectionRefusedError:
        return
    with contextlib.closing(sock):
        select.select([], [sock], [], 1)
        assert not sockets.is_connected(sock)
        assert sockets.connect_error(sock) != 0


def test_reset_is_a_reset() -> None:
    with (
        contextlib.closing(sockets.listen("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as client,
    ):
        sockets.reset(listening.accept()[0])
        with pytest.raises(ConnectionResetError):
            client.recv(1)


@pytest.mark.parametrize(
    ("raw", "canonical"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("fe80::1%eth0", "fe80::1"),
        ("FD00:0::7", "fd00::7"),
    ],
)
def test_addresses_are_written_as_the_registry_writes_them(raw: str, canonical: str) -> None:
    assert sockets.peer_ip(raw) == canonical


def test_loopback_is_of_the_same_family() -> None:
    assert [sockets.loopback_of(ip) for ip in ("10.0.0.7", "fd00::7")] == ["127.0.0.1", "::1"]
