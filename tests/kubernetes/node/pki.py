"""Keys, certificates and kubeconfigs of one test cluster: what kubeadm would make, and no more."""

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from kit.clock import utcnow

_LIFE = dt.timedelta(days=2)
_BACKDATE = dt.timedelta(minutes=5)


@dataclass(frozen=True)
class Authority:
    key: ec.EllipticCurvePrivateKey
    cert: x509.Certificate

    @classmethod
    def new(cls) -> "Authority":
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("test cluster")
        cert = _builder(name, name, key).add_extension(x509.BasicConstraints(True, 0), True)
        return cls(key, cert.sign(key, hashes.SHA256()))

    def pem(self) -> bytes:
        return self.cert.public_bytes(serialization.Encoding.PEM)

    def issue(
        self, folder: Path, who: str, groups: Sequence[str] = (), hosts: Sequence[str] = ()
    ) -> Path:
        """Write `<who>.crt` and `<who>.key`; returns the path without its suffix."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = _builder(_name(who, groups), self.cert.subject, key)
        names = [_general(one) for one in hosts]
        if names:
            made = made.add_extension(x509.SubjectAlternativeName(names), False)
        cert = made.sign(self.key, hashes.SHA256())
        path = folder / who.replace(":", "-")
        write_secret(path.with_suffix(".key"), _pem(key))
        path.with_suffix(".crt").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        return path


def write_secret(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)


def write_signing_key(path: Path) -> None:
    """The key of service-account tokens."""
    write_secret(path, _pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)))


def kubeconfig(server: str, authority: Path, token: str) -> str:
    made: dict[str, Any] = {
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [
            {"name": "test", "cluster": {"server": server, "certificate-authority": str(authority)}}
        ],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }  # fmt: skip
    return yaml.safe_dump(made)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = utcnow()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + _LIFE)
    )


def _name(common: str, groups: Sequence[str] = ()) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, one) for one in groups]
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
