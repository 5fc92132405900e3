"""Judges what the CA answered before any of it is used.

The CA is trusted to name us, not to be free of mistakes: an answer that our peers would refuse must
fail here, with a reason, while the old leaf still works.
"""

import datetime as dt
import logging
from dataclasses import dataclass

from certs.trust.bans import MAX_BANS, Ban, BanMalformed, Bans
from certs.trust.bundle import BundleRefused, TrustBundle
from certs.trust.contexts import MAX_CHAIN, MaterialRefused, TlsMaterial
from certs.trust.facts import LeafFacts
from certs.trust.pem import to_pem
from certs.trust.svid import SvidRefused, check_leaf
from proto import ca_pb2

SKEW_WORTH_SAYING_S = 60
_log = logging.getLogger(__name__)


class AnswerRefused(Exception):
    """The CA's answer is of no use to us; `reason` is a slug, the text says what is wrong."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}"[:512])
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Grant:
    """A judged answer: the leaf works with our key and verifies against the bundle beside it."""

    material: TlsMaterial
    facts: LeafFacts
    bundle: TrustBundle
    lifetime_s: float


def judge_answer(
    answer: ca_pb2.SignResponse, key_pem: bytes, *, trust_domain: str, now: dt.datetime
) -> Grant:
    """Raises AnswerRefused unless a peer of ours would believe the leaf right now."""
    if not 1 <= len(answer.chain_der) <= MAX_CHAIN:
        raise AnswerRefused("chain_length", f"{len(answer.chain_der)} certificates")
    bundle = judge_bundle(answer.bundle, trust_domain)
    try:
        facts = check_leaf(answer.chain_der[0], trust_domain=trust_domain, now=now)
    except SvidRefused as e:
        raise AnswerRefused(e.reason, f"{e}{_skew(answer.signed_at_unix_s, now)}") from e
    material = TlsMaterial(key_pem, to_pem(answer.chain_der), bundle.to_pem())
    prove(material)
    left_s = (facts.not_after - now).total_seconds()
    # The shorter of the CA's word and the leaf's own end by our clock.
    return Grant(material, facts, bundle, min(float(answer.lifetime_s), left_s))


def judge_bundle(message: ca_pb2.Bundle, trust_domain: str) -> TrustBundle:
    """Raises AnswerRefused for another trust domain's bundle, or one that is none."""
    if message.trust_domain != trust_domain:
        raise AnswerRefused("bundle_foreign", repr(message.trust_domain[:256]))
    try:
        return TrustBundle.of(trust_domain, message.generation, message.root_der)
    except BundleRefused as e:
        raise AnswerRefused(e.reason, str(e)) from e


def judge_bans(message: ca_pb2.Bundle) -> Bans:
    """The bans of a message. What this version cannot read is left out, not the rest with it."""
    raw = message.bans
    found = set[Ban]()
    for kind, values in (("identity", raw.identity), ("pod", raw.pod_uid), ("serial", raw.serial)):
        for value in values:
            try:
                found.add(Ban(kind, value))  # type: ignore[arg-type]
            except BanMalformed as e:
                _log.warning("a ban was not understood", extra={"error": str(e)})
    return Bans.of(sorted(found)[:MAX_BANS])


def prove(material: TlsMaterial) -> None:
    """Raises AnswerRefused unless key, chain and bundle make a handshake with themselves.

    For a new bundle this is the rule that it must contain the root of our own living leaf: dropping
    it would cut us off from everybody who still believes us.
    """
    try:
        material.prove()
    except MaterialRefused as e:
        raise AnswerRefused(e.reason, str(e)) from e


def skew_s(signed_at_unix_s: int, now: dt.datetime) -> float:
    """How far our wall clock is ahead of the CA's, in seconds; negative: behind."""
    return now.timestamp() - signed_at_unix_s


def _skew(signed_at_unix_s: int, now: dt.datetime) -> str:
    ahead_s = skew_s(signed_at_unix_s, now)
    if abs(ahead_s) < SKEW_WORTH_SAYING_S:
        return ""
    return f" (this node's clock is {ahead_s:+.0f} s off the CA's)"
