"""Everything that touches a raw socket's settings."""

import contextlib
import errno
import ipaddress
import socket
import struct

from sidecar.wire.original_dst import (
    SO_ORIGINAL_DST,
    SOCKADDR_IN6_SIZE,
    SOCKADDR_IN_SIZE,
    parse_sockaddr,
)

_IPV6_OPTIONS = socket.IPPROTO_IPV6
_IPV4_OPTIONS = socket.IPPROTO_IP
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
DEAD_AFTER_MS = 30_000
"""A tunnel whose peer acknowledges nothing for this long is dead (TCP_USER_TIMEOUT)."""
_KEEPALIVE_IDLE_S, _KEEPALIVE_EVERY_S, _KEEPALIVE_PROBES = 10, 5, 4
BACKLOG = 4096


def listen(ip: str, port: int) -> socket.socket:
    """A listening socket; accepted ones inherit its options. Raises OSError naming the address."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind((ip, port))
        sock.listen(BACKLOG)
    except OSError as e:
        sock.close()
        raise OSError(e.errno, f"cannot listen on {ip} port {port}: {e.strerror}") from e
    return sock


def start_connect(ip: str, port: int, mark: int = 0) -> socket.socket:
    """Begin a connection and return its socket at once; raises OSError if it fails at once.

    With `mark`, the connection carries it, so that capture lets it pass (SO_MARK, socket(7)).
    """
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        code = sock.connect_ex((ip, port))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, errno.errorcode.get(code, "connect failed"))
    except BaseException:
        sock.close()
        raise
    return sock


def is_connected(sock: socket.socket) -> bool:
    """Whether a connection begun by `start_connect` has come about. On loopback it mostly has."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def connect_error(sock: socket.socket) -> int:
    """The errno with which a connection attempt ended; 0 if it came about."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def watch_for_dead_peer(sock: socket.socket) -> None:
    """Notice within about 30 s that the other side vanished without a word (tcp(7))."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_EVERY_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_AFTER_MS)


def original_dst(sock: socket.socket) -> tuple[str, int]:
    """Where a redirected connection was going: (IP in canonical text, port).

    For a connection that nothing redirected the kernel gives its plain destination, if it tracks
    connections at all; else our own address is the answer, which callers refuse as a loop.
    """
    try:
        if sock.family == socket.AF_INET6:
            raw = sock.getsockopt(_IPV6_OPTIONS, SO_ORIGINAL_DST, SOCKADDR_IN6_SIZE)
        else:
            raw = sock.getsockopt(_IPV4_OPTIONS, SO_ORIGINAL_DST, SOCKADDR_IN_SIZE)
        return parse_sockaddr(raw)
    except OSError:
        name = sock.getsockname()
        return str(ipaddress.ip_address(name[0].partition("%")[0])), name[1]


def reset(sock: socket.socket) -> None:
    """Close with RST: the other side learns at once that this is no orderly end."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.close()


def canonical_ip(raw: str) -> str:
    """An address from accept() or getpeername() as the registry writes it: no scope, no mapping."""
    if ":" not in raw:
        return raw
    ip = ipaddress.IPv6Address(raw.partition("%")[0])
    return str(ip.ipv4_mapped or ip)


def loopback_of(ip: str) -> str:
    """The loopback address of the same family."""
    return "::1" if ":" in ip else "127.0.0.1"
