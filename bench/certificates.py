"""Certificates for one run: an authority, a leaf for each end, and a stranger's leaf.

The leaves have the form that podlink's own authority gives them (docs/design): P-256, exactly one
URI SAN, the address as IP SAN, critical keyUsage digitalSignature, both extended key usages. All
three kinds of proxy use the same files.
"""

import datetime as dt
import ipaddress
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs.trust.bans import RANDOM_BITS, pod_serial
from kit.clock import utcnow

NEAR_IDENTITY = "spiffe://cluster.local/ns/bench/sa/near"
FAR_IDENTITY = "spiffe://cluster.local/ns/bench/sa/far"
_LIFETIME = dt.timedelta(hours=12)
_BACKDATE = dt.timedelta(seconds=60)


@dataclass(frozen=True)
class Files:
    """Where one leaf lies, in the three forms that the proxies want to read."""

    chain: Path
    key: Path
    both: Path
    """Chain, then key, in one file: HAProxy's form."""


@dataclass(frozen=True)
class Certificates:
    folder: Path
    authority: Path
    near: Files
    far: Files
    stranger: Files
    """Names the far identity, signed by an authority of the same name that nobody trusts."""


def make_certificates(folder: Path) -> Certificates:
    """Write `ca.pem` and `{near,far,stranger}.{pem,key,both.pem}` into `folder`."""
    key, authority = _authority()
    other_key, other_authority = _authority()
    pem = folder / "ca.pem"
    pem.write_bytes(_pem(authority))
    return Certificates(
        folder=folder,
        authority=pem,
        near=_leaf(folder, "near", NEAR_IDENTITY, key, authority),
        far=_leaf(folder, "far", FAR_IDENTITY, key, authority),
        stranger=_leaf(folder, "stranger", FAR_IDENTITY, other_key, other_authority),
    )


def _authority() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "podlink bench authority")])
    usage = _usage(signature=False, authority=True)
    now = utcnow()
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key, cert


def _leaf(
    folder: Path,
    name: str,
    identity: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate,
) -> Files:
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName(
        [
            x509.UniformResourceIdentifier(identity),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
    )
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    now = utcnow()
    cert = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(pod_serial(name, secrets.randbits(RANDOM_BITS)))
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(issuer.not_valid_after_utc)
        .add_extension(names, critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signature=True, authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(issuer_id, critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    files = Files(folder / f"{name}.pem", folder / f"{name}.key", folder / f"{name}.both.pem")
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    files.chain.write_bytes(_pem(cert))
    for path, content in ((files.key, private), (files.both, _pem(cert) + private)):
        path.touch(mode=0o600)
        path.write_bytes(content)
    return files


def _usage(*, signature: bool, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(cert: x509.Certificate) -> bytes:
    return cert.public_bytes(serialization.Encoding.PEM)
