"""Bans: what they cover, and what a serial says of its pod."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.trust.bans import (
    MAX_BANS,
    RANDOM_BITS,
    TAG_BITS,
    Ban,
    BanMalformed,
    Banned,
    Bans,
    Guard,
    pod_serial,
    pod_tag,
)
from certs.trust.facts import LeafFacts
from certs.trust.identity import WorkloadIdentity
from certs.trust.svid import check_leaf
from kit.clock import utcnow
from tests.certs.forge import DEFAULT, Forge, Pair


def facts_of(forge: Forge, pair: Pair) -> LeafFacts:
    return check_leaf(pair.der, trust_domain=forge.trust_domain, now=utcnow())


@pytest.mark.attack_row(45)
def test_a_ban_of_identity_pod_or_serial_covers_the_leaf_and_no_other(
    forge: Forge, good_leaf: Pair
) -> None:
    leaf = facts_of(forge, good_leaf)
    leaf = dataclasses.replace(leaf, serial=f"{pod_serial('uid-7', 5):x}")
    other = dataclasses.replace(leaf, serial=f"{pod_serial('uid-8', 5):x}")
    assert Bans.of([Ban("identity", DEFAULT)]).covers(leaf) == "identity"
    assert Bans.of([Ban("identity", DEFAULT + "x")]).covers(leaf) is None
    assert Bans.of([Ban("pod", "uid-7")]).covers(leaf) == "pod"
    assert Bans.of([Ban("pod", "uid-7")]).covers(other) is None
    assert Bans.of([Ban("serial", leaf.serial)]).covers(leaf) == "serial"
    assert Bans.of([Ban("serial", leaf.serial)]).covers(other) is None


@pytest.mark.attack_row(45)
def test_a_lawful_leaf_of_a_banned_owner_is_refused_and_of_another_not(
    forge: Forge, good_leaf: Pair
) -> None:
    guard = Guard(lambda der: facts_of(forge, good_leaf))
    assert str(guard(good_leaf.der).identity) == DEFAULT
    guard.bans = Bans.of([Ban("identity", DEFAULT)])
    with pytest.raises(Banned) as refused:
        guard(good_leaf.der)
    assert refused.value.reason == "banned"


def test_a_guard_that_is_closed_lets_nobody_through(forge: Forge, good_leaf: Pair) -> None:
    guard = Guard(lambda der: facts_of(forge, good_leaf))
    guard.closed = "our own identity is banned"
    with pytest.raises(Banned, match="our own identity"):
        guard(good_leaf.der)


@pytest.mark.attack_row(45)
def test_a_caller_of_the_ca_is_judged_by_pod_and_by_identity() -> None:
    caller = WorkloadIdentity.parse(DEFAULT)
    bans = Bans.of([Ban("pod", "uid-7")])
    assert bans.covers_caller(caller, "uid-7") == "pod"
    assert bans.covers_caller(caller, "uid-8") is None
    assert Bans.of([Ban("identity", DEFAULT)]).covers_caller(caller, "uid-8") == "identity"


def test_one_leaf_more_is_banned_beside_the_others() -> None:
    bans = Bans.of([Ban("pod", "uid-7")]).and_serial("1f")
    assert [str(ban) for ban in bans.each()] == ["pod uid-7", "serial 1f"]
    assert len(bans) == 2


@given(st.text(max_size=64), st.integers(0, 2**RANDOM_BITS - 1))
def test_a_serial_is_lawful_and_names_its_pod(uid: str, random_bits: int) -> None:
    serial = pod_serial(uid, random_bits)
    assert 0 < serial.bit_length() <= 159
    assert serial >> RANDOM_BITS == pod_tag(uid) < 2**TAG_BITS


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("identity", "spiffe://cluster.local/ns/shop/../sa/api"),
        ("identity", "shop/api"),
        ("identity", ""),
        ("serial", "5FA3"),
        ("serial", "0x5f"),
        ("serial", ""),
        ("serial", "0"),
        ("serial", "a" * 41),
        ("pod", "a b"),
        ("pod", ""),
        ("pod", "x" * 65),
        ("node", "n1"),
    ],
)
def test_a_ban_of_nobody_is_refused(kind: Any, value: str) -> None:
    with pytest.raises(BanMalformed):
        Ban(kind, value)


def test_more_bans_than_a_stream_carries_are_refused() -> None:
    with pytest.raises(BanMalformed, match="at most"):
        Bans.of(Ban("serial", f"{n:x}") for n in range(1, MAX_BANS + 2))
    each = [Ban("serial", "1f"), Ban("pod", "u-1"), Ban("identity", DEFAULT)]
    assert Bans.of(each).each() == sorted(each)
