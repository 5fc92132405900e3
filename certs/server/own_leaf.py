"""The CA's own TLS certificate, which it signs for itself and renews at half its life.

gRPC asks for the certificate at each new connection, on a thread of its own; so the renewal happens
there, under a lock, and there is no timer that could fail silently. When another signer takes over,
the next connection gets a leaf of that one.
"""

import datetime as dt
import logging
import threading
from collections.abc import Callable

import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from certs.authority.issue import Authority, AuthorityExpired, Order
from certs.evidence.signed import WorkloadSigner
from certs.names import CA_ACCOUNT, service_dns_names
from certs.trust.contexts import TlsMaterial
from certs.trust.identity import WorkloadIdentity
from certs.trust.pem import to_pem
from kit.clock import Clock, Monotonic

_log = logging.getLogger(__name__)


class OwnLeaf:
    """`authority` is asked for the signer of this moment."""

    def __init__(
        self,
        authority: Callable[[], Authority],
        namespace: str,
        lifetime: dt.timedelta,
        clock: Clock,
        monotonic: Monotonic,
    ) -> None:
        identity = WorkloadIdentity(authority().trust_domain, namespace, CA_ACCOUNT)
        names = service_dns_names(CA_ACCOUNT, namespace)
        self._order = Order(identity, frozenset(), names, lifetime)
        self._authority, self._clock, self._monotonic = authority, clock, monotonic
        self._lock = threading.Lock()
        self._renew_at, self._signer = 0.0, ""
        self._statements: tuple[WorkloadSigner, float] | None = None
        self._first = self._issue()

    def credentials(self) -> grpc.ServerCredentials:
        """Server credentials that always show a fresh leaf, and ask the caller for none."""
        return grpc.dynamic_ssl_server_credentials(
            self._first,
            self._fetch,  # type: ignore[arg-type]  # the stub does not know None, the docs do
        )

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC at each handshake; None keeps the certificate in use."""
        with self._lock:
            signer = self._authority().issuer_sha256
            if self._monotonic() < self._renew_at and signer == self._signer:
                return None
            try:
                return self._issue()
            except AuthorityExpired as e:
                _log.error("no new certificate for the CA itself", extra={"error": str(e)})
                return None

    def dialling(self, roots_pem: bytes) -> tuple[grpc.ChannelCredentials, float]:
        """Credentials to call others with, a fresh leaf in them, and when to ask for new ones
        (monotonic seconds). Raises AuthorityExpired."""
        key_pem, chain_pem, lifetime_s = self._sign(self._authority())
        credentials = grpc.ssl_channel_credentials(roots_pem, key_pem, chain_pem)
        return credentials, self._monotonic() + lifetime_s / 2

    def signer(self) -> WorkloadSigner:
        """Signs statements with a leaf of ours that is at most half through its life."""
        with self._lock:
            if self._statements is None or self._monotonic() >= self._statements[1]:
                authority = self._authority()
                key_pem, chain_pem, lifetime_s = self._sign(authority)
                material = TlsMaterial(key_pem, chain_pem, authority.bundle.to_pem())
                until = self._monotonic() + lifetime_s / 2
                self._statements = WorkloadSigner(material), until
            return self._statements[0]

    def _issue(self) -> grpc.ServerCertificateConfiguration:
        authority = self._authority()
        key_pem, chain_pem, lifetime_s = self._sign(authority)
        self._renew_at = self._monotonic() + lifetime_s / 2
        self._signer = authority.issuer_sha256
        return grpc.ssl_server_certificate_configuration([(key_pem, chain_pem)])

    def _sign(self, authority: Authority) -> tuple[bytes, bytes, float]:
        """A new key, its chain, and how long it lives."""
        key = ec.generate_private_key(ec.SECP256R1())
        issued = authority.issue(self._order, key.public_key(), self._clock())
        key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return key_pem, to_pem(issued.chain_der), issued.lifetime.total_seconds()
