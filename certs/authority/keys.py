"""Makes a root, and reads a signing key with the certificates above it.

A key that does not fit its certificate, an issuer that may not sign, or a chain that does not lead
to the root is refused at start: a CA that cannot prove itself must not answer anybody.
"""

import datetime as dt
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from certs.authority.issue import Authority, SigningKey, key_usage
from certs.trust.bundle import MAX_PEM_BYTES, BundleRefused, TrustBundle
from certs.trust.contexts import MAX_CHAIN

ROOT_LIFETIME = dt.timedelta(days=3650)
ROOT_BACKDATE = dt.timedelta(hours=1)


class AuthorityRefused(Exception):
    """This key and these certificates make no certificate authority; the text says why."""

    reason = "authority_refused"


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """The three entries of a `kubernetes.io/tls` Secret that a CA lives in, PEM.

    `ca_crt` may be empty: then the last certificate of `tls_crt` must be the root itself.
    """

    tls_key: bytes = field(repr=False)
    tls_crt: bytes
    ca_crt: bytes = b""


def create_root(trust_domain: str, now: dt.datetime) -> KeyFiles:
    """A new P-256 root of ten years for `trust_domain`; pure but for the randomness."""
    key = ec.generate_private_key(ec.SECP256R1())
    start = now.replace(microsecond=0)
    # Two roots of one trust domain need different names, or peers that hold both during a rotation
    # cannot tell from a leaf which of the two signed it. (A strict OpenSSL refuses an empty one.)
    serial = x509.random_serial_number()
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "podlink"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{trust_domain[:40]} {serial:x}"[:64]),
        ]
    )
    uri = x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(start - ROOT_BACKDATE)
        .not_valid_after(start + ROOT_LIFETIME)
        # It signs leaves and nothing that signs.
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    cert_pem = cert.public_bytes(Encoding.PEM)
    return KeyFiles(key_pem, cert_pem, cert_pem)


def load_authority(
    files: KeyFiles, trust_domain: str, generation: int, now: dt.datetime
) -> Authority:
    """Check that everything fits and return what can sign; raises AuthorityRefused."""
    key = _read_key(files.tls_key)
    chain = _read_chain(files.tls_crt)
    issuer = chain[0]
    if _spki(key.public_key()) != _spki(issuer.public_key()):
        raise AuthorityRefused("tls.key is not the key of the first certificate in tls.crt")
    roots_pem = files.ca_crt or chain[-1].public_bytes(Encoding.PEM)
    try:
        bundle = TrustBundle.from_pem(trust_domain, generation, roots_pem)
    except BundleRefused as e:
        raise AuthorityRefused(f"ca.crt, or the end of tls.crt: {e}") from e
    for der in bundle.roots:
        _check_trust_domain(x509.load_der_x509_certificate(der), trust_domain)
    for cert in chain:
        _check_trust_domain(cert, trust_domain)
        _check_may_sign(cert)
        if not cert.not_valid_before_utc <= now < cert.not_valid_after_utc:
            raise AuthorityRefused(f"a certificate of tls.crt is not valid now: {_name(cert)}")
    intermediates, root = _lead_to_root(chain, bundle)
    ends = min(cert.not_valid_after_utc for cert in (*chain, root))
    if ends <= now:
        raise AuthorityRefused(f"the root above tls.crt has ended: {_name(root)}")
    return Authority(trust_domain, key, issuer, intermediates, bundle, ends)


def _read_key(pem: bytes) -> SigningKey:
    try:
        key = load_pem_private_key(pem, password=None)
    except Exception as e:  # never the original text: it might quote the key
        raise AuthorityRefused(f"tls.key is not a PEM private key ({type(e).__name__})") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise AuthorityRefused("tls.key is neither an EC nor an RSA key")
    return key


def _read_chain(pem: bytes) -> list[x509.Certificate]:
    if len(pem) > MAX_PEM_BYTES:
        raise AuthorityRefused("tls.crt is too large")
    try:
        chain = x509.load_pem_x509_certificates(pem)
    except ValueError as e:
        raise AuthorityRefused(f"tls.crt holds no PEM certificates: {e}") from e
    if len(chain) > MAX_CHAIN:
        raise AuthorityRefused(f"tls.crt holds {len(chain)} certificates, at most {MAX_CHAIN}")
    return chain


def _check_trust_domain(cert: x509.Certificate, trust_domain: str) -> None:
    """One that names its trust domain may not sign for another. (X509-SVID, section 2.)"""
    try:
        san = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return
    except ValueError as e:
        raise AuthorityRefused(f"{_name(cert)}: its names cannot be read: {e}") from e
    named = san.get_values_for_type(x509.UniformResourceIdentifier)
    if named and named != [f"spiffe://{trust_domain}"]:
        raise AuthorityRefused(
            f"{_name(cert)} is for {named[0][:256]!r}, not for trust domain {trust_domain}"
        )


def _check_may_sign(cert: x509.Certificate) -> None:
    try:
        may = cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        usage = cert.extensions.get_extension_for_class(x509.KeyUsage).value
    except (x509.ExtensionNotFound, ValueError) as e:
        raise AuthorityRefused(f"in tls.crt, {_name(cert)} is no CA certificate: {e}") from e
    if not (may and usage.key_cert_sign and cert.subject.rdns):
        raise AuthorityRefused(f"in tls.crt, {_name(cert)!r} may not sign certificates")


def _lead_to_root(
    chain: list[x509.Certificate], bundle: TrustBundle
) -> tuple[tuple[bytes, ...], x509.Certificate]:
    """The DER of what peers need besides the leaf and the roots, and the root that it leads to."""
    roots = [x509.load_der_x509_certificate(der) for der in bundle.roots]
    needed: list[bytes] = []
    for at, cert in enumerate(chain):
        der = cert.public_bytes(Encoding.DER)
        if der in bundle.roots:
            return tuple(needed), cert
        needed.append(der)
        above = chain[at + 1 : at + 2] or roots
        signed = [candidate for candidate in above if _signed_by(cert, candidate)]
        if not signed:
            raise AuthorityRefused(f"nothing in tls.crt or ca.crt signed {_name(cert)}")
    return tuple(needed), signed[0]


def _signed_by(cert: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        cert.verify_directly_issued_by(issuer)
    except Exception:
        return False
    return True


def _spki(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise AuthorityRefused("the key in tls.crt is neither EC nor RSA")
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _name(cert: x509.Certificate) -> str:
    return cert.subject.rfc4514_string()[:256]
