"""A statement signed with a workload's own key, and the check of one.

The signature is by the leaf's key over a fixed prefix and the statement, so that it can never be taken
for another signature of that key (TLS 1.3 signs with prefixes of its own: RFC 8446, section 4.4.3).
"""

import base64
import binascii
import datetime as dt
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from certs.evidence.chain import Signed
from certs.trust.bundle import TrustBundle
from certs.trust.contexts import MAX_CHAIN, TlsMaterial
from certs.trust.facts import LeafFacts
from certs.trust.svid import SvidRefused, check_leaf

_PREFIX: Final = b"podlink-statement-1\0"
_MAX_BYTES: Final = 64 * 1024


class StatementRefused(Exception):
    """This signature proves nothing. `reason` is a slug; the text says what does not hold."""

    reason = "statement_refused"


class WorkloadSigner:
    """Signs with the key of one SVID's material. Some 50 us a signature."""

    def __init__(self, material: TlsMaterial) -> None:
        """Raises ValueError if the key is no P-256 key."""
        key = load_pem_private_key(material.key_pem, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("statements are signed with EC keys only")
        self._key = key
        chain = x509.load_pem_x509_certificates(material.chain_pem)
        self._certificates = ",".join(_text(c.public_bytes(Encoding.DER)) for c in chain)

    def sign(self, statement: str) -> Signed:
        signature = self._key.sign(_PREFIX + statement.encode(), ec.ECDSA(hashes.SHA256()))
        return Signed(_text(signature), self._certificates)


def check_statement(
    statement: str, signed: Signed, bundle: TrustBundle, at: dt.datetime
) -> LeafFacts:
    """Who signed the statement, judged as of `at`, the time that the statement names: the leaf was an
    SVID then, and its chain ends in a root of the bundle. Raises StatementRefused.

    No clock stands behind `at` but the signer's: a stolen key can sign for any time of its leaf's
    life, and a leaf lives an hour.
    """
    if len(statement) + len(signed.signature) + len(signed.certificates) > _MAX_BYTES:
        raise StatementRefused("the statement is too long")
    try:
        ders = [base64.b64decode(part, validate=True) for part in signed.certificates.split(",")]
        signature = base64.b64decode(signed.signature, validate=True)
        facts = check_leaf(ders[0], trust_domain=bundle.trust_domain, now=at)
        chain = [x509.load_der_x509_certificate(der) for der in ders]
    except SvidRefused as e:
        raise StatementRefused(f"the signer's leaf is no SVID: {e}") from e
    except (ValueError, binascii.Error) as e:
        raise StatementRefused(f"signature or certificates are malformed: {e}") from e
    key = chain[0].public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise StatementRefused("the signer's key is no EC key")
    try:
        key.verify(signature, _PREFIX + statement.encode(), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as e:
        raise StatementRefused("the signature is not of this statement by this leaf") from e
    _check_chain(chain, [x509.load_der_x509_certificate(root) for root in bundle.roots], at)
    return facts


def _check_chain(
    chain: Sequence[x509.Certificate], roots: Iterable[x509.Certificate], at: dt.datetime
) -> None:
    """Each certificate is issued by the next, and the last by a root; all valid at `at`."""
    if len(chain) > MAX_CHAIN:
        raise StatementRefused(f"a chain of {len(chain)} certificates")
    for issued, issuer in pairwise(chain):
        if not _is_authority(issuer, at) or not _issued_by(issued, issuer):
            raise StatementRefused("the signer's chain is broken")
    last = chain[-1]
    if not any(
        _is_authority(root, at) and (last == root or _issued_by(last, root)) for root in roots
    ):
        raise StatementRefused("the signer's chain ends in no root of the bundle")


def _is_authority(cert: x509.Certificate, at: dt.datetime) -> bool:
    try:
        basic = cert.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = cert.extensions.get_extension_for_class(x509.KeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    valid = cert.not_valid_before_utc <= at < cert.not_valid_after_utc
    return basic.ca and usage.key_cert_sign and valid


def _issued_by(cert: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        cert.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
