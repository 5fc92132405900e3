"""TLS contexts from key, chain and bundle. Imports no `cryptography`: the data plane uses it.

Every context is made fresh and never changed while in use. Identity is checked by our validator
after the handshake, not by host name here. There is no resumption of any kind: a session must not
outlive the trust it was made under (CVE-2025-68121 and others of its class).

The peer's chain is bounded by OpenSSL at 100 KiB (SSL_CTX_set_max_cert_list); the length of our own
chain is bounded here, since each handshake sends it.
"""

import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from certs.trust.lean import send_own_chain_only

MAX_CHAIN = 4
"""The leaf and at most three intermediates."""
_BEGIN = b"-----BEGIN CERTIFICATE-----"


class MaterialRefused(Exception):
    """Key, chain and bundle do not make a working TLS end; the text says what does not fit."""

    reason = "material_refused"


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """What one end of a TLS connection holds. The key stays out of `repr`, and off the disk.

    `chain_pem` is the leaf first, then intermediates; `bundle_pem` the roots for judging peers.
    """

    key_pem: bytes = field(repr=False)
    chain_pem: bytes = field(repr=False)
    bundle_pem: bytes = field(repr=False)

    def server_context(self, alpn: Sequence[str] = ()) -> ssl.SSLContext:
        """For accepting: the peer must show a leaf that verifies. Raises MaterialRefused."""
        context = self._context(ssl.PROTOCOL_TLS_SERVER, alpn)
        context.num_tickets = 0
        return context

    def client_context(self, alpn: Sequence[str] = ()) -> ssl.SSLContext:
        """For dialling: the same demands. Raises MaterialRefused."""
        return self._context(ssl.PROTOCOL_TLS_CLIENT, alpn)

    def webserver_context(self) -> ssl.SSLContext:
        """For HTTPS to callers without a leaf, such as the API server: asks for no certificate."""
        context = self._context(ssl.PROTOCOL_TLS_SERVER, ("http/1.1",))
        context.num_tickets = 0
        context.verify_mode = ssl.CERT_NONE
        return context

    def prove(self) -> None:
        """Shake hands with ourselves in memory; raises MaterialRefused if that fails.

        One millisecond that proves what peers will see: the key fits the leaf, and the chain
        verifies against this very bundle under the rules of these very contexts.
        """
        try:
            _shake_hands(self.client_context(), self.server_context())
        except ssl.SSLError as e:
            raise MaterialRefused(
                f"the chain does not verify: {getattr(e, 'verify_message', e.reason)}"
            ) from e

    def _context(self, protocol: Any, alpn: Sequence[str]) -> ssl.SSLContext:
        if not 1 <= self.chain_pem.count(_BEGIN) <= MAX_CHAIN:
            raise MaterialRefused(f"a chain must hold 1 to {MAX_CHAIN} certificates")
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.maximum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags = ssl.VERIFY_X509_TRUSTED_FIRST | ssl.VERIFY_X509_STRICT
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        if alpn:
            context.set_alpn_protocols(list(alpn))
        try:
            context.load_verify_locations(cadata=self.bundle_pem.decode("ascii"))
            _load_chain(context, self.chain_pem, self.key_pem)
        except (ValueError, ssl.SSLError) as e:
            raise MaterialRefused(f"{type(e).__name__}: {e}") from e
        send_own_chain_only(context)
        return context


def _load_chain(context: ssl.SSLContext, chain_pem: bytes, key_pem: bytes) -> None:
    # Python's ssl reads keys from files only. A memfd is a file that never touches a disk and that
    # no other process can open by name.
    fd = os.memfd_create("podlink-leaf", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(fd), "wb") as out:
            out.write(key_pem + b"\n" + chain_pem)
        # An empty password: an encrypted key fails instead of asking on a terminal.
        context.load_cert_chain(f"/proc/self/fd/{fd}", password=b"")
    finally:
        os.close(fd)


def _shake_hands(near: ssl.SSLContext, far: ssl.SSLContext) -> None:
    to_far, to_near = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        near.wrap_bio(to_near, to_far, server_side=False),
        far.wrap_bio(to_far, to_near, server_side=True),
    ]
    for _ in range(4):  # TLS 1.3 with a certificate on both sides takes two turns each
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                continue
        if not ends:
            return
    raise ssl.SSLError("did not end")  # pragma: no cover - no handshake of TLS 1.3 takes more turns
