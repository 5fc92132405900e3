"""A CA whose parts do not fit stops at start; one behind an intermediate works."""

import datetime as dt
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from certs.authority.issue import Order, key_usage
from certs.authority.keys import AuthorityRefused, KeyFiles, create_root, load_authority
from certs.trust.identity import WorkloadIdentity
from certs.trust.pem import to_pem
from kit.clock import utcnow
from tests.certs.forge import Forge, key_to_pem

TD = "cluster.local"


def load(files: KeyFiles) -> object:
    return load_authority(files, TD, 1, utcnow())


def intermediate(forge: Forge, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    """What cert-manager would put into tls.crt for an issuer of ours: a CA below the root."""
    now = utcnow()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "podlink intermediate")])
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(forge.root.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=90))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .add_extension(key_usage(key_cert_sign=True), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(forge.key.public_key()), False
        )
        .sign(forge.key, hashes.SHA256())
    )
    return cert.public_bytes(Encoding.PEM)


def test_a_new_root_is_a_p256_ca_with_a_name_for_ten_years() -> None:
    now = utcnow()
    root = x509.load_pem_x509_certificate(create_root(TD, now).tls_crt)
    key = root.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)
    assert root.subject == root.issuer
    assert root.subject.rdns
    constraints = root.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    assert root.not_valid_after_utc - now > dt.timedelta(days=3649)
    assert root.not_valid_before_utc < now - dt.timedelta(minutes=59)


def test_two_roots_of_one_trust_domain_have_different_names() -> None:
    roots = [x509.load_pem_x509_certificate(create_root(TD, utcnow()).tls_crt) for _ in range(2)]
    assert roots[0].subject != roots[1].subject


@pytest.mark.parametrize("trust_domain", ["a", "a." * 120 + "b"])
def test_a_root_can_be_made_for_any_trust_domain(trust_domain: str) -> None:
    load_authority(create_root(trust_domain, utcnow()), trust_domain, 1, utcnow())


@pytest.mark.parametrize("kind", ["EC", "RSA"])
def test_leaves_under_an_intermediate_verify_against_the_root(kind: str, tmp_path: Path) -> None:
    forge = Forge()
    key = (
        ec.generate_private_key(ec.SECP256R1())
        if kind == "EC"
        else rsa.generate_private_key(public_exponent=65537, key_size=2048)
    )
    files = KeyFiles(key_to_pem(key), intermediate(forge, key), forge.root_pem)
    authority = load_authority(files, TD, 1, utcnow())
    assert authority.bundle.roots == (forge.root_der,)
    order = Order(WorkloadIdentity(TD, "shop", "api"), frozenset({"10.0.0.7"}))
    public_key = ec.generate_private_key(ec.SECP256R1()).public_key()
    leaf, above = authority.issue(order, public_key, utcnow()).chain_der
    for name, der in (("leaf", leaf), ("above", above), ("root", forge.root_der)):
        (tmp_path / f"{name}.pem").write_bytes(to_pem([der]))
    asked = ["openssl", "verify", "-x509_strict", "-CAfile", "root.pem", "-untrusted", "above.pem"]
    done = subprocess.run([*asked, "leaf.pem"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def bad_files() -> dict[str, KeyFiles]:
    good, other = create_root(TD, utcnow()), create_root(TD, utcnow())
    forge = Forge()
    pair = forge.leaf(subject="leaf")
    key = ec.generate_private_key(ec.SECP256R1())
    past = create_root(TD, utcnow() - dt.timedelta(days=4000))
    future = create_root(TD, utcnow() + dt.timedelta(days=2))
    return {
        "key of another CA": KeyFiles(other.tls_key, good.tls_crt, good.ca_crt),
        "a leaf instead of a CA": KeyFiles(pair.key_pem, pair.chain_pem, forge.root_pem),
        "intermediate of an unknown root": KeyFiles(
            key_to_pem(key), intermediate(forge, key), good.ca_crt
        ),
        "intermediate without its root": KeyFiles(key_to_pem(key), intermediate(forge, key)),
        "no key": KeyFiles(b"", good.tls_crt, good.ca_crt),
        "no certificate": KeyFiles(good.tls_key, b"", good.ca_crt),
        "cut certificate": KeyFiles(good.tls_key, good.tls_crt[:200], good.ca_crt),
        "cut root": KeyFiles(good.tls_key, good.tls_crt, good.ca_crt[:200]),
        "chain too long": KeyFiles(good.tls_key, good.tls_crt * 5, good.ca_crt),
        "expired": past,
        "not yet valid": future,
    }


@pytest.mark.fault_row("root-lost")
@pytest.mark.fault_row("corrupt-state")
def test_a_ca_whose_parts_do_not_fit_is_refused_and_no_key_is_quoted() -> None:
    for name, files in bad_files().items():
        with pytest.raises(AuthorityRefused) as refused:
            load(files)
        assert "PRIVATE" not in str(refused.value), name
    assert load(create_root(TD, utcnow()))


@pytest.mark.attack_row(15)
def test_the_root_of_one_trust_domain_does_not_sign_for_another() -> None:
    with pytest.raises(AuthorityRefused, match=r"spiffe://other\.example"):
        load(create_root("other.example", utcnow()))


def test_an_intermediate_whose_root_is_missing_names_what_is_wrong() -> None:
    forge, key = Forge(), ec.generate_private_key(ec.SECP256R1())
    files = KeyFiles(key_to_pem(key), intermediate(forge, key), create_root(TD, utcnow()).ca_crt)
    with pytest.raises(AuthorityRefused, match="podlink intermediate"):
        load(files)
