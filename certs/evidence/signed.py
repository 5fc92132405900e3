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
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from certs.evidence.chain import Signed
from certs.trust.bundle import TrustBundle
from certs.trust.contexts import MAX_CHAIN, TlsMaterial
from certs.trust.facts import LeafFacts
from certs.trust.svid import SvidRefused, check_leaf

_PREFIX: Final = b"podlink-statement-1\0"
_MAX_BYTES: Final = 64 * 1024
_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of P-256 (SEC 2, 2.4.2)."""


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
        r, s = decode_dss_signature(signature)
        return Signed(_text(encode_dss_signature(r, min(s, _ORDER - s))), self._certificates)


def check_statement(
    statement: str, signed: Signed, bundle: TrustBundle, at: dt.datetime, *, exact: bool = False
) -> LeafFacts:
    """Who signed the statement, judged as of `at`, the time that the statement names: the leaf was an
    SVID then, and its chain ends in a root of the bundle. Raises StatementRefused.

    `exact` takes one spelling only of the signature and the certificates, the one that `sign` makes of
    a chain without its root: whoever has no key cannot make a second document of the same statement.

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
    roots = [x509.load_der_x509_certificate(root) for root in bundle.roots]
    _check_chain(chain, roots, at)
    if exact:
        _check_spelling(signed, signature, ders, repeats_root=len(chain) > 1 and chain[-1] in roots)
    return facts


def _check_spelling(
    signed: Signed, signature: bytes, ders: Sequence[bytes], *, repeats_root: bool
) -> None:
    """(RFC 4648, 3.5: base64 has spare bits. SEC 1, 4.1: where the signature (r, s) holds, (r, n - s)
    does as well.)"""
    spelled = Signed(_text(signature), ",".join(map(_text, ders)))
    if spelled != signed or decode_dss_signature(signature)[1] > _ORDER // 2:
        raise StatementRefused("signature or certificates are not spelled as they were signed")
    if repeats_root:
        raise StatementRefused("a root was appended to the signer's certificates")


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
