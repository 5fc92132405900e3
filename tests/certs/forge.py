"""A certificate forge: one CA, good leaves, and every bad leaf we know of.

    forge = Forge()
    key_pem, chain_pem = forge.leaf("spiffe://cluster.local/ns/shop/sa/api", ips=["10.0.0.7"])
    for name, bad in forge.bad_leaves().items():
        ...  # bad.key_pem, bad.chain_pem, bad.reason

It shares no code with certs/: what the CA issues and what the forge issues are judged by the same
validator, and neither can hide the other's mistake.

A leaf lives for an hour from the moment it is made, and a run may take longer. So under pytest a leaf
is made within the test that uses it: one that is made on import or by a fixture of a module or a
session, without times of its own, is an error at once (`tests.limits`), not an hour later.
"""

import datetime as dt
import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID as Use
from cryptography.x509.oid import ExtensionOID, NameOID, ObjectIdentifier

from tests.certs import der as raw

DEFAULT = "spiffe://cluster.local/ns/shop/sa/api"
BOTH = (Use.SERVER_AUTH, Use.CLIENT_AUTH)
PRIVATE_OID = ObjectIdentifier("1.3.6.1.4.1.55555.1")
DAY = dt.timedelta(days=1)
LIFETIME = dt.timedelta(hours=1)
"""Of a leaf, unless a test says otherwise."""
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


class MadeTooEarly(RuntimeError):
    """A leaf was made where it may have ended before a test uses it."""


_too_early = False


def leaves_may_be_made(allowed: bool) -> bool:
    """Say whether this is the moment of use; returns what held before."""
    global _too_early
    before, _too_early = not _too_early, not allowed
    return before


class Pair(NamedTuple):
    """A key and its chain (the leaf first), both PEM, as `TlsMaterial` takes them."""

    key_pem: bytes
    chain_pem: bytes

    @property
    def der(self) -> bytes:
        """The leaf alone."""
        return first_der(self.chain_pem)


class BadLeaf(NamedTuple):
    """A leaf that must be refused, and the reason slug that the validator must give."""

    key_pem: bytes
    chain_pem: bytes
    reason: str

    @property
    def der(self) -> bytes:
        return first_der(self.chain_pem)


@dataclass(frozen=True)
class Usage:
    """The nine bits of keyUsage that matter here."""

    digital_signature: bool = True
    key_encipherment: bool = False
    key_cert_sign: bool = False
    crl_sign: bool = False

    def extension(self) -> x509.KeyUsage:
        return x509.KeyUsage(
            digital_signature=self.digital_signature,
            content_commitment=False,
            key_encipherment=self.key_encipherment,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=self.key_cert_sign,
            crl_sign=self.crl_sign,
            encipher_only=False,
            decipher_only=False,
        )


