"""Turns a verified request into a leaf: template, sign, read back, judge.

The one path by which a certificate comes to be. Nothing of the request but its public key gets in;
who, where and how long are decided by the caller of `Authority.issue` from the token and the API.
"""

import datetime as dt
import ipaddress
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from certs.trust.bans import RANDOM_BITS, pod_serial
from certs.trust.bundle import TrustBundle
from certs.trust.facts import LeafFacts
from certs.trust.identity import WorkloadIdentity
from certs.trust.svid import SvidRefused, check_leaf
from kit.addresses import canonical_ip

BACKDATE = dt.timedelta(seconds=60)
"""Peers whose clocks run behind ours by less than this believe a new leaf at once."""
MIN_LIFETIME = dt.timedelta(seconds=5)
MAX_NAMES = 16
"""DNS names and addresses in one leaf; a dual-stack pod has two."""

SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
IP = ipaddress.IPv4Address | ipaddress.IPv6Address


class AuthorityExpired(Exception):
    """The issuer's own certificate ends before the shortest leaf would: nothing can be signed."""

    reason = "authority_expired"


class CertificateUnsound(Exception):
    """What we signed is not what we meant to sign. Never handed out; a bug or an attack."""

    reason = "certificate_unsound"


@dataclass(frozen=True, slots=True)
class Order:
    """What a leaf shall say. Built from the token and the API, never from a CSR."""

    identity: WorkloadIdentity
    ips: frozenset[str]
    dns_names: tuple[str, ...] = ()
    lifetime: dt.timedelta = dt.timedelta(hours=1)
    pod_uid: str = ""
    """Goes into the serial as a digest, by which a ban of the pod knows its leaves."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A leaf that was read back and judged. `chain_der` is the leaf, then intermediates."""

    chain_der: tuple[bytes, ...]
    facts: LeafFacts
    lifetime: dt.timedelta
    """From the moment of signing to the leaf's end; the backdating is not part of it."""
    issuer_sha256: str = ""
    """Of the certificate whose key signed, lower-case hex."""
    issuer_name: str = ""
    """The subject of that certificate."""


@dataclass(frozen=True)
class Authority:
    """A signing key and the certificate chain above it. Made by `certs.authority.keys`."""

    trust_domain: str
    key: SigningKey = field(repr=False)
    issuer: x509.Certificate
    intermediates_der: tuple[bytes, ...]
    """The issuer and what stands between it and the root; empty if the issuer is the root."""
    bundle: TrustBundle
    chain_ends: dt.datetime | None = None
    """When the first certificate above the leaf ends, the root's included; None: the issuer's end."""

    @property
    def issuer_sha256(self) -> str:
        return self.issuer.fingerprint(hashes.SHA256()).hex()

    @property
    def ends_at(self) -> dt.datetime:
        """No leaf may live longer."""
        return self.chain_ends or self.issuer.not_valid_after_utc

    def issue(
        self, order: Order, public_key: ec.EllipticCurvePublicKey, now: dt.datetime
    ) -> Issued:
        """Sign a leaf for `order`; raises AuthorityExpired or CertificateUnsound."""
        # X.509 counts whole seconds; rounding down keeps the promise made in `lifetime`.
        start = now.replace(microsecond=0)
        lifetime = min(order.lifetime, self.ends_at - start)
        if lifetime < MIN_LIFETIME:
            raise AuthorityExpired(f"ends at {self.ends_at.isoformat()}")
        leaf = _template(order, public_key, self.issuer, start, lifetime).sign(
            self.key, hashes.SHA256()
        )
        der = leaf.public_bytes(Encoding.DER)
        facts = self._judge(der, order, public_key, now)
        name = self.issuer.subject.rfc4514_string()
        chain = (der, *self.intermediates_der)
        return Issued(chain, facts, lifetime, self.issuer_sha256, name)

    def _judge(
        self, der: bytes, order: Order, public_key: ec.EllipticCurvePublicKey, now: dt.datetime
    ) -> LeafFacts:
        """Read the signed bytes back as a peer would, and refuse any surprise."""
        try:
            facts = check_leaf(der, trust_domain=self.trust_domain, now=now)
            leaf = x509.load_der_x509_certificate(der)
            leaf.verify_directly_issued_by(self.issuer)
        except SvidRefused as e:
            raise CertificateUnsound(str(e)) from e
        except Exception as e:
            raise CertificateUnsound(f"not signed by the issuer: {e}") from e
        san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = sorted(san.get_values_for_type(x509.DNSName))
        if (facts.identity, facts.ips) != (order.identity, order.ips):
            raise CertificateUnsound("identity or addresses differ from the order")
        if names != sorted(order.dns_names):
            raise CertificateUnsound("DNS names differ from the order")
        if _spki(leaf.public_key()) != _spki(public_key):
            raise CertificateUnsound("the key is not the requested one")
        return facts


def clamp_lifetime(wished_s: int, default: dt.timedelta, longest: dt.timedelta) -> dt.timedelta:
    """The lifetime to grant for a wish in seconds; 0 wishes nothing. Never refuses, only clamps."""
    wished = dt.timedelta(seconds=wished_s) if wished_s > 0 else default
    return max(min(wished, longest), min(MIN_LIFETIME, longest))


def _template(
    order: Order,
    public_key: ec.EllipticCurvePublicKey,
    issuer: x509.Certificate,
    start: dt.datetime,
    lifetime: dt.timedelta,
) -> x509.CertificateBuilder:
    if len(order.ips) + len(order.dns_names) > MAX_NAMES:
        raise CertificateUnsound(f"more than {MAX_NAMES} names and addresses")
    return (
        x509.CertificateBuilder()
        # The identity is the URI alone: a subject would invite somebody to match on it. An empty
        # one makes the critical subjectAltName mandatory (RFC 5280, 4.2.1.6).
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .public_key(public_key)
        .serial_number(pod_serial(order.pod_uid, secrets.randbits(RANDOM_BITS)))
        .not_valid_before(start - BACKDATE)
        .not_valid_after(start + lifetime)
        .add_extension(_names(order.identity, order.ips, order.dns_names), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(digital_signature=True), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(_authority_key_identifier(issuer), critical=False)
    )


def _names(
    identity: WorkloadIdentity, ips: Collection[str], dns_names: Sequence[str]
) -> x509.SubjectAlternativeName:
    addresses: list[IP] = sorted(map(ipaddress.ip_address, ips), key=lambda ip: (ip.version, ip))
    return x509.SubjectAlternativeName(
        [
            x509.UniformResourceIdentifier(str(identity)),
            *map(x509.DNSName, dns_names),
            *map(x509.IPAddress, addresses),
        ]
    )


def canonical_ips(raw_ips: Collection[str]) -> frozenset[str]:
    """Addresses fit for a leaf, in canonical text; raises ValueError for anything else.

    An unspecified, multicast or scoped address names no single pod.
    """
    found = set()
    for raw in raw_ips:
        ip = ipaddress.ip_address(raw)
        if ip.is_unspecified or ip.is_multicast or "%" in raw:
            raise ValueError(f"not the address of a pod: {raw!r}")
        found.add(canonical_ip(ip))
    return frozenset(found)


def key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    """The keyUsage extension with these bits set and no others."""
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_key_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        ski = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        key = issuer.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski)


def _spki(key: object) -> bytes:
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
