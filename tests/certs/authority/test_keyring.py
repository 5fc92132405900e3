"""The keyring: what it makes, what may follow it, and that a bad one is refused with its name."""

import datetime as dt
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from certs.authority.keyring import Keyring, check_successor
from certs.authority.keys import AuthorityRefused, KeyFiles, create_root
from certs.rotation import Move, Phase, Rotation
from certs.server.keeper import prove
from kit.clock import utcnow

TD = "cluster.local"
DAY = dt.timedelta(days=1)


def fresh() -> KeyFiles:
    return create_root(TD, utcnow())


def begun(now: dt.datetime) -> Keyring:
    rotation = Rotation(Phase.PUBLISHING, now, "a test")
    return Keyring(fresh()).moved(Move(True, Phase.PUBLISHING, rotation), fresh())


def test_a_rotation_changes_the_bundle_twice_and_the_signer_once() -> None:
    now = utcnow()
    first = begun(now)
    both = first.bundle(TD)
    assert (both.generation, len(both.roots)) == (2, 2)
    assert first.rotation is not None
    signing = replace(first.rotation, phase=Phase.SIGNING, leaves_end=now + DAY)
    second = first.moved(Move(True, Phase.SIGNING, signing))
    assert second.bundle(TD) == both, "the switch is no change of the bundle"
    assert (second.current, second.other) == (first.other, first.current)
    last = second.moved(Move(True, None, None))
    assert (last.current, last.other, last.generation) == (first.other, None, 3)
    for keyring in (first, second, last):
        assert Keyring.from_data(keyring.to_data()) == keyring
        prove(keyring.authority(TD, now), now)


@pytest.mark.fault_row("corrupt-state")
@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d.pop("tls.key"),
        lambda d: d.pop("other.key"),
        lambda d: d.pop("rotation"),
        lambda d: d.update(rotation=b"{"),
        lambda d: d.update(generation=b"two"),
        lambda d: d.update({"tls.crt": d["tls.crt"][:-40]}),
        lambda d: d.update({"tls.key": d["other.key"]}),
        lambda d: d.update({"other.key": d["tls.key"]}),
        lambda d: d.update({"other-ca.crt": d["ca.crt"]}),
        lambda d: d.update({"ca.crt": d["other-ca.crt"]}),
    ],
)
def test_a_keyring_of_which_a_part_was_lost_or_exchanged_is_refused(spoil: Any) -> None:
    data = begun(utcnow()).to_data()
    spoil(data)
    with pytest.raises(AuthorityRefused):
        Keyring.from_data(data).authority(TD, utcnow())


@pytest.mark.fault_row("root-lost")
def test_only_a_later_generation_may_bring_other_roots() -> None:
    now = Keyring(fresh(), generation=5)
    check_successor(now, replace(now, order_done="1"), TD)
    check_successor(now, Keyring(fresh(), generation=6), TD)
    for then in (Keyring(fresh(), generation=5), replace(now, generation=4)):
        with pytest.raises(AuthorityRefused):
            check_successor(now, then, TD)


class Parent:
    """A root of somebody else's PKI, and the intermediates it makes."""

    def __init__(self, ends: dt.timedelta = 100 * DAY) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.now = utcnow().replace(microsecond=0)
        self.root = self._cert("corporate root", self.key, None, ends, path_length=None)

    def _cert(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        issuer: x509.Certificate | None,
        ends: dt.timedelta,
        path_length: int | None = 0,
        extra: x509.ExtensionType | None = None,
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        parent = issuer.subject if issuer else subject
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(parent)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now - DAY)
            .not_valid_after(self.now + ends)
            .add_extension(x509.BasicConstraints(True, path_length), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
        )
        if issuer is not None:
            ski = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            aki = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski)
            builder = builder.add_extension(aki, critical=False)
        if extra is not None:
            builder = builder.add_extension(extra, critical=True)
        return builder.sign(self.key, hashes.SHA256())

    def intermediate(
        self,
        name: str = "mesh signer",
        ends: dt.timedelta = 30 * DAY,
        extra: x509.ExtensionType | None = None,
        with_root: bool = True,
    ) -> KeyFiles:
        key = ec.generate_private_key(ec.SECP256R1())
        cert = self._cert(name, key, self.root, ends, extra=extra)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        root = self.root.public_bytes(Encoding.PEM)
        return KeyFiles(pem, cert.public_bytes(Encoding.PEM), root if with_root else b"")


def test_an_intermediate_signs_and_its_leaves_verify() -> None:
    authority = Keyring(Parent().intermediate()).authority(TD, utcnow())
    assert len(authority.intermediates_der) == 1
    prove(authority, utcnow())


@pytest.mark.attack_row(30)
def test_no_leaf_outlives_the_root_above_an_intermediate() -> None:
    parent = Parent(ends=dt.timedelta(minutes=10))
    authority = Keyring(parent.intermediate(ends=30 * DAY)).authority(TD, utcnow())
    assert authority.ends_at == parent.root.not_valid_after_utc < utcnow() + DAY


def test_an_intermediate_that_nobody_would_believe_is_found_out_by_a_proof() -> None:
    constraint = x509.NameConstraints([x509.UniformResourceIdentifier("elsewhere.example")], None)
    bad = Keyring(Parent().intermediate(extra=constraint)).authority(TD, utcnow())
    with pytest.raises(AuthorityRefused, match="nobody would believe"):
        prove(bad, utcnow())


def test_an_intermediate_for_another_trust_domain_is_refused() -> None:
    other = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://else.example")])
    with pytest.raises(AuthorityRefused, match="not for trust domain"):
        Keyring(Parent().intermediate(extra=other)).authority(TD, utcnow())
    with pytest.raises(AuthorityRefused):
        Keyring(Parent().intermediate(with_root=False)).authority(TD, utcnow())