class Forge:
    """One CA with a P-256 root. Pass `name` to make another with the same subject, or not."""

    def __init__(
        self, trust_domain: str = "cluster.local", name: str = "podlink test root"
    ) -> None:
        self.trust_domain = trust_domain
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.root = self._make_root(name)
        self.root_der = self.root.public_bytes(Encoding.DER)
        self.root_pem = self.root.public_bytes(Encoding.PEM)

    @property
    def now(self) -> dt.datetime:
        """The present second: each leaf counts from when it is made."""
        return dt.datetime.now(dt.UTC).replace(microsecond=0)

    def leaf(
        self,
        identity: str | None = DEFAULT,
        *,
        uris: Sequence[str] | None = None,
        ips: Sequence[str] = (),
        dns: Sequence[str] = (),
        names: Sequence[x509.GeneralName] = (),
        raw_san: bytes | None = None,
        san: bool = True,
        san_critical: bool = True,
        subject: str | None = None,
        key: PrivateKey | None = None,
        usage: Usage | None = Usage(),
        usage_critical: bool = True,
        uses: Sequence[ObjectIdentifier] = BOTH,
        ca: bool = False,
        constraints: bool = True,
        not_before: dt.datetime | None = None,
        not_after: dt.datetime | None = None,
        extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
        issuer: "Pair | None" = None,
        serial: int | None = None,
    ) -> Pair:
        """A leaf for `identity`, lawful unless a tweak says otherwise.

        `raw_san` is the DER of the whole subjectAltName value; `issuer` signs instead of the root
        (a leaf that signs a leaf), and its chain follows. Raises MadeTooEarly.
        """
        if _too_early and not_after is None:
            raise MadeTooEarly("a leaf is made in the test that uses it, or with times of its own")
        now = self.now
        key = key or ec.generate_private_key(ec.SECP256R1())
        signer, signer_name, signer_public = self._signer(issuer)
        subject_name = [x509.NameAttribute(NameOID.COMMON_NAME, subject)] if subject else []
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(subject_name))
            .issuer_name(signer_name)
            .public_key(key.public_key())
            .serial_number(serial or x509.random_serial_number())
            .not_valid_before(not_before or now - dt.timedelta(minutes=1))
            .not_valid_after(not_after or now + LIFETIME)
        )
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(signer_public), False)
        ]
        if constraints:
            extensions.append((x509.BasicConstraints(ca=ca, path_length=None), True))
        if usage is not None:
            extensions.append((usage.extension(), usage_critical))
        if uses:
            extensions.append((x509.ExtendedKeyUsage(uses), False))
        if raw_san is not None:
            oid = ExtensionOID.SUBJECT_ALTERNATIVE_NAME
            extensions.append((x509.UnrecognizedExtension(oid, raw_san), san_critical))
        elif san:
            listed = uris if uris is not None else [identity] if identity else []
            general: list[x509.GeneralName] = [x509.UniformResourceIdentifier(u) for u in listed]
            general += [x509.DNSName(name) for name in dns]
            general += [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ips]
            general += names
            extensions.append((x509.SubjectAlternativeName(general), san_critical))
        for extension, critical in (*extensions, *extra):
            builder = builder.add_extension(extension, critical)
        cert = builder.sign(signer, hashes.SHA256())
        above = issuer.chain_pem if issuer else b""
        return Pair(key_to_pem(key), cert.public_bytes(Encoding.PEM) + above)

    def bad_leaves(self) -> dict[str, BadLeaf]:
        """Every leaf that our CA's key could sign and that must still prove nothing."""
        from tests.certs.bad_leaves import recipes

        return {name: make() for name, make in recipes(self).items()}

    def bad_leaf(self, name: str) -> BadLeaf:
        """One of them."""
        from tests.certs.bad_leaves import recipes

        return recipes(self)[name]()

    def untrusted_chains(self) -> dict[str, Pair]:
        """Lawful-looking leaves whose chain must not verify against this forge's root."""
        issuer = self.leaf("spiffe://cluster.local/ns/shop/sa/issuer", subject="issuer")
        ca_like = self.leaf(
            "spiffe://cluster.local/ns/shop/sa/issuer",
            subject="issuer",
            usage=Usage(key_cert_sign=True),
        )
        return {
            "unknown root": Forge(self.trust_domain, name="another root").leaf(),
            "root of the same name with another key": Forge(self.trust_domain).leaf(),
            "leaf signed by a leaf": self.leaf(issuer=issuer),
            "leaf signed by a leaf with keyCertSign": self.leaf(issuer=ca_like),
            "self-signed": self._self_signed(),
        }

    def _make_root(self, name: str) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        public = self.key.public_key()
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now - 3650 * DAY)
            .not_valid_after(self.now + 3650 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
            .add_extension(Usage(False, key_cert_sign=True, crl_sign=True).extension(), True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
            .sign(self.key, hashes.SHA256())
        )

    def _signer(
        self, issuer: Pair | None
    ) -> tuple[ec.EllipticCurvePrivateKey, x509.Name, ec.EllipticCurvePublicKey]:
        if issuer is None:
            return self.key, self.root.subject, self.key.public_key()
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        key = load_pem_private_key(issuer.key_pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key, x509.load_pem_x509_certificate(issuer.chain_pem).subject, key.public_key()

    def _self_signed(self) -> Pair:
        other = Forge(self.trust_domain, name="self")
        return Pair(key_to_pem(other.key), other.root_pem)

    def duplicate_extension(self, oid: ObjectIdentifier) -> Pair:
        """A lawful leaf in which the extension `oid` comes twice."""
        pair = self.leaf()
        cert = x509.load_pem_x509_certificate(pair.chain_pem)
        der = raw.with_extension_twice(cert, oid.dotted_string, self.key)
        return Pair(pair.key_pem, ssl.DER_cert_to_PEM_cert(der).encode())

    def odd_serial(self, content: bytes) -> Pair:
        """A lawful leaf but for the bytes of its serial number."""
        pair = self.leaf()
        cert = x509.load_pem_x509_certificate(pair.chain_pem)
        der = raw.with_serial(cert, content, self.key)
        return Pair(pair.key_pem, ssl.DER_cert_to_PEM_cert(der).encode())

    def version_1(self) -> Pair:
        """A leaf of X.509 version 1: a name, a key, and nothing else."""
        pair = self.leaf()
        cert = x509.load_pem_x509_certificate(pair.chain_pem)
        der = raw.as_version_1(cert, self.key)
        return Pair(pair.key_pem, ssl.DER_cert_to_PEM_cert(der).encode())


def first_der(chain_pem: bytes) -> bytes:
    """The DER of the first certificate, cut out as text: nothing judges it on the way."""
    end = b"-----END CERTIFICATE-----"
    return ssl.PEM_cert_to_DER_cert((chain_pem.split(end)[0] + end).decode().strip() + "\n")


def key_to_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def uri_san(*uris: bytes) -> bytes:
    """The DER of a subjectAltName holding these URIs byte for byte, lawful or not."""
    return raw.element(raw.SEQUENCE, b"".join(raw.element(0x86, uri) for uri in uris))
