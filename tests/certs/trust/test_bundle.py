"""A bundle holds CA certificates only, at least one, each once."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from certs.trust.bundle import MAX_PEM_BYTES, MAX_ROOTS, BundleRefused, TrustBundle
from kit.clock import utcnow
from tests.certs.forge import DAY, Forge, Pair, Usage

TD = "cluster.local"


def test_what_is_written_is_read_back(forge: Forge) -> None:
    other = Forge(name="another root")
    bundle = TrustBundle.of(TD, 3, [forge.root_der, other.root_der])
    assert TrustBundle.from_pem(TD, 3, bundle.to_pem()) == bundle
    assert len(set(bundle.fingerprints())) == 2


def test_a_root_given_twice_counts_once(forge: Forge) -> None:
    bundle = TrustBundle.from_pem(TD, 1, forge.root_pem + b"\n# comment\n" + forge.root_pem)
    assert bundle.roots == (forge.root_der,)


def test_leaves_are_no_roots(forge: Forge, good_leaf: Pair) -> None:
    for leaf in (good_leaf, forge.leaf(ca=True, subject="x", usage=Usage())):
        with pytest.raises(BundleRefused, match="not a CA"):
            TrustBundle.of(TD, 1, [forge.root_der, leaf.der])


def test_weak_or_nameless_roots_are_refused(forge: Forge) -> None:
    weak = forge.leaf(
        ca=True,
        subject="weak",
        usage=Usage(key_cert_sign=True),
        key=rsa.generate_private_key(public_exponent=65537, key_size=1024),
    )
    with pytest.raises(BundleRefused, match="1024 bits"):
        TrustBundle.of(TD, 1, [weak.der])
    nameless = forge.leaf(ca=True, usage=Usage(key_cert_sign=True))
    assert not x509.load_der_x509_certificate(nameless.der).subject.rdns
    with pytest.raises(BundleRefused, match="empty subject"):
        TrustBundle.of(TD, 1, [nameless.der])


def test_a_root_may_leave_its_key_usage_out(forge: Forge) -> None:
    plain = self_signed(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    assert TrustBundle.of(TD, 1, [plain]).roots == (plain,)


def test_a_root_with_a_key_that_tls_does_not_take_is_refused() -> None:
    with pytest.raises(BundleRefused, match="a key of kind"):
        TrustBundle.of(TD, 1, [self_signed(ed448.Ed448PrivateKey.generate(), None)])


def self_signed(
    key: ec.EllipticCurvePrivateKey | ed448.Ed448PrivateKey, by: hashes.HashAlgorithm | None
) -> bytes:
    """A CA certificate with no extension but what makes it one, DER."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "plain")])
    now = utcnow()
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
        .add_extension(x509.BasicConstraints(True, None), True)
    )
    return builder.sign(key, by).public_bytes(Encoding.DER)  # type: ignore[arg-type]


def test_an_intermediate_is_no_root(forge: Forge) -> None:
    below = forge.leaf(ca=True, subject="below", usage=Usage(key_cert_sign=True))
    with pytest.raises(BundleRefused, match="not self-signed"):
        TrustBundle.of(TD, 1, [below.der])


@pytest.mark.attack_row(31)
def test_too_many_or_too_large_is_refused_before_it_is_parsed(forge: Forge) -> None:
    with pytest.raises(BundleRefused, match="at most"):
        TrustBundle.from_pem(TD, 1, b"-----BEGIN CERTIFICATE-----\n" * (MAX_PEM_BYTES // 28 + 1))
    with pytest.raises(BundleRefused, match="at most"):
        TrustBundle.of(TD, 1, [bytes([i]) for i in range(MAX_ROOTS + 1)])


@pytest.mark.parametrize("pem", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_no_certificate_is_no_bundle(pem: bytes) -> None:
    with pytest.raises(BundleRefused):
        TrustBundle.from_pem(TD, 1, pem)
    with pytest.raises(BundleRefused, match="empty"):
        TrustBundle.of(TD, 1, [])


@given(st.binary(max_size=200))
def test_garbage_is_refused_and_never_crashes(junk: bytes) -> None:
    with pytest.raises(BundleRefused):
        TrustBundle.of(TD, 1, [junk])
