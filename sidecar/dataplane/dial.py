"""A new connection outward: a bare one, or a tunnel whose peer is who it must be."""

import os
import socket
from collections.abc import Callable
from typing import Final

from certs.trust.identity import WorkloadIdentity
from sidecar.dataplane.context import Plane, Trust
from sidecar.dataplane.deadline import Deadline
from sidecar.dataplane.handshake import Handshake
from sidecar.dataplane.tunnel import Tunnel
from sidecar.errors import EndpointUnreachable, IdentityMismatch, Overloaded, SidecarError
from sidecar.sockets import (
    OUT_OF_RESOURCES,
    connect_error,
    is_connected,
    start_connect,
    watch_for_dead_peer,
)
from sidecar.wire.session import Role

CONNECT_TIMEOUT_S: Final = 1.5
"""Inside a cluster a pod answers in milliseconds or is gone. Longer than a second, after which the
kernel repeats a lost SYN (RFC 6298, section 2.1): one drop costs a link some time, not its life."""
APP_TIMEOUT_S: Final = 5.0
"""An app with a short queue of waiting connections drops our SYN in a burst, and the kernel asks again
after 1 s and after 3 s. A port where nobody listens answers at once."""
EXTERNAL_TIMEOUT_S: Final = 10.0


Answered = Callable[[socket.socket | None, SidecarError | None], None]


class Connect:
    """One TCP connection in progress. `done(sock, None)` or `done(None, error)` is called once,
    perhaps before the constructor returns: on loopback connections mostly come about at once.
    """

    __slots__ = ("_deadline", "_done", "_poller", "_sock", "_to")

    def __init__(
        self,
        plane: Plane,
        ip: str,
        port: int,
        timeout_s: float,
        done: Answered,
    ) -> None:
        self._poller, self._done, self._to = plane.poller, done, f"{ip} port {port}"
        self._sock: socket.socket | None = None
        self._deadline: Deadline | None = None
        try:
            sock = start_connect(ip, port, plane.mark)
        except OSError as e:
            if e.errno in OUT_OF_RESOURCES:
                done(None, Overloaded(f"no descriptor for a connection to {self._to}"))
                return
            done(None, EndpointUnreachable(f"{self._to}: {e.strerror}"))
            return
        if is_connected(sock):
            done(sock, None)
            return
        self._sock = sock
        self._deadline = Deadline(plane.poller, timeout_s, self._too_late)
        plane.poller.add_writer(sock.fileno(), self._writable)

    @property
    def pending(self) -> bool:
        """Whether `done` is still to be called."""
        return self._sock is not None

    def abandon(self) -> None:
        """Nobody waits for the answer any more."""
        if (sock := self._forget()) is not None:
            sock.close()

    def _writable(self) -> None:
        assert self._sock is not None
        code = connect_error(self._sock)
        if not code and not is_connected(self._sock):
            return  # a late event of another socket that had this number before (see Poller)
        sock = self._forget()
        assert sock is not None
        if code:
            sock.close()
            self._done(None, EndpointUnreachable(f"{self._to}: {os.strerror(code)}"))
        else:
            self._done(sock, None)

    def _too_late(self) -> None:
        self.abandon()
        self._done(
            None, EndpointUnreachable(f"{self._to}: no answer; is a NetworkPolicy in the way?")
        )

    def _forget(self) -> socket.socket | None:
        sock, self._sock = self._sock, None
        if sock is not None and self._deadline is not None:
            self._deadline.cancel()
            self._poller.remove_writer(sock.fileno())
        return sock


class Dial:
    """A new tunnel to `expected` at a pod IP. `done` is called once, as Handshake's is."""

    __slots__ = ("_done", "_expected", "_ip", "_plane", "_port", "_step", "_trust")

    def __init__(
        self,
        plane: Plane,
        trust: Trust,
        ip: str,
        port: int,
        expected: WorkloadIdentity,
        done: Callable[[Tunnel | None, SidecarError | None], None],
    ) -> None:
        self._plane, self._trust, self._done = plane, trust, done
        self._ip, self._port, self._expected = ip, port, expected
        self._step: Connect | Handshake | None = None
        connect = Connect(plane, ip, port, CONNECT_TIMEOUT_S, self._connected)
        if connect.pending:
            self._step = connect

    @property
    def pending(self) -> bool:
        """Whether `done` is still to be called."""
        return self._step is not None

    def abandon(self) -> None:
        if self._step is not None:
            self._step.abandon()

    def _connected(self, sock: socket.socket | None, error: SidecarError | None) -> None:
        self._step = None
        if sock is None:
            return self._done(None, error)
        watch_for_dead_peer(sock)
        plane = self._plane
        self._step = handshake = Handshake(
            plane.poller,
            sock,
            self._trust.client,
            Role.DIALLER,
            verify=plane.verify,
            own_end=self._trust.expires_at,
            now=plane.now,
            wall=plane.unix_s,
            peer_address=(self._ip, self._port),
            done=self._shook_hands,
        )
        return handshake.start()

    def _shook_hands(self, tunnel: Tunnel | None, error: SidecarError | None) -> None:
        handshake, self._step = self._step, None
        if tunnel is not None:
            peer = tunnel.peer
            wrong_pod = self._plane.leaves_name_pods and self._ip not in peer.ips
            if peer.identity != self._expected or wrong_pod:
                tunnel.close()
                tunnel = None
                error = IdentityMismatch(
                    f"{self._ip} must be {self._expected} and showed {peer.identity} "
                    f"for {', '.join(sorted(peer.ips)) or 'no address'}"
                )
        assert isinstance(handshake, Handshake)
        plane, result = self._plane, "ok" if error is None else error.reason
        plane.handshakes.ended("source", result, plane.now() - handshake.began)
        return self._done(tunnel, error)
