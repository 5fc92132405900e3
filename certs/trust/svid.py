"""Decides whether a leaf is a lawful SVID. The only maker of `LeafFacts`.

OpenSSL has verified the chain before this runs, but a verified chain is not a valid X.509-SVID: it
accepts two URI SANs, none at all, CA:TRUE leaves, missing key usage, `..` in paths, foreign trust
domains, NUL bytes (tests/certs/trust/test_svid.py shows each hole). So every rule of the X509-SVID
standard that concerns the leaf is checked here, on the bytes, and more strictly where only our own
CA ever issues. One rule broken is enough; the first one found is named.

(SPIFFE X509-SVID standard, sections 2 to 5; RFC 5280, sections 4.1.2 and 4.2.)
"""

import datetime as dt
import hashlib
import ipaddress
from collections import OrderedDict
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from certs.trust.facts import LeafFacts
from certs.trust.identity import IdentityMalformed, WorkloadIdentity
from kit.addresses import canonical_ip
from kit.clock import Clock, utcnow

E = TypeVar("E", bound=x509.ExtensionType)

MAX_LEAF_BYTES = 4096
"""Ours take some 700 bytes; a dual-stack control-plane leaf stays under 1,000. Checked before any
parsing, so that a huge certificate costs a comparison."""

_UNDERSTOOD_IF_CRITICAL = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    }
)
_BOTH_USES = frozenset({ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH})
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


