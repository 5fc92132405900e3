"""A new tunnel outward, whose peer is who it must be."""

import socket
from collections.abc import Callable

from certs.trust.identity import WorkloadIdentity
from sidecar.dataplane.loop.connect import Connect
from sidecar.dataplane.plane import Plane, Trust
from sidecar.dataplane.tunnels.handshake import Handshake
from sidecar.dataplane.tunnels.tunnel import Tunnel
from sidecar.errors import IdentityMismatch, SidecarError
from sidecar.sockets import watch_for_dead_peer
from sidecar.wire.session import Role


class Dial:
    """A new tunnel to `expected` at a pod IP. `done` is called once, as Handshake's is."""

    __slots__ = ("_done", "_expected", "_ip", "_plane", "_port", "_step", "_trust", "_within_s")

    def __init__(
        self,
        plane: Plane,
        trust: Trust,
        ip: str,
        port: int,
        expected: WorkloadIdentity,
        done: Callable[[Tunnel | None, SidecarError | None], None],
        connect_within_s: float,
    ) -> None:
        self._plane, self._trust, self._done = plane, trust, done
        self._ip, self._port, self._expected = ip, port, expected
        self._within_s = connect_within_s
        self._step: Connect | Handshake | None = None

    def start(self) -> None:
        """`done` may be called before this returns."""
        self._step = connect = Connect(
            self._plane, self._ip, self._port, self._within_s, self._connected
        )
        connect.start()

    def abandon(self) -> None:
        if self._step is not None:
            self._step.abandon()

    def broken(self, error: Exception) -> None:
        """Its own code failed: whoever waits for the tunnel ends by that."""
        step, self._step = self._step, None
        if step is not None:
            step.abandon()
        self._plane.poller.tell(self._done, error)

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
            own=self._trust.own,
            renewals=plane.renewals,
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
