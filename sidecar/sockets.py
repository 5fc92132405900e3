"""Everything that touches a raw socket's settings."""

import contextlib
import errno
import ipaddress
import socket
import struct

from kit.addresses import canonical_ip
from sidecar.source_address import Source
from sidecar.wire.original_dst import (
    SO_ORIGINAL_DST,
    SOCKADDR_IN6_SIZE,
    SOCKADDR_IN_SIZE,
    parse_sockaddr,
)

_IPV6_OPTIONS = socket.IPPROTO_IPV6
_IPV4_OPTIONS = socket.IPPROTO_IP
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
DEAD_AFTER_MS = 20_000
"""With data under way, a peer that acknowledges nothing for this long is dead."""
_KEEPALIVE_IDLE_S, _KEEPALIVE_EVERY_S, _KEEPALIVE_PROBES = 10, 3, 4
"""An idle connection is found dead after 22 s. Below 60 s, so that a connection track of an app that
has half-closed (nf_conntrack_tcp_timeout_close_wait) lives as long as the two sockets do."""
_TCP_INFO_SIZE = 60
_RETRANSMITS, _PROBES, _LAST_ACK = 2, 3, 56
"""Where `struct tcp_info` (linux/tcp.h) keeps tcpi_retransmits, tcpi_probes and tcpi_last_ack_recv."""
OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""What a call says when we, not the other side, are short of something."""
_U32 = struct.Struct("=I")
_IP_BIND_ADDRESS_NO_PORT, _IP_LOCAL_PORT_RANGE, _IPV6_FREEBIND = 24, 51, 78
"""Of linux/in.h and linux/in6.h; the second is of Linux 6.3."""
_ANY_PORT = _U32.pack(0)
BACKLOG = 4096


def listen(ip: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket; accepted ones inherit its options. Raises OSError naming the address.

    With `shared`, other processes of our own user may listen there too, and the kernel spreads the
    connections (SO_REUSEPORT, socket(7)).
    """
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # An urgent byte stays in the stream, where RFC 6093 would have it; else it would vanish here.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        watch_for_dead_peer(sock)
        sock.bind((ip, port))
        sock.listen(BACKLOG)
    except OSError as e:
        sock.close()
        raise OSError(e.errno, f"cannot listen on {ip} port {port}: {e.strerror}") from e
    return sock


class NotBound(OSError):
    """The kernel does not let us have the source that we asked for; nothing has been sent."""


def start_connect(ip: str, port: int, mark: int = 0, source: Source | None = None) -> socket.socket:
    """Begin a connection and return its socket at once; raises OSError if it fails at once, NotBound
    if `source` is to blame.

    With `mark`, the connection carries it, so that capture lets it pass (SO_MARK, socket(7)). With
    `source`, the other side sees the address that it stands for (`sidecar.source_address`), and its
    port if that is free and the kernel can be asked for it.
    """
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        if source is not None:
            _bind(sock, source)
        code = sock.connect_ex((ip, port))
        if code == errno.EADDRNOTAVAIL and source is not None:  # another connection has that port
            code = _connect_by_any_port(sock, ip, port)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, errno.errorcode.get(code, "connect failed"))
    except BaseException:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, source: Source) -> None:
    """To the address only: the port is chosen when we connect, among those that this very pair of
    addresses has free (IP_BIND_ADDRESS_NO_PORT, ip(7)). One that is bound for good would be lost to
    every other connection of the pod, and peers come with thousands."""
    try:
        # As the kernel treats a client's port: no server of the app's is kept from it.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        if source.port:
            with contextlib.suppress(OSError):  # Linux before 6.3: any port
                one = _U32.pack(source.port << 16 | source.port)
                sock.setsockopt(socket.IPPROTO_IP, _IP_LOCAL_PORT_RANGE, one)
        if source.tos:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, source.tos)
        if (
            sock.family == socket.AF_INET6
        ):  # for IPv6 a local route alone gives no right to an address
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        sock.bind((source.ip, 0))
    except OSError as e:
        raise NotBound(e.errno, f"cannot bind to {source.ip}: {e.strerror}") from e


def _connect_by_any_port(sock: socket.socket, ip: str, port: int) -> int:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_IP, _IP_LOCAL_PORT_RANGE, _ANY_PORT)
        code = sock.connect_ex((ip, port))
        if code != errno.EADDRNOTAVAIL:
            return code
    raise NotBound(errno.EADDRNOTAVAIL, "no port is free at the address that the app is to see")


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
    """Let the kernel notice that the other side of an idle connection vanished (tcp(7)).

    No TCP_USER_TIMEOUT: Linux ends a connection by it whose peer lives and merely reads nothing for
    that long (tcp_probe_timer), and a slow reader may take its time. `is_unanswered` tells the two
    apart.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_EVERY_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)


def is_unanswered(sock: socket.socket, for_ms: int = DEAD_AFTER_MS) -> bool:
    """Whether data under way has been sent again and again, or a closed window probed more than once,
    and nothing at all came back for `for_ms`: the peer, or the way to it, is gone.

    A peer that reads nothing answers every probe, and is not.
    """
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
    if info[_RETRANSMITS] < 3 and info[_PROBES] < 2:
        return False
    silent_ms: int = _U32.unpack_from(info, _LAST_ACK)[0]
    return silent_ms > for_ms


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
    reset_on_close(sock)
    sock.close()


def reset_on_close(sock: socket.socket) -> None:
    """Let its close, whenever that comes, drop what is unsent and tell the other side by RST."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


def peer_ip(raw: str) -> str:
    """An address from accept() or getpeername() as the registry writes it: no scope, no mapping."""
    return canonical_ip(raw, scoped=True)


def loopback_of(ip: str) -> str:
    """The loopback address of the same family."""
    return "::1" if ":" in ip else "127.0.0.1"
