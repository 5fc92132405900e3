"""Proof that capture works: a connection to an address that does not exist must land on us.

The addresses are from the ranges kept for documentation (RFC 5737, RFC 3849): nobody has them, so an
answer can only come from our own listener behind the redirect.
"""

import contextlib
import socket
from collections.abc import Iterator

from kit.contract import CANARIES, OUTBOUND_PORT
from sidecar.sockets import original_dst

_PROOFS = {version: (ip, 9) for version, (ip, _) in CANARIES.items()}
"""Another port than the running proxy's canary, which has a rule of its own: this one is caught by the
rule that catches everything."""
_TIMEOUT_S = 2.0


class NotCaptured(Exception):
    """A connection left the pod, or was lost, though the rules are in place. One readable line."""


def prove_captured(version: int) -> None:
    """Connect to the canary of IP version 4 or 6 and check where it lands; raises NotCaptured.

    Our outbound port must be free: the proxy starts after this.
    """
    ip, port = _PROOFS[version]
    with _listener(version) as listener, _connection(version) as app:
        try:
            app.connect((ip, port))
            landed, _ = listener.accept()
        except OSError as e:
            raise NotCaptured(
                f"IPv{version} connections are not captured: the rules are in place, but a "
                f"connection to {ip} did not reach port {OUTBOUND_PORT} ({e.strerror or e}); "
                f"does another redirect or a CNI plugin come first?"
            ) from e
        with landed:
            found = original_dst(landed)
        if found != (ip, port):
            raise NotCaptured(
                f"IPv{version} connections are captured, but their destination is lost: "
                f"expected {ip} port {port}, the kernel says {found[0]} port {found[1]}; "
                f"is connection tracking (nf_conntrack) available?"
            )


def has_route(version: int) -> bool:
    """Whether this pod can send to the canary at all; without a route there is nothing to capture."""
    with _connection(version, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_PROOFS[version])
        except OSError:
            return False
    return True


@contextlib.contextmanager
def _connection(
    version: int, kind: socket.SocketKind = socket.SOCK_STREAM
) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, kind) as sock:
        sock.settimeout(_TIMEOUT_S)
        yield sock


@contextlib.contextmanager
def _listener(version: int) -> Iterator[socket.socket]:
    with _connection(version) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1" if version == 4 else "::1", OUTBOUND_PORT))
        sock.listen(1)
        yield sock
