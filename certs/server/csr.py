"""Reads a CSR: its public key, once the caller has proved that it holds the private one. Pure.

Nothing else in it counts: names, extensions and attributes are not even looked at, so they cannot
find their way into a certificate (CVE-2022-40716 was a CSR with two URIs).
"""

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from certs.server.refusals import RequestRefused

MAX_CSR_BYTES = 4096
"""Ours take some 200 bytes. Checked before any parsing."""


def read_csr(der: bytes) -> ec.EllipticCurvePublicKey:
    """The P-256 key that signed this PKCS #10 request; raises RequestRefused."""
    if len(der) > MAX_CSR_BYTES:
        raise RequestRefused("csr_too_long", f"{len(der)} bytes")
    try:
        csr = x509.load_der_x509_csr(der)
        key = csr.public_key()
    except Exception as e:  # unreadable bytes, unknown algorithms, points off the curve
        raise RequestRefused("csr_malformed", f"{type(e).__name__}: {e}") from e
    # The kind of key first: checking a signature of an RSA-16384 key is work for the attacker.
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RequestRefused("csr_key", "the key is not on P-256")
    try:
        proved = csr.is_signature_valid
    except Exception as e:
        raise RequestRefused("csr_signature", f"{type(e).__name__}: {e}") from e
    if not proved:
        raise RequestRefused("csr_signature", "not signed by its own key")
    return key
