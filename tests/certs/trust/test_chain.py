"""Two judges of a chain, OpenSSL in the handshake and ours beside it, give the same verdicts."""

import contextlib
import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID as Use
from cryptography.x509.oid import NameOID, ObjectIdentifier
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from certs.trust.chain import ChainChecker
from certs.trust.contexts import MaterialRefused, TlsMaterial
from certs.trust.renewal import ProofRefused
from certs.trust.svid import SvidChecker, SvidRefused
from tests.certs.forge import DAY, BadLeaf, Forge, Pair, Usage, key_to_pem

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)
Key = Any


SIGNS = Usage(False, key_cert_sign=True, crl_sign=True)


@dataclass
class Authority:
    """A CA's certificate and key, lawful unless a field says otherwise."""

    name: str
    key: Key = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    ca: bool | None = True
    """None: no basicConstraints at all."""
    constraints_critical: bool = True
    path_length: int | None = None
    usage: Usage | None = SIGNS
    not_before: dt.datetime = NOW - 30 * DAY
    not_after: dt.datetime = NOW + 30 * DAY
    uses: Sequence[ObjectIdentifier] = ()
    key_ids: bool = True
    extra: Sequence[tuple[x509.ExtensionType, bool]] = ()
    cert: x509.Certificate = field(init=False)

    def signed_by(self, above: "Authority | None") -> "Authority":
        by = above or self
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(self.name))
            .issuer_name(_name(by.name))
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.not_before)
            .not_valid_after(self.not_after)
        )
        for extension, critical in self._extensions(by):
            builder = builder.add_extension(extension, critical)
        self.cert = builder.sign(by.key, hashes.SHA256() if _hashes(by.key) else None)
        return self

    def _extensions(self, by: "Authority") -> list[tuple[x509.ExtensionType, bool]]:
        found: list[tuple[x509.ExtensionType, bool]] = list(self.extra)
        if self.ca is not None:
            found.append(
                (x509.BasicConstraints(self.ca, self.path_length), self.constraints_critical)
            )
        if self.usage is not None:
            found.append((self.usage.extension(), True))
        if self.uses:
            found.append((x509.ExtendedKeyUsage(self.uses), False))
        if self.key_ids:
            found.append((x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), False))
            if by is not self:
                found.append(
                    (
                        x509.AuthorityKeyIdentifier.from_issuer_public_key(by.key.public_key()),
                        False,
                    )
                )
        return found

    def leaf(self, *above: "Authority", key_id: bool = True) -> Pair:
        """A lawful leaf under this CA; `above` follows in the chain it shows."""
        key = ec.generate_private_key(ec.SECP256R1())
        san = x509.SubjectAlternativeName(
            [x509.UniformResourceIdentifier("spiffe://cluster.local/ns/shop/sa/api")]
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(_name(self.name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - dt.timedelta(minutes=1))
            .not_valid_after(NOW + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(False, None), True)
            .add_extension(Usage().extension(), True)
            .add_extension(x509.ExtendedKeyUsage([Use.SERVER_AUTH, Use.CLIENT_AUTH]), False)
            .add_extension(san, True)
        )
        if key_id:
            of = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
            builder = builder.add_extension(of, False)
        cert = builder.sign(self.key, hashes.SHA256() if _hashes(self.key) else None)
        chain = [cert, *(each.cert for each in above)]
        return Pair(key_to_pem(key), b"".join(c.public_bytes(Encoding.PEM) for c in chain))


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def _hashes(key: Key) -> bool:
    return not isinstance(key, ed25519.Ed25519PrivateKey)


def rsa_key(bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def ders(chain_pem: bytes) -> list[bytes]:
    return [c.public_bytes(Encoding.DER) for c in x509.load_pem_x509_certificates(chain_pem)]


def handshake_believes(pair: Pair | BadLeaf, roots_pem: bytes) -> bool:
    """The judge of today: our own contexts, as client and as server."""
    material = TlsMaterial(pair.key_pem, pair.chain_pem, roots_pem)
    try:
        material.prove()
        SvidChecker("cluster.local")(pair.der)
    except (MaterialRefused, SvidRefused):
        return False
    return True


def proof_believes(pair: Pair | BadLeaf, roots: Sequence[x509.Certificate]) -> bool:
    """The judge of a proof inside a tunnel."""
    try:
        SvidChecker("cluster.local")(pair.der)
        ChainChecker(r.public_bytes(Encoding.DER) for r in roots)(ders(pair.chain_pem))
    except (SvidRefused, ProofRefused, ValueError):
        return False
    return True


def both(pair: Pair, *roots: Authority) -> tuple[bool, bool]:
    pem = b"".join(r.cert.public_bytes(Encoding.PEM) for r in roots)
    return handshake_believes(pair, pem), proof_believes(pair, [r.cert for r in roots])


def test_a_leaf_of_the_forge_is_believed_by_both(forge: Forge) -> None:
    pair = forge.leaf(ips=["10.0.0.7"])
    assert handshake_believes(pair, forge.root_pem)
    assert proof_believes(pair, [forge.root])


@pytest.mark.attack_row(8)
def test_every_bad_leaf_is_refused_by_both(forge: Forge, bad_leaves: dict[str, BadLeaf]) -> None:
    for name, bad in bad_leaves.items():
        assert not proof_believes(bad, [forge.root]), name
        assert not handshake_believes(bad, forge.root_pem), name


@pytest.mark.attack_row(3)
@pytest.mark.attack_row(13)
def test_every_untrusted_chain_is_refused_by_both(forge: Forge) -> None:
    for name, pair in forge.untrusted_chains().items():
        assert not handshake_believes(pair, forge.root_pem), name
        assert not proof_believes(pair, [forge.root]), name


def _root(**tweaks: Any) -> Authority:
    return Authority("root", **tweaks).signed_by(None)


def _below(**tweaks: Any) -> Callable[[], tuple[Pair, Authority]]:
    """A leaf under an intermediate with tweaks, under a lawful root."""

    def make() -> tuple[Pair, Authority]:
        root = _root()
        middle = Authority("middle", **tweaks).signed_by(root)
        return middle.leaf(middle), root

    return make


def _under(**tweaks: Any) -> Callable[[], tuple[Pair, Authority]]:
    """A leaf right under a root with tweaks."""

    def make() -> tuple[Pair, Authority]:
        root = _root(**tweaks)
        return root.leaf(), root

    return make


def _deep(most: int | None, cut_short: bool = False) -> Callable[[], tuple[Pair, Authority]]:
    def make() -> tuple[Pair, Authority]:
        root = _root(path_length=most)
        upper = Authority("upper").signed_by(root)
        lower = Authority("lower").signed_by(upper)
        return (lower.leaf(lower) if cut_short else lower.leaf(lower, upper)), root

    return make


def _other_key() -> tuple[Pair, Authority]:
    """An intermediate of the right name that another key made the leaf under."""
    root = _root()
    shown = Authority("middle").signed_by(root)
    return Authority("middle").signed_by(root).leaf(shown), root


def _nameless_key() -> tuple[Pair, Authority]:
    root = _root()
    return root.leaf(key_id=False), root


def _below_ed25519() -> tuple[Pair, Authority]:
    root = _root(key=ed25519.Ed25519PrivateKey.generate())
    middle = Authority("middle").signed_by(root)
    return middle.leaf(middle), root


_UNKNOWN = x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.55555.2"), b"\x05\x00")
_ELSEWHERE = x509.NameConstraints(None, [x509.UniformResourceIdentifier("cluster.local")])
_HERE = x509.NameConstraints([x509.UniformResourceIdentifier("cluster.local")], None)
OLD = NOW - DAY

CHAINS: dict[str, Callable[[], tuple[Pair, Authority]]] = {
    "a root": _under(),
    "a root on P-384": _under(key=ec.generate_private_key(ec.SECP384R1())),
    "a root with RSA-2048": _under(key=rsa_key(2048)),
    "one intermediate": _below(),
    "two intermediates": _deep(None),
    "two intermediates, and a root that allows two": _deep(2),
    "two intermediates, and a root that allows one": _deep(1),
    "two intermediates, one of them not shown": _deep(None, cut_short=True),
    "an intermediate of the same name with another key": _other_key,
    "an intermediate without basicConstraints": _below(ca=None),
    "an intermediate with CA:FALSE": _below(ca=False),
    "an intermediate without keyCertSign": _below(usage=Usage(True)),
    "an expired intermediate": _below(not_after=OLD),
    "an intermediate not yet valid": _below(not_before=NOW + DAY),
    "an expired root": _under(not_after=OLD),
    "a root not yet valid": _under(not_before=NOW + DAY),
    "an intermediate with an unknown critical extension": _below(extra=[(_UNKNOWN, True)]),
    "an intermediate with an unknown extension": _below(extra=[(_UNKNOWN, False)]),
    "an intermediate that must not sign for this trust domain": _below(extra=[(_ELSEWHERE, True)]),
    "an intermediate for servers and clients": _below(uses=[Use.SERVER_AUTH, Use.CLIENT_AUTH]),
    "an intermediate for servers only": _below(uses=[Use.SERVER_AUTH]),
    "an intermediate for e-mail only": _below(uses=[Use.EMAIL_PROTECTION]),
    "an intermediate with RSA-1024": _below(key=rsa_key(1024)),
    "an intermediate that does not say whose key it has": _below(key_ids=False),
    "a root that does not say which key it has": _under(key_ids=False),
    "a leaf that does not say whose key signed it": _nameless_key,
    "an intermediate without keyUsage": _below(usage=None),
    "a root without keyUsage": _under(usage=None),
    "an intermediate whose basicConstraints are not critical": _below(constraints_critical=False),
    "a root on Ed25519": _under(key=ed25519.Ed25519PrivateKey.generate()),
}
STRICTER = {
    "an intermediate under a root on Ed25519": _below_ed25519,
    "an intermediate that may sign for this trust domain": _below(extra=[(_HERE, True)]),
}
"""What a handshake takes and a proof does not: such a link is cut at its leaf's end, as ever."""


@pytest.mark.parametrize("name", CHAINS)
def test_both_judges_say_the_same_of(name: str) -> None:
    pair, root = CHAINS[name]()
    in_handshake, in_proof = both(pair, root)
    assert in_handshake == in_proof


@pytest.mark.parametrize("name", STRICTER)
def test_the_proof_is_judged_more_strictly_for(name: str) -> None:
    pair, root = STRICTER[name]()
    assert both(pair, root) == (True, False)


def test_more_certificates_than_a_chain_may_hold_are_refused(forge: Forge) -> None:
    chain = ders(forge.leaf().chain_pem)
    with pytest.raises(ProofRefused, match="chain_untrusted"):
        ChainChecker([forge.root_der])(chain * 5)
    with pytest.raises(ProofRefused, match="chain_untrusted"):
        ChainChecker([forge.root_der])([])


def test_a_chain_that_passed_is_remembered_only_until_a_certificate_in_it_ends() -> None:
    root = _root()
    middle = Authority("middle", not_after=NOW + dt.timedelta(minutes=5)).signed_by(root)
    chain = ders(middle.leaf(middle).chain_pem)
    clock = [NOW]
    check = ChainChecker([root.cert.public_bytes(Encoding.DER)], lambda: clock[0])
    check(chain)
    check(chain)
    clock[0] = NOW + dt.timedelta(minutes=6)
    with pytest.raises(ProofRefused, match="chain_untrusted"):
        check(chain)


def test_without_a_bundle_nobody_is_trusted(forge: Forge) -> None:
    with pytest.raises(ProofRefused, match="no bundle yet"):
        ChainChecker(())(ders(forge.leaf().chain_pem))


@pytest.mark.parametrize("junk", [b"", b"\x30\x03\x02\x01\x01", b"x" * 100])
def test_what_is_no_certificate_is_refused(forge: Forge, junk: bytes) -> None:
    leaf = ders(forge.leaf().chain_pem)[0]
    for chain in ([junk], [leaf, junk]):
        with pytest.raises(ProofRefused, match="chain_untrusted"):
            ChainChecker([forge.root_der])(chain)


@pytest.mark.attack_row(8)
def test_an_intermediate_that_the_parser_trips_over_is_refused_and_no_bug(forge: Forge) -> None:
    """A version that X.509 has not: the parser's error is of a kind of its own, and a failure of ours
    would be logged with its trace, once for each proof."""
    leaf = ders(forge.leaf().chain_pem)[0]
    version = forge.root_der.index(bytes.fromhex("a003020102")) + 4
    for number in range(256):
        above = forge.root_der[:version] + bytes([number]) + forge.root_der[version + 1 :]
        try:
            ChainChecker([forge.root_der])([leaf, above])
        except ProofRefused as e:
            assert e.reason == "chain_untrusted" and not e.forged


@pytest.mark.attack_row(8)
@pytest.mark.parametrize(("bits", "refused"), [(4096, False), (4104, True), (16384, True)])
def test_no_signature_is_checked_by_an_enormous_key_that_a_peer_made_up(
    forge: Forge, bits: int, refused: bool
) -> None:
    modulus = 1 << (bits - 1) | 1
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "made up")])
    above = (
        x509.CertificateBuilder(name, name)
        .public_key(rsa.RSAPublicNumbers(65537, modulus).public_key())
        .serial_number(7)
        .not_valid_before(NOW)
        .not_valid_after(NOW + DAY)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
    chain = [ders(forge.leaf().chain_pem)[0], above]
    with pytest.raises(ProofRefused, match="RSA") if refused else contextlib.nullcontext():
        ChainChecker([forge.root_der])(chain)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_stands_in_a_chain_it_is_believed_or_refused(
    forge: Forge, data: st.DataObject
) -> None:
    leaf, above = ders(forge.leaf().chain_pem)[0], bytearray(forge.root_der)
    for at in data.draw(st.lists(st.integers(0, len(above) - 1), min_size=1, max_size=4)):
        above[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProofRefused):
        ChainChecker([forge.root_der])([leaf, bytes(above)])


def test_only_so_many_chains_are_remembered(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certs.trust.chain._REMEMBERED", 2)
    checker = ChainChecker([forge.root_der])
    chains = [ders(forge.leaf().chain_pem) for _ in range(4)]
    for chain in chains:
        checker(chain)
    assert len(checker._passed) == 2
    checker(chains[0])


@pytest.mark.attack_row(8)
@pytest.mark.parametrize("use", [Use.SERVER_AUTH, Use.CLIENT_AUTH])
def test_a_leaf_for_one_side_only_is_refused(forge: Forge, use: ObjectIdentifier) -> None:
    with pytest.raises(ProofRefused, match="clients and servers"):
        ChainChecker([forge.root_der])(ders(forge.leaf(uses=[use]).chain_pem))
