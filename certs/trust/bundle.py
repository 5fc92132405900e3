"""The roots we trust, for one trust domain. A list from the first day, so that roots can rotate.

(SPIFFE Trust Domain and Bundle standard, section 4; RFC 7468 for PEM.)
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

MAX_ROOTS = 16
MAX_PEM_BYTES = 128 * 1024
_MIN_RSA_BITS, _MAX_RSA_BITS = 2048, 8192


class BundleRefused(Exception):
    """These bytes are no set of roots we could trust; the text says which rule they break."""

    reason = "bundle_refused"


@dataclass(frozen=True, slots=True)
class TrustBundle:
    """The roots of `trust_domain`, DER, each once, in the order given.

    `generation` grows by one with every change of the set; 0: nobody numbered it (a file).
    """

    trust_domain: str
    generation: int
    roots: tuple[bytes, ...]

    @classmethod
    def of(cls, trust_domain: str, generation: int, roots_der: Iterable[bytes]) -> Self:
        """Check every root; raises BundleRefused if one is no CA certificate, or there is none."""
        roots = tuple(dict.fromkeys(roots_der))
        if not roots:
            raise BundleRefused("the bundle is empty")
        if len(roots) > MAX_ROOTS:
            raise BundleRefused(f"{len(roots)} roots, at most {MAX_ROOTS}")
        for root in roots:
            _check_root(root)
        return cls(trust_domain, generation, roots)

    @classmethod
    def from_pem(cls, trust_domain: str, generation: int, pem: bytes) -> Self:
        """Read concatenated PEM certificates. Duplicates count once; raises BundleRefused."""
        if len(pem) > MAX_PEM_BYTES:
            raise BundleRefused(f"{len(pem)} bytes of PEM, at most {MAX_PEM_BYTES}")
        try:
            found = x509.load_pem_x509_certificates(pem)
        except ValueError as e:
            raise BundleRefused("not PEM certificates") from e  # the parser's text helps nobody
        return cls.of(trust_domain, generation, (c.public_bytes(Encoding.DER) for c in found))

    def to_pem(self) -> bytes:
        """The same roots as concatenated PEM, as in the ConfigMap and in TLS contexts."""
        certs = map(x509.load_der_x509_certificate, self.roots)
        return b"".join(c.public_bytes(Encoding.PEM) for c in certs)

    def fingerprints(self) -> tuple[str, ...]:
        """SHA-256 of each root, lower-case hex, for logs."""
        return tuple(hashlib.sha256(root).hexdigest() for root in self.roots)


def _check_root(der: bytes) -> None:
    try:
        cert = x509.load_der_x509_certificate(der)
        constraints = cert.extensions.get_extension_for_class(x509.BasicConstraints).value
        key = cert.public_key()
    except Exception as e:  # whatever the parser objects to, it is no root
        raise BundleRefused(f"not a CA certificate: {type(e).__name__}: {e}"[:256]) from e
    if not constraints.ca:
        raise BundleRefused("not a CA certificate: CA:FALSE")
    try:
        usage = cert.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        usage = None
    if usage is not None and not usage.key_cert_sign:
        raise BundleRefused("not a CA certificate: no keyCertSign")
    if not cert.subject.rdns:  # OpenSSL's strict mode would refuse every chain that ends here
        raise BundleRefused("a root with an empty subject")
    if isinstance(key, rsa.RSAPublicKey):
        if not _MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS:
            raise BundleRefused(f"a root with an RSA key of {key.key_size} bits")
    elif not isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        raise BundleRefused(f"a root with a key of kind {type(key).__name__}")
    try:
        cert.verify_directly_issued_by(cert)
    except Exception as e:  # TLS ends a chain at a self-signed certificate only
        raise BundleRefused("an intermediate where a root belongs: not self-signed") from e
