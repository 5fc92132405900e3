"""A proof of a new leaf holds for one key, one tunnel, one side and one moment, and for no other."""

import dataclasses
import datetime as dt
import hashlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from certs.trust.bans import Ban, Banned, Bans, Guard, pod_serial
from certs.trust.chain import ChainChecker
from certs.trust.facts import LeafFacts
from certs.trust.identity import WorkloadIdentity
from certs.trust.possession import ProofJudge, Prover
from certs.trust.renewal import Claim, ProofRefused, check_same_workload
from certs.trust.svid import SvidChecker, SvidRefused
from tests.certs.forge import DEFAULT, BadLeaf, Forge, Pair

CLAIM = Claim(True, b"p" * 32, b"j" * 32, b"f" * 32, b"l" * 32, b"c" * 32)
API = WorkloadIdentity.parse(DEFAULT)
NOON = dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)


def judge_of(forge: Forge) -> ProofJudge:
    return ProofJudge(SvidChecker("cluster.local"), ChainChecker([forge.root_der]))


def proof(pair: Pair | BadLeaf, claim: Claim = CLAIM) -> bytes:
    return Prover(pair.key_pem, pair.der)(claim)


def test_the_proof_of_a_leaf_is_believed_for_its_claim(forge: Forge) -> None:
    pair = forge.leaf(ips=["10.0.0.7"])
    facts = judge_of(forge)([pair.der], proof(pair), CLAIM)
    assert facts.identity == API
    assert facts.sha256 == hashlib.sha256(pair.der).hexdigest()


@pytest.mark.attack_row(8)
@pytest.mark.parametrize("name", [each.name for each in dataclasses.fields(Claim)])
def test_a_proof_for_another_claim_is_a_forgery(forge: Forge, name: str) -> None:
    pair = forge.leaf()
    other: Any = False if name == "by_dialler" else b"x" * 32
    changed = dataclasses.replace(CLAIM, **{name: other})
    with pytest.raises(ProofRefused) as refused:
        judge_of(forge)([pair.der], proof(pair), changed)
    assert (refused.value.reason, refused.value.forged) == ("signature", True)


def test_a_proof_for_another_leaf_or_by_another_key_is_a_forgery(forge: Forge) -> None:
    former, new = forge.leaf(), forge.leaf()
    for signature in (
        proof(former),
        Prover(former.key_pem, new.der)(CLAIM),
        Prover(new.key_pem, former.der)(CLAIM),
    ):
        with pytest.raises(ProofRefused) as refused:
            judge_of(forge)([new.der], signature, CLAIM)
        assert refused.value.forged


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(junk=st.binary(max_size=100))
def test_no_bytes_that_the_key_did_not_make_pass(
    forge: Forge, good_leaf: Pair, junk: bytes
) -> None:
    with pytest.raises(ProofRefused):
        judge_of(forge)([good_leaf.der], junk, CLAIM)


def test_what_the_key_signs_is_nothing_that_tls_asks_it_to_sign() -> None:
    """RFC 8446, section 4.4.3: 64 spaces, a context string and a NUL."""
    signed = CLAIM.signed_bytes(b"n" * 32)
    context = signed[64:].partition(b"\0")[0]
    assert signed.startswith(b" " * 64)
    assert not context.startswith(b"TLS 1.3")
    assert len(signed) == 64 + len(context) + 1 + 1 + 6 * 32


@settings(max_examples=100)
@given(
    *(
        st.builds(Claim, st.booleans(), *[st.binary(min_size=32, max_size=32) for _ in range(5)])
        for _ in range(2)
    )
)
def test_two_claims_never_sign_the_same(one: Claim, other: Claim) -> None:
    assert (one == other) == (one.signed_bytes(b"n" * 32) == other.signed_bytes(b"n" * 32))


def test_a_bad_leaf_proves_nothing_even_with_a_lawful_signature(
    forge: Forge, bad_leaves: dict[str, BadLeaf]
) -> None:
    for name, bad in bad_leaves.items():
        try:
            signature = proof(bad)
        except (ValueError, AssertionError):
            signature = b""  # a key of another kind
        with pytest.raises(SvidRefused) as refused:
            judge_of(forge)([bad.der], signature, CLAIM)
        assert refused.value.reason == bad.reason, name


def test_a_chain_that_no_root_of_ours_ends_proves_nothing(forge: Forge) -> None:
    for pair in forge.untrusted_chains().values():
        with pytest.raises((ProofRefused, SvidRefused)):
            judge_of(forge)([pair.der], proof(pair), CLAIM)
    with pytest.raises(ProofRefused, match="no certificate"):
        judge_of(forge)([], b"", CLAIM)


def test_a_banned_leaf_proves_nothing(forge: Forge) -> None:
    pair = forge.leaf()
    guard = Guard(SvidChecker("cluster.local"))
    guard.bans = Bans.of([Ban("identity", DEFAULT)])
    with pytest.raises(Banned):
        ProofJudge(guard, ChainChecker([forge.root_der]))([pair.der], proof(pair), CLAIM)


def test_a_key_that_no_leaf_of_ours_has_makes_no_prover() -> None:
    from cryptography.hazmat.primitives.asymmetric import ed25519

    from tests.certs.forge import key_to_pem

    with pytest.raises(ValueError, match="Ed25519"):
        Prover(key_to_pem(ed25519.Ed25519PrivateKey.generate()), b"")


# --- the same workload ----------------------------------------------------------------------


def leaf(
    pod: str = "uid-1", ips: tuple[str, ...] = ("10.0.0.7",), hours: int = 1, account: str = "api"
) -> LeafFacts:
    serial = f"{pod_serial(pod, 12345 + hours):x}"
    identity = WorkloadIdentity("cluster.local", "shop", account)
    return LeafFacts(
        identity, frozenset(ips), serial, "0" * 64, NOON, NOON + dt.timedelta(hours=hours)
    )


def test_a_later_leaf_of_the_same_pod_is_the_same_workload() -> None:
    check_same_workload(leaf(), leaf(hours=2), names_pods=True)
    check_same_workload(leaf(ips=()), leaf(hours=2), names_pods=True)
    check_same_workload(leaf(), leaf(hours=2, ips=("10.0.0.7", "fd00::7")), names_pods=True)
    check_same_workload(leaf(), leaf("uid-2", (), 2), names_pods=False)


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        (leaf(hours=2, account="db"), "identity_changed"),
        (leaf("uid-2", hours=2), "pod_changed"),
        (leaf(hours=2, ips=()), "pod_changed"),
        (leaf(hours=2, ips=("10.0.0.8",)), "pod_changed"),
        (leaf(), "not_later"),
        (leaf(hours=0), "not_later"),
    ],
)
def test_any_other_leaf_is_not(new: LeafFacts, reason: str) -> None:
    with pytest.raises(ProofRefused) as refused:
        check_same_workload(leaf(), new, names_pods=True)
    assert refused.value.reason == reason
    if reason in ("identity_changed", "not_later"):
        with pytest.raises(ProofRefused, match=reason):
            check_same_workload(leaf(), new, names_pods=False)