class SvidRefused(Exception):
    """This leaf proves nothing. `reason` is a stable slug; the text adds what was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail[:256]}" if detail else reason)
        self.reason = reason


def check_leaf(der: bytes, *, trust_domain: str, now: dt.datetime) -> LeafFacts:
    """Return what the leaf says if every rule for one holds at `now`, else raise SvidRefused.

    The chain above it is not looked at: the TLS handshake verifies that.
    """
    if len(der) > MAX_LEAF_BYTES:
        raise SvidRefused("leaf_too_long", f"{len(der)} bytes")
    cert, extensions = _parse(der)
    _check_head(cert)
    _check_signature_algorithms(cert, der)
    _check_extensions(extensions)
    identity, ips = _read_names(cert, extensions)
    if identity.trust_domain != trust_domain:
        raise SvidRefused("trust_domain_foreign", identity.trust_domain)
    facts = LeafFacts(
        identity=identity,
        ips=ips,
        serial=f"{cert.serial_number:x}",
        sha256=hashlib.sha256(der).hexdigest(),
        not_before=cert.not_valid_before_utc,
        not_after=cert.not_valid_after_utc,
    )
    check_times(facts, now)
    return facts


def check_times(facts: LeafFacts, now: dt.datetime) -> None:
    """Raise SvidRefused unless the leaf is valid at `now`. It has expired at `not_after` itself."""
    if now < facts.not_before:
        raise SvidRefused("leaf_not_yet_valid", f"valid from {facts.not_before.isoformat()}")
    if now >= facts.not_after:
        raise SvidRefused("leaf_expired", f"expired at {facts.not_after.isoformat()}")


class SvidChecker:
    """`check_leaf` with a memory: peers meet again and again with the same leaf.

    Call it with the DER. Only leaves that passed are remembered, by the SHA-256 of all their bytes,
    and their times are looked at on every call. The least recently used of `size` is forgotten.
    """

    def __init__(self, trust_domain: str, clock: Clock = utcnow, size: int = 1024) -> None:
        self._trust_domain, self._clock, self._size = trust_domain, clock, size
        self._known: OrderedDict[bytes, LeafFacts] = OrderedDict()

    def __call__(self, der: bytes) -> LeafFacts:
        """The facts of a lawful leaf; raises SvidRefused."""
        if len(der) > MAX_LEAF_BYTES:
            raise SvidRefused("leaf_too_long", f"{len(der)} bytes")
        now = self._clock()
        key = hashlib.sha256(der).digest()
        if (facts := self._known.get(key)) is not None:
            self._known.move_to_end(key)
            check_times(facts, now)
            return facts
        facts = check_leaf(der, trust_domain=self._trust_domain, now=now)
        self._known[key] = facts
        if len(self._known) > self._size:
            self._known.popitem(last=False)
        return facts

    def __len__(self) -> int:
        return len(self._known)


def _parse(der: bytes) -> tuple[x509.Certificate, x509.Extensions]:
    try:
        cert = x509.load_der_x509_certificate(der)
        return cert, cert.extensions
    except x509.DuplicateExtension as e:
        raise SvidRefused("extension_duplicate", e.oid.dotted_string) from e
    except Exception as e:  # the parser has many ways to say no; all of them mean this one thing
        raise SvidRefused("leaf_malformed", f"{type(e).__name__}: {e}") from e


def _check_head(cert: x509.Certificate) -> None:
    if cert.version is not x509.Version.v3:
        raise SvidRefused("leaf_malformed", "not an X.509 version 3 certificate")
    if cert.serial_number <= 0 or cert.serial_number.bit_length() > 159:  # RFC 5280, 4.1.2.2
        raise SvidRefused("leaf_malformed", "serial number out of range")
    try:
        _ = cert.issuer, cert.subject  # read only when asked for; OpenSSL reads them at once
    except Exception as e:
        raise SvidRefused("leaf_malformed", f"a name: {type(e).__name__}: {e}") from e
    try:
        key = cert.public_key()
        signature_hash = cert.signature_hash_algorithm
    except Exception as e:
        raise SvidRefused("leaf_key", f"{type(e).__name__}: {e}") from e
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise SvidRefused("leaf_key", "the key is not on P-256")
    if not isinstance(signature_hash, _HASHES):
        raise SvidRefused("leaf_signature_hash", "not signed over SHA-2")


def _check_signature_algorithms(cert: x509.Certificate, der: bytes) -> None:
    """The one that was signed must be the one that is said outside (RFC 5280, 4.1.1.2)."""
    tbs = cert.tbs_certificate_bytes
    head = 2 + (tbs[1] & 0x7F if tbs[1] & 0x80 else 0)
    inner = head + 5  # behind the version, which is always written out
    inner += 2 + tbs[inner + 1]  # and behind the serial number, which is short
    outer = der[der.index(tbs) + len(tbs) :]
    algorithm = outer[: 2 + outer[1]]
    if tbs[inner : inner + len(algorithm)] != algorithm:
        raise SvidRefused("leaf_malformed", "two signature algorithms")


def _check_extensions(extensions: x509.Extensions) -> None:
    for extension in extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD_IF_CRITICAL:
            raise SvidRefused("extension_unknown_critical", extension.oid.dotted_string)
    constraints = _find(extensions, x509.BasicConstraints)
    if constraints is None:
        raise SvidRefused("basic_constraints", "missing")
    if constraints.value.ca:
        raise SvidRefused("leaf_is_ca", "CA:TRUE")
    usage = _find(extensions, x509.KeyUsage)
    if usage is None or not usage.critical:
        raise SvidRefused("key_usage", "missing" if usage is None else "not critical")
    if usage.value.key_cert_sign or usage.value.crl_sign:
        raise SvidRefused("leaf_is_ca", "keyCertSign or cRLSign")
    if not usage.value.digital_signature:
        raise SvidRefused("key_usage", "no digitalSignature")
    uses = _find(extensions, x509.ExtendedKeyUsage)
    if uses is None or frozenset(uses.value) != _BOTH_USES:
        raise SvidRefused("extended_key_usage", "not exactly serverAuth and clientAuth")


def _read_names(
    cert: x509.Certificate, extensions: x509.Extensions
) -> tuple[WorkloadIdentity, frozenset[str]]:
    san = _find(extensions, x509.SubjectAlternativeName)
    if san is None:
        raise SvidRefused("identity_missing", "no subjectAltName")
    if not san.critical and not cert.subject.rdns:  # RFC 5280, 4.2.1.6
        raise SvidRefused("san_not_critical", "the subject is empty")
    uris: list[str] = []
    ips: set[str] = set()
    for name in san.value:
        if isinstance(name, x509.UniformResourceIdentifier):
            uris.append(name.value)
        elif isinstance(name, x509.IPAddress):
            if not isinstance(name.value, ipaddress.IPv4Address | ipaddress.IPv6Address):
                raise SvidRefused("san_kind", "a network where an address belongs")
            ips.add(canonical_ip(name.value))
        elif not isinstance(name, x509.DNSName):
            raise SvidRefused("san_kind", type(name).__name__)
        elif not (name.value.isascii() and name.value.isprintable()):
            # Nobody here goes by it; but whoever reads C strings reads another name than we do.
            raise SvidRefused("san_kind", "a DNS name with a byte that no name has")
    if len(uris) != 1:
        reason = "identity_ambiguous" if uris else "identity_missing"
        raise SvidRefused(reason, f"{len(uris)} URI names")
    try:
        return WorkloadIdentity.parse(uris[0]), frozenset(ips)
    except IdentityMalformed as e:
        raise SvidRefused("identity_malformed", str(e)) from e


def _find(extensions: x509.Extensions, kind: type[E]) -> x509.Extension[E] | None:
    try:
        return extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None
