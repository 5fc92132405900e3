"""The TLS handshake of a tunnel, either side, over a raw socket; and who the peer turns out to be.

OpenSSL's own verification is only half of it: it accepts leaves that are no SVIDs, and Python does
not fail when ALPN finds no common protocol (docs/threat-model.md, attacks 4 and 8 to 14). Nobody
else may turn a TLS connection into a Tunnel.
"""

import socket
import ssl
from collections.abc import Callable
from typing import Final

from certs.trust.facts import LeafFacts
from certs.trust.renewal import OwnLeaf
from kit.contract import ALPN, ALPNS
from sidecar.dataplane.loop.deadlines import Deadline
from sidecar.dataplane.loop.poller import Poller
from sidecar.dataplane.tunnels.tunnel import RECORD, Renews, Tunnel
from sidecar.errors import (
    AlpnMismatch,
    Bug,
    HandshakeFailed,
    HandshakeTimeout,
    PeerBanned,
    PeerUntrusted,
    SidecarError,
)
from sidecar.wire.frames import LIMITS_1, LIMITS_2
from sidecar.wire.session import Role

TIMEOUT_S: Final = 5.0
"""From the first byte to the last, not between bytes: a trickle buys no time."""
MAX_HANDSHAKE_BYTES: Final = 64 * 1024
"""Two certificates are about 2 KiB; OpenSSL itself would take 100 KiB of chain."""

Verify = Callable[[bytes], LeafFacts]
"""Checks a DER leaf as an SVID; raises an exception with a `reason` slug if it is none."""
Done = Callable[[Tunnel | None, SidecarError | None], None]


class Handshake:
    """One handshake in progress. `done(tunnel, None)` or `done(None, error)` is called once.

    The socket is the handshake's from here on: closed on failure, the tunnel's on success. On the
    dialler's side the last flight stays in the BIO and leaves with the first frame.
    """

    def __init__(
        self,
        poller: Poller,
        sock: socket.socket,
        context: ssl.SSLContext,
        role: Role,
        *,
        verify: Verify,
        own: OwnLeaf,
        renewals: Renews,
        now: Callable[[], float],
        wall: Callable[[], float],
        peer_address: tuple[str, int],
        done: Done,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._poller, self._sock, self._role, self._verify = poller, sock, role, verify
        self._own, self._renewals = own, renewals
        self._now, self._wall, self._done = now, wall, done
        self._peer_address = peer_address
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=role is Role.ACCEPTOR
        )
        self.began = now()
        self._taken = 0
        self._over = False
        self._tunnel: Tunnel | None = None
        self._deadline = Deadline(poller, timeout_s, self._too_late)

    def start(self, head: bytes = b"") -> None:
        """Begin; `head` is what was read of the connection already."""
        self._poller.add_reader(self._sock.fileno(), self._readable)
        self._feed(head)

    def abandon(self) -> None:
        """Close without a word: nobody waits for the answer any more."""
        if not self._over:
            self._stop()
            self._sock.close()

    def _readable(self) -> None:
        try:
            got = self._sock.recv(RECORD)
        except BlockingIOError:
            return None
        except OSError as e:
            return self._fail(HandshakeFailed(f"receive: {e.strerror}"))
        if not got:
            return self._fail(
                HandshakeFailed("the peer closed the connection during the handshake")
            )
        self._taken += len(got)
        if self._taken > MAX_HANDSHAKE_BYTES:
            return self._fail(HandshakeFailed("handshake too long"))
        return self._feed(got)

    def _feed(self, got: bytes) -> None:
        if got:
            self._incoming.write(got)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return self._flush()
        except ssl.SSLError as e:
            self._flush()  # the alert tells an honest peer why
            return self._fail(HandshakeFailed(_why(e)))
        return self._finished()

    def _flush(self) -> None:
        out = self._outgoing.read()
        if not out or self._over:
            return None
        try:
            sent = self._sock.send(out)
        except OSError as e:
            return self._fail(HandshakeFailed(f"send: {e.strerror}"))
        if sent < len(out):
            # A flight is a few KiB into an empty socket buffer: only a hostile window is smaller.
            self._fail(HandshakeFailed("the peer takes no data"))

    def _finished(self) -> None:
        alpn = self._tls.selected_alpn_protocol()
        if alpn not in ALPNS:
            return self._fail(AlpnMismatch(f"the peer speaks no {' or '.join(ALPNS)}"))
        der = self._tls.getpeercert(binary_form=True)
        if der is None:
            return self._fail(PeerUntrusted("the peer showed no certificate"))
        try:
            peer = self._verify(der)
        except Exception as e:
            if getattr(e, "reason", "") == PeerBanned.reason:
                return self._fail(PeerBanned(str(e), getattr(e, "leaf", None)))
            return self._fail(PeerUntrusted(f"{getattr(e, 'reason', 'malformed')}: {e}"))
        left_s = peer.not_after.timestamp() - self._wall()
        self._stop()
        self._tunnel = tunnel = Tunnel(
            self._poller,
            self._sock,
            self._tls,
            self._incoming,
            self._outgoing,
            role=self._role,
            peer=peer,
            peer_address=self._peer_address,
            own=self._own,
            renewals=self._renewals,
            limits=LIMITS_2 if alpn == ALPN else LIMITS_1,
            expires_at=min(self._own.expires_at, self._now() + left_s),
        )
        return self._done(tunnel, None)

    def _too_late(self) -> None:
        self._fail(HandshakeTimeout("the handshake did not end in time"))

    def broken(self, error: Exception) -> None:
        """Our own code failed: no tunnel comes of it."""
        if self._over:  # at what was made of its end
            if self._tunnel is not None:
                self._tunnel.close()
            self._poller.tell(self._done, error)
        else:
            self._fail(Bug.of(error))

    def _stop(self) -> None:
        self._over = True
        self._deadline.cancel()
        self._poller.remove_reader(self._sock.fileno())

    def _fail(self, error: SidecarError) -> None:
        if not self._over:
            self._stop()
            self._sock.close()
            self._done(None, error)


def _why(error: ssl.SSLError) -> str:
    """OpenSSL's reason, in words that an operator can act on."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the peer's certificate does not verify: {error.verify_message}"
    known = {
        "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the peer showed no certificate",
        "HTTP_REQUEST": "plaintext HTTP, not TLS",
        "WRONG_VERSION_NUMBER": "not TLS",
        "UNSUPPORTED_PROTOCOL": "the peer speaks no TLS 1.3",
        "TLSV1_ALERT_UNKNOWN_CA": "the peer does not trust our root",
    }
    reason = error.reason or str(error)
    return known.get(reason, reason.lower().replace("_", " "))
