"""The validator and an independent reader of OpenSSL's text agree, over leaves of every kind."""

import datetime as dt
import shutil
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID as Use
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from certs.trust.facts import LeafFacts
from certs.trust.svid import SvidRefused, check_leaf
from tests.certs.bad_leaves import BAD_PATHS
from tests.certs.forge import DEFAULT, LIFETIME, PRIVATE_OID, BadLeaf, Forge, Usage
from tests.certs.trust.oracle import Opinion, Unlawful, opinion

pytestmark = [
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl"),
    *(pytest.mark.attack_row(row) for row in (8, 9, 10, 11, 12, 14, 15)),
    pytest.mark.timeout(1800),  # under the deep profile
]
TD = "cluster.local"
FORGE = Forge()
NOW = FORGE.now
"""One moment for all of them: what is judged here is bytes, and never by the clock."""
KEYS: list[Any] = [
    None,
    None,
    None,
    ec.generate_private_key(ec.SECP256R1()),
    ec.generate_private_key(ec.SECP384R1()),
    ed25519.Ed25519PrivateKey.generate(),
]


def ours(der: bytes) -> LeafFacts | str:
    try:
        return check_leaf(der, trust_domain=TD, now=NOW)
    except SvidRefused as e:
        return e.reason


def theirs(der: bytes, now: dt.datetime = NOW) -> Opinion | str:
    try:
        return opinion(der, TD, now)
    except Unlawful as e:
        return str(e)


def as_opinion(facts: LeafFacts | str) -> Opinion | str:
    if isinstance(facts, str):
        return facts
    return Opinion(str(facts.identity), facts.ips, facts.serial)


def agree(der: bytes) -> None:
    mine, other = as_opinion(ours(der)), theirs(der)
    if isinstance(mine, Opinion) or isinstance(other, Opinion):
        assert mine == other


ASCII_PATHS = [p.decode() for p in BAD_PATHS.values() if p.isascii() and p.decode().isprintable()]
identities = st.sampled_from(
    [
        DEFAULT,
        DEFAULT,
        DEFAULT,
        "spiffe://cluster.local/ns/a/sa/b.c",
        "spiffe://other.example/ns/shop/sa/api",
        "spiffe://cluster.local/ns/" + "n" * 63 + "/sa/x",
        "spiffe://cluster.local/ns/" + "n" * 64 + "/sa/x",
        "spiffe://cluster.local/ns/-a/sa/x",
        *ASCII_PATHS,
    ]
)
mostly = st.sampled_from([True, True, True, True, False])
rarely = st.sampled_from([False, False, False, False, True])
usages = st.builds(
    Usage, digital_signature=mostly, key_encipherment=rarely, key_cert_sign=rarely, crl_sign=rarely
)
all_uses = [Use.SERVER_AUTH, Use.CLIENT_AUTH, Use.EMAIL_PROTECTION]
uses = st.one_of(
    st.just((Use.SERVER_AUTH, Use.CLIENT_AUTH)),
    st.lists(st.sampled_from(all_uses), unique=True, min_size=1).map(tuple),
)
hours = st.sampled_from([-2, -1, 1, 1, 1, 2])
leaves = st.fixed_dictionaries(
    {
        "uris": st.one_of(st.tuples(identities), st.lists(identities, max_size=3).map(tuple)),
        "ips": st.lists(
            st.sampled_from(["10.0.0.7", "fd00::7", "::ffff:10.0.0.8", "0.0.0.0"]), max_size=3
        ),
        "dns": st.lists(st.sampled_from(["api.shop.svc", "*"]), max_size=2),
        "names": st.one_of(st.just(()), rarely.map(lambda wanted: _mail_names(wanted))),
        "san_critical": mostly,
        "subject": st.sampled_from([None, None, "somebody"]),
        "usage": st.one_of(st.just(Usage()), usages, st.none()),
        "usage_critical": mostly,
        "uses": uses,
        "ca": rarely,
        "constraints": mostly,
        "not_after": hours.map(lambda h: NOW + dt.timedelta(hours=h)),
        "extra": rarely.map(lambda e: _unknown() if e else ()),
        "key": st.sampled_from(KEYS),
    }
)


