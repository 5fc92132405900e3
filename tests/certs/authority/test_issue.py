"""A leaf says exactly what was ordered, and one that would not is never handed out."""

import dataclasses
import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from certs.authority import issue
from certs.authority.issue import (
    BACKDATE,
    MAX_NAMES,
    MIN_LIFETIME,
    Authority,
    AuthorityExpired,
    CertificateUnsound,
    Order,
    canonical_ips,
    clamp_lifetime,
)
from certs.authority.keys import create_root, load_authority
from certs.trust.identity import WorkloadIdentity

NOW = dt.datetime(2026, 11, 21, 12, 0, 0, 700_000, dt.UTC)
WHO = WorkloadIdentity("cluster.local", "shop", "api")
HOUR = dt.timedelta(hours=1)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return load_authority(create_root("cluster.local", NOW), "cluster.local", 1, NOW)


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePublicKey:
    return ec.generate_private_key(ec.SECP256R1()).public_key()


def test_a_leaf_says_what_was_ordered(authority: Authority, key: ec.EllipticCurvePublicKey) -> None:
    order = Order(WHO, frozenset({"10.0.0.7", "fd00::7"}), ("api.shop.svc",), HOUR)
    issued = authority.issue(order, key, NOW)
    assert (issued.facts.identity, issued.facts.ips) == (WHO, order.ips)
    start = NOW.replace(microsecond=0)
    assert issued.facts.not_before == start - BACKDATE
    assert issued.facts.not_after == start + HOUR
    assert issued.lifetime == HOUR
    (der,) = issued.chain_der
    leaf = x509.load_der_x509_certificate(der)
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_encipherment
    assert len(der) < 1000


def _other(
    order: Order, key: ec.EllipticCurvePublicKey, wrong: str
) -> tuple[Order, ec.EllipticCurvePublicKey]:
    """What a fault between order and signature might make of them."""
    changes = {
        "identity": {"identity": WorkloadIdentity("cluster.local", "shop", "admin")},
        "trust domain": {"identity": WorkloadIdentity("elsewhere.example", "shop", "api")},
        "address": {"ips": frozenset({"10.0.0.7", "10.0.0.8"})},
        "name": {"dns_names": ("podlink-ca.podlink-system.svc",)},
    }
    if wrong == "key":
        return order, ec.generate_private_key(ec.SECP256R1()).public_key()
    return dataclasses.replace(order, **changes[wrong]), key  # type: ignore[arg-type]


@pytest.mark.attack_row(26)
@pytest.mark.parametrize("wrong", ["identity", "trust domain", "address", "name", "key", "issuer"])
def test_a_leaf_that_came_out_other_than_ordered_is_never_handed_out(
    authority: Authority,
    key: ec.EllipticCurvePublicKey,
    monkeypatch: pytest.MonkeyPatch,
    wrong: str,
) -> None:
    """Nothing a caller says gets so far; this is the look at what was signed, before it leaves."""
    order = Order(WHO, frozenset({"10.0.0.7"}), (), HOUR)
    if wrong == "issuer":
        stranger = load_authority(create_root("cluster.local", NOW), "cluster.local", 1, NOW)
        authority = dataclasses.replace(authority, issuer=stranger.issuer)
    else:
        made = issue._template
        monkeypatch.setattr(
            issue, "_template", lambda o, k, *rest: made(*_other(o, k, wrong), *rest)
        )
    with pytest.raises(CertificateUnsound):
        authority.issue(order, key, NOW)


def test_no_two_leaves_share_a_serial(authority: Authority, key: ec.EllipticCurvePublicKey) -> None:
    order = Order(WHO, frozenset())
    assert len({authority.issue(order, key, NOW).facts.serial for _ in range(50)}) == 50


@pytest.mark.attack_row(30)
def test_no_leaf_outlives_its_issuer(authority: Authority, key: ec.EllipticCurvePublicKey) -> None:
    end = authority.issuer.not_valid_after_utc
    issued = authority.issue(Order(WHO, frozenset()), key, end - dt.timedelta(minutes=10))
    assert issued.facts.not_after == end
    assert issued.lifetime == dt.timedelta(minutes=10)
    with pytest.raises(AuthorityExpired):
        authority.issue(Order(WHO, frozenset()), key, end - dt.timedelta(seconds=4))
    with pytest.raises(AuthorityExpired):
        authority.issue(Order(WHO, frozenset()), key, end + dt.timedelta(days=1))


@pytest.mark.attack_row(30)
@given(wished=st.integers(-(2**40), 2**40), longest_s=st.integers(5, 86_400))
def test_a_wish_is_clamped_between_the_floor_and_the_longest(wished: int, longest_s: int) -> None:
    longest = dt.timedelta(seconds=longest_s)
    granted = clamp_lifetime(wished, longest, longest)
    assert MIN_LIFETIME <= granted <= longest
    if MIN_LIFETIME.total_seconds() <= wished <= longest_s:
        assert granted.total_seconds() == wished


def test_a_signature_by_another_key_is_noticed_before_it_leaves(
    authority: Authority, key: ec.EllipticCurvePublicKey
) -> None:
    broken = dataclasses.replace(authority, key=ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(CertificateUnsound, match="not signed by the issuer"):
        broken.issue(Order(WHO, frozenset()), key, NOW)


def test_an_identity_of_another_trust_domain_is_never_signed(
    authority: Authority, key: ec.EllipticCurvePublicKey
) -> None:
    foreign = WorkloadIdentity("elsewhere.example", "shop", "api")
    with pytest.raises(CertificateUnsound, match="trust_domain_foreign"):
        authority.issue(Order(foreign, frozenset()), key, NOW)


def test_a_key_of_another_curve_is_never_signed(authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    with pytest.raises(CertificateUnsound, match="leaf_key"):
        authority.issue(Order(WHO, frozenset()), key, NOW)


def test_addresses_not_in_canonical_text_are_noticed(
    authority: Authority, key: ec.EllipticCurvePublicKey
) -> None:
    with pytest.raises(CertificateUnsound, match="addresses differ"):
        authority.issue(Order(WHO, frozenset({"FD00::7"})), key, NOW)


def test_a_leaf_with_too_many_names_is_refused(
    authority: Authority, key: ec.EllipticCurvePublicKey
) -> None:
    ips = frozenset(f"10.0.0.{n}" for n in range(MAX_NAMES + 1))
    with pytest.raises(CertificateUnsound, match="more than"):
        authority.issue(Order(WHO, ips), key, NOW)


def test_addresses_become_canonical() -> None:
    assert canonical_ips(["FD00:0::7", "::ffff:10.0.0.7"]) == {"fd00::7", "10.0.0.7"}
    for bad in ("0.0.0.0", "ff02::1", "10.0.0.0/8", "", "fe80::1%eth0"):
        with pytest.raises(ValueError):
            canonical_ips([bad])


def test_neither_the_authority_nor_its_files_show_the_key(authority: Authority) -> None:
    assert "key" not in repr(authority).split("issuer")[0]
    assert "PRIVATE" not in repr(create_root("cluster.local", NOW))
