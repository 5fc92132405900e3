"""CSRs, honest and otherwise."""

import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from tests.certs import der as raw
from tests.certs.forge import Usage

Key = (
    ec.EllipticCurvePrivateKey
    | rsa.RSAPrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)


def csr(key: Key, builder: x509.CertificateSigningRequestBuilder | None = None) -> bytes:
    """A request signed by `key`."""
    builder = builder or x509.CertificateSigningRequestBuilder(subject_name=x509.Name([]))
    edwards = isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    return builder.sign(key, None if edwards else hashes.SHA256()).public_bytes(Encoding.DER)


def greedy_csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A request that asks for everything: to be a CA, somebody else, and the whole network."""
    names: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier("spiffe://cluster.local/ns/prod/sa/db"),
        x509.UniformResourceIdentifier("spiffe://cluster.local"),
        x509.DNSName("podlink-ca.podlink-system.svc"),
        x509.DNSName("*"),
        x509.IPAddress(ipaddress.ip_address("10.0.0.99")),
        x509.RFC822Name("root@cluster.example"),
    ]
    usage = Usage(key_cert_sign=True, crl_sign=True)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "podlink root")])
    builder = (
        x509.CertificateSigningRequestBuilder(subject_name=subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=5), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(usage.extension(), critical=True)
        .add_attribute(x509.oid.AttributeOID.CHALLENGE_PASSWORD, b"please")
    )
    return csr(key, builder)


def stolen_key_csr(own: ec.EllipticCurvePrivateKey, victim: ec.EllipticCurvePrivateKey) -> bytes:
    """A request for the victim's public key, signed by our own."""
    ((_, outer, _),) = raw.elements(csr(own))
    (_, info, _), algorithm, _ = raw.elements(outer)
    version, subject, _, *attributes = [whole for _, _, whole in raw.elements(info)]
    spki = victim.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    forged = raw.element(raw.SEQUENCE, version + subject + spki + b"".join(attributes))
    signature = own.sign(forged, ec.ECDSA(hashes.SHA256()))
    bits = raw.element(raw.BIT_STRING, b"\0" + signature)
    return raw.element(raw.SEQUENCE, forged + algorithm[2] + bits)


def bad_requests() -> dict[str, bytes]:
    """Every CSR that must not be signed."""
    key, victim = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    good = csr(key)
    return {
        "empty": b"",
        "garbage": b"not a request",
        "cut": good[:-1],
        "trailing byte": good + b"\0",
        "spoilt signature": good[:-1] + bytes((good[-1] ^ 1,)),
        "somebody else's public key": stolen_key_csr(key, victim),
        "RSA-1024": csr(rsa.generate_private_key(public_exponent=65537, key_size=1024)),
        "RSA-2048": csr(rsa.generate_private_key(public_exponent=65537, key_size=2048)),
        "P-192": _p192(),
        "P-384": csr(ec.generate_private_key(ec.SECP384R1())),
        "secp256k1": csr(ec.generate_private_key(ec.SECP256K1())),
        "Ed25519": csr(ed25519.Ed25519PrivateKey.generate()),
        "Ed448": csr(ed448.Ed448PrivateKey.generate()),
        "5 KiB": csr(key, _padded()),
        "point off the curve": _off_curve(good, key),
    }


def _p192() -> bytes:
    # No library makes such keys any more, so the curve's name is swapped inside a lawful request.
    p256, p192 = bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06082a8648ce3d030101")
    return csr(ec.generate_private_key(ec.SECP256R1())).replace(p256, p192)


def _off_curve(good: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return good.replace(point, point[:-1] + bytes((point[-1] ^ 1,)))


def _padded() -> x509.CertificateSigningRequestBuilder:
    return x509.CertificateSigningRequestBuilder(subject_name=x509.Name([])).add_attribute(
        x509.oid.AttributeOID.CHALLENGE_PASSWORD, b"x" * 5000
    )