def _mail_names(wanted: bool) -> tuple[x509.GeneralName, ...]:
    return (x509.RFC822Name("root@cluster.example"),) if wanted else ()


def _unknown() -> tuple[tuple[x509.ExtensionType, bool], ...]:
    return ((x509.UnrecognizedExtension(PRIVATE_OID, b"\x05\x00"), True),)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(leaves)
def test_they_agree_about_leaves_put_together_at_random(tweaks: dict[str, Any]) -> None:
    if not tweaks["uris"] and not tweaks["ips"] and not tweaks["dns"] and not tweaks["names"]:
        tweaks["san"] = False  # an empty subjectAltName cannot be encoded
    tweaks["not_before"] = NOW - dt.timedelta(hours=3 if tweaks["not_after"] <= NOW else 0)
    agree(FORGE.leaf(**tweaks).der)


GOOD = FORGE.leaf(
    ips=["10.0.0.7", "fd00::7"], dns=["api.shop.svc"], not_before=NOW, not_after=NOW + LIFETIME
).der


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_leaf_with_a_spoilt_byte_is_believed_only_if_both_read_the_same(
    at: int, flip: int
) -> None:
    """Ours may refuse what OpenSSL still reads, for its parser is stricter; never the other way."""
    der = GOOD[:at] + bytes((GOOD[at] ^ flip,)) + GOOD[at + 1 :]
    if isinstance(mine := as_opinion(ours(der)), Opinion):
        assert mine == theirs(der)


@pytest.mark.attack_row(14)
@pytest.mark.parametrize("byte", [b"\0", b"\n", b"\x7f"])
def test_a_dns_name_beside_a_good_identity_has_no_byte_that_no_name_has(byte: bytes) -> None:
    der = GOOD.replace(b"api.shop.svc", b"api.sho" + byte + b".svc")
    assert der != GOOD
    assert isinstance(as_opinion(ours(GOOD)), Opinion)
    assert not isinstance(as_opinion(ours(der)), Opinion)


@given(st.data())
def test_a_leaf_with_a_piece_cut_out_or_doubled_is_believed_only_if_both_read_the_same(
    data: st.DataObject,
) -> None:
    start = data.draw(st.integers(0, len(GOOD) - 1))
    stop = data.draw(st.integers(start, min(len(GOOD), start + 40)))
    der = data.draw(
        st.sampled_from(
            [GOOD[:start] + GOOD[stop:], GOOD[:stop] + GOOD[start:stop] + GOOD[stop:], GOOD[:stop]]
        )
    )
    if isinstance(mine := as_opinion(ours(der)), Opinion):
        assert mine == theirs(der)


def test_they_agree_about_every_forged_leaf_and_the_good_one(
    bad_leaves: dict[str, BadLeaf],
) -> None:
    believed = theirs(GOOD)
    assert isinstance(believed, Opinion)
    assert believed == as_opinion(ours(GOOD))
    for name, bad in bad_leaves.items():
        assert isinstance(theirs(bad.der, FORGE.now), str), name


def test_a_signature_algorithm_said_differently_inside_and_outside_is_refused() -> None:
    """OpenSSL refuses it in the handshake (RFC 5280, 4.1.1.2); so do both of us."""
    ecdsa_sha256, ecdsa_sha384 = (
        bytes.fromhex("2a8648ce3d040302"),
        bytes.fromhex("2a8648ce3d040303"),
    )
    assert GOOD.count(ecdsa_sha256) == 2
    inside = GOOD.replace(ecdsa_sha256, ecdsa_sha384, 1)
    assert ours(inside) == "leaf_malformed"
    assert theirs(inside) == "two signature algorithms"
