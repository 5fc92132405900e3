"""What the CA answers is judged before it is used."""

import datetime as dt
from typing import Any

import pytest

from certs.client.answer import AnswerRefused, judge_answer, judge_bundle
from kit.clock import utcnow
from proto import ca_pb2
from tests.certs.forge import BadLeaf, Forge, Pair


def answer(forge: Forge, der: bytes, **changes: Any) -> ca_pb2.SignResponse:
    bundle = ca_pb2.Bundle(trust_domain="cluster.local", generation=1, root_der=[forge.root_der])
    said: dict[str, Any] = {
        "chain_der": [der],
        "bundle": bundle,
        "lifetime_s": 3600,
        "signed_at_unix_s": int(utcnow().timestamp()),
    }
    return ca_pb2.SignResponse(**{**said, **changes})


def judge(said: ca_pb2.SignResponse, pair: Pair | BadLeaf, now: dt.datetime | None = None) -> Any:
    return judge_answer(said, pair.key_pem, trust_domain="cluster.local", now=now or utcnow())


def test_a_good_answer_becomes_material_that_works(forge: Forge, good_leaf: Pair) -> None:
    grant = judge(answer(forge, good_leaf.der), good_leaf)
    grant.material.prove()
    assert grant.facts.ips == {"10.0.0.7", "fd00::7"}
    assert 3500 < grant.lifetime_s <= 3600
    assert judge(answer(forge, good_leaf.der, lifetime_s=5), good_leaf).lifetime_s == 5


def test_every_unlawful_leaf_is_refused_even_from_the_ca(
    forge: Forge, bad_leaves: dict[str, BadLeaf]
) -> None:
    for name, bad in bad_leaves.items():
        with pytest.raises(AnswerRefused) as refused:
            judge(answer(forge, bad.der), bad)
        assert refused.value.reason == bad.reason, name


def test_a_leaf_for_another_key_is_refused(forge: Forge, good_leaf: Pair) -> None:
    with pytest.raises(AnswerRefused, match="material_refused"):
        judge(answer(forge, good_leaf.der), forge.leaf())


@pytest.mark.attack_row(3)
def test_a_chain_that_does_not_end_in_the_bundle_beside_it_is_refused(forge: Forge) -> None:
    for pair in forge.untrusted_chains().values():
        with pytest.raises(AnswerRefused):
            judge(answer(forge, pair.der), pair)


@pytest.mark.parametrize("count", [0, 5, 1000])
def test_a_chain_of_a_strange_length_is_refused(forge: Forge, good_leaf: Pair, count: int) -> None:
    with pytest.raises(AnswerRefused, match="chain_length"):
        judge(answer(forge, good_leaf.der, chain_der=[good_leaf.der] * count), good_leaf)


@pytest.mark.attack_row(15)
def test_the_bundle_of_another_trust_domain_is_refused(forge: Forge, good_leaf: Pair) -> None:
    foreign = ca_pb2.Bundle(trust_domain="other.example", root_der=[forge.root_der])
    with pytest.raises(AnswerRefused, match="bundle_foreign"):
        judge(answer(forge, good_leaf.der, bundle=foreign), good_leaf)
    with pytest.raises(AnswerRefused, match="bundle_refused"):
        judge_bundle(ca_pb2.Bundle(trust_domain="cluster.local"), "cluster.local")


@pytest.mark.fault_row("clock-skew")
@pytest.mark.parametrize("hours", [-3, 3])
def test_a_clock_far_off_is_named_as_the_cause(forge: Forge, good_leaf: Pair, hours: int) -> None:
    wrong = utcnow() + dt.timedelta(hours=hours)
    with pytest.raises(AnswerRefused, match=r"clock is [+-]10[78]\d\d s off"):
        judge(answer(forge, good_leaf.der), good_leaf, wrong)


@pytest.mark.fault_row("clock-skew")
@pytest.mark.parametrize("seconds", [-5, 5])
def test_a_clock_a_little_off_does_not_matter(forge: Forge, good_leaf: Pair, seconds: int) -> None:
    assert judge(answer(forge, good_leaf.der), good_leaf, utcnow() + dt.timedelta(seconds=seconds))
