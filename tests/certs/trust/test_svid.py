"""Our validator refuses every unlawful leaf, many of which stock OpenSSL believes."""

import datetime as dt
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from certs.trust.svid import MAX_LEAF_BYTES, SvidChecker, SvidRefused, check_leaf
from tests.certs.bad_leaves import OPENSSL_REFUSES, STRICT_REFUSES
from tests.certs.forge import DEFAULT, BadLeaf, Forge, Pair, uri_san
from tests.certs.handshakes import accepted_by_stock_openssl, material

ROWS = {8: "two URI", 9: "only a", 10: "CA:TRUE", 11: "key", 12: "EKU", 14: "URI:", 15: "trust"}


def test_the_table_covers_every_row_it_claims(bad_leaves: dict[str, BadLeaf]) -> None:
    for row, word in ROWS.items():
        assert any(word.lower() in name.lower() for name in bad_leaves), row
    assert len(bad_leaves) >= 50


def test_a_lawful_leaf_says_who_where_and_until_when(forge: Forge) -> None:
    pair = forge.leaf(ips=["10.0.0.7", "fd00:0::7", "::ffff:10.0.0.8"], dns=["api.shop.svc"])
    facts = check_leaf(pair.der, trust_domain="cluster.local", now=forge.now)
    assert str(facts.identity) == DEFAULT
    assert facts.ips == {"10.0.0.7", "fd00::7", "10.0.0.8"}
    assert (facts.not_after - facts.not_before) == dt.timedelta(hours=1, minutes=1)
    assert len(facts.sha256) == 64
    assert facts.serial == facts.serial.lower()


@pytest.mark.attack_row(8)
@pytest.mark.attack_row(9)
@pytest.mark.attack_row(10)
@pytest.mark.attack_row(11)
@pytest.mark.attack_row(12)
@pytest.mark.attack_row(14)
@pytest.mark.attack_row(15)
@pytest.mark.attack_row(25)
def test_every_bad_leaf_is_refused_for_its_own_reason(
    forge: Forge, bad_leaves: dict[str, BadLeaf]
) -> None:
    found = {}
    for name, bad in bad_leaves.items():
        with pytest.raises(SvidRefused) as refused:
            check_leaf(bad.der, trust_domain="cluster.local", now=forge.now)
        assert str(refused.value).isprintable(), name
        found[name] = refused.value.reason
    assert found == {name: bad.reason for name, bad in bad_leaves.items()}


def test_stock_openssl_believes_most_of_them(forge: Forge, bad_leaves: dict[str, BadLeaf]) -> None:
    believed = {
        n for n, bad in bad_leaves.items() if accepted_by_stock_openssl_or_unloadable(forge, bad)
    }
    assert believed == bad_leaves.keys() - OPENSSL_REFUSES


def test_our_contexts_refuse_a_few_more_before_the_validator_runs(
    forge: Forge, bad_leaves: dict[str, BadLeaf]
) -> None:
    refused = set()
    for name, bad in bad_leaves.items():
        try:
            material(forge, bad).prove()
        except Exception:
            refused.add(name)
    assert refused == STRICT_REFUSES


def accepted_by_stock_openssl_or_unloadable(forge: Forge, bad: BadLeaf) -> bool:
    from certs.trust.contexts import MaterialRefused

    try:
        return accepted_by_stock_openssl(forge, bad)
    except MaterialRefused:  # OpenSSL would not even load it as its own
        return False


def test_debian_openssl_in_strict_mode_agrees_that_the_good_leaf_is_good(
    forge: Forge, good_leaf: Pair, tmp_path: Path
) -> None:
    (tmp_path / "root.pem").write_bytes(forge.root_pem)
    (tmp_path / "leaf.pem").write_bytes(good_leaf.chain_pem)
    for purpose in ("sslclient", "sslserver"):
        asked = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", "root.pem"]
        done = subprocess.run([*asked, "leaf.pem"], cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.integers(0, 10_000), byte=st.integers(1, 255))
def test_a_flipped_byte_is_refused_or_leaves_the_identity_alone_and_never_crashes(
    forge: Forge, good_leaf: Pair, at: int, byte: int
) -> None:
    der = bytearray(good_leaf.der)
    der[at % len(der)] ^= byte
    with suppress(SvidRefused):
        facts = check_leaf(bytes(der), trust_domain="cluster.local", now=forge.now)
        assert facts.identity.trust_domain == "cluster.local"


@given(st.binary(max_size=300))
def test_garbage_is_refused_and_never_crashes(junk: bytes) -> None:
    with pytest.raises(SvidRefused):
        check_leaf(junk, trust_domain="cluster.local", now=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50
)
@given(uri=st.binary(max_size=60))
def test_no_uri_but_a_whole_lawful_one_is_believed(forge: Forge, uri: bytes) -> None:
    pair = forge.leaf(raw_san=uri_san(b"spiffe://cluster.local/ns/shop/sa/" + uri))
    with suppress(SvidRefused):
        facts = check_leaf(pair.der, trust_domain="cluster.local", now=forge.now)
        assert str(facts.identity).encode() == b"spiffe://cluster.local/ns/shop/sa/" + uri


@pytest.mark.parametrize("size", [0, 1, 100])
def test_a_cut_leaf_and_trailing_bytes_are_refused(
    good_leaf: Pair, forge: Forge, size: int
) -> None:
    for der in (good_leaf.der[:size], good_leaf.der + b"\0" * (size + 1)):
        with pytest.raises(SvidRefused, match="leaf_malformed"):
            check_leaf(der, trust_domain="cluster.local", now=forge.now)


def test_the_identity_of_one_trust_domain_is_nothing_in_another(
    forge: Forge, good_leaf: Pair
) -> None:
    with pytest.raises(SvidRefused, match="trust_domain_foreign"):
        check_leaf(good_leaf.der, trust_domain="other.example", now=forge.now)


class Hands:
    """A clock that a test sets."""

    def __init__(self, now: dt.datetime) -> None:
        self.now = now

    def __call__(self) -> dt.datetime:
        return self.now


def test_a_remembered_leaf_still_expires(forge: Forge, good_leaf: Pair) -> None:
    clock = Hands(forge.now)
    checker = SvidChecker("cluster.local", clock)
    first = checker(good_leaf.der)
    assert checker(good_leaf.der) is first
    clock.now = first.not_after - dt.timedelta(microseconds=1)
    assert checker(good_leaf.der) is first
    clock.now = first.not_after
    with pytest.raises(SvidRefused, match="leaf_expired"):
        checker(good_leaf.der)
    clock.now = first.not_before - dt.timedelta(microseconds=1)
    with pytest.raises(SvidRefused, match="leaf_not_yet_valid"):
        checker(good_leaf.der)


def test_the_memory_is_bounded_and_keeps_what_is_used(forge: Forge) -> None:
    checker = SvidChecker("cluster.local", Hands(forge.now), size=2)
    leaves = [forge.leaf().der for _ in range(3)]
    kept = checker(leaves[0])
    checker(leaves[1])
    assert checker(leaves[0]) is kept
    checker(leaves[2])
    assert len(checker) == 2
    assert checker(leaves[0]) is kept


def test_refused_leaves_are_not_remembered(forge: Forge, bad_leaves: dict[str, BadLeaf]) -> None:
    checker = SvidChecker("cluster.local", Hands(forge.now))
    for bad in bad_leaves.values():
        with pytest.raises(SvidRefused):
            checker(bad.der)
    assert len(checker) == 0
    with pytest.raises(SvidRefused, match="leaf_too_long"):
        checker(bytes(MAX_LEAF_BYTES + 1))
