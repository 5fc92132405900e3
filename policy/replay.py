"""What LinkPolicies would have done to links on record. Pure.

The matcher is the one that sidecars enforce with. What is here is what stands around it, for the
command and for the page alike: which policies a destination's pods come under, which of their rules
something used, and what becomes of a link.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from certs.trust.identity import WorkloadIdentity
from policy.judge import Denial, judge
from policy.linkpolicy import LinkPolicy
from policy.rules import ALLOW_MESHED, PolicySet

Fate = Literal["cut", "opened", "still", "kept"]
ORDER: Final[tuple[Fate, ...]] = ("cut", "opened", "still", "kept")
"""Worst first: worked and would not, was denied and would not be, still denied, still works."""
NOBODYS_IP: Final = "192.0.2.1"
"""For a peer whose address is not on record (RFC 5737)."""

Labels = Mapping[tuple[str, str], Sequence[Mapping[str, str]]]
"""Of the pods of each (namespace, service account)."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Links of one source to one destination's port that went alike."""

    source: str
    """For a person: `namespace/service account`, else the name or address on record."""
    peer: WorkloadIdentity | None
    peer_ip: str
    """Empty if the record does not say."""
    namespace: str
    account: str
    """The destination's; empty if its identity is not on record."""
    port: int
    denied: bool
    by_policy: bool
    """A policy (or the want of a rule) denied it, not a missing identity or another cause."""
    links: int
    last_ns: int


@dataclass(frozen=True, slots=True)
class Under:
    """The policies that some pods of a destination come under."""

    candidates: tuple[LinkPolicy, ...]
    others: tuple[LinkPolicy, ...] = ()
    """In force already, and no candidate takes their place: rules of all add up."""
    some: bool = False
    """A candidate selects only some of those pods."""


def under(
    candidates: Iterable[LinkPolicy],
    others: Iterable[LinkPolicy],
    namespace: str,
    pods: Sequence[Mapping[str, str]],
) -> Under:
    """What pods with these labels come under."""
    picked = [(one, [one.selects(namespace, labels) for labels in pods]) for one in candidates]
    return Under(
        tuple(one for one, hits in picked if any(hits)),
        tuple(one for one in others if any(one.selects(namespace, labels) for labels in pods)),
        any(any(hits) and not all(hits) for _, hits in picked),
    )


def without_replaced(
    in_force: Iterable[LinkPolicy], candidates: Sequence[LinkPolicy]
) -> list[LinkPolicy]:
    """Those of the policies in force that no candidate of the same name takes the place of."""
    names = {one.policy.name for one in candidates}
    return [one for one in in_force if one.policy.name not in names]


class Rules:
    """Which rules of the candidates any link used."""

    def __init__(self, candidates: Sequence[LinkPolicy]) -> None:
        self._candidates = candidates
        self._used: set[tuple[str, str]] = set()

    def note(self, seen: Seen, candidates: Iterable[LinkPolicy]) -> None:
        ip = seen.peer_ip or NOBODYS_IP
        for one in candidates:
            for rule in (*one.policy.allow, *one.policy.deny):
                if rule.matches(seen.peer, ip, seen.port):
                    self._used.add((one.policy.name, rule.name))

    @property
    def unused(self) -> tuple[str, ...]:
        """`namespace/name rule` of each that nothing used."""
        return tuple(
            f"{one.policy.name} {rule.name}"
            for one in self._candidates
            for rule in (*one.policy.allow, *one.policy.deny)
            if (one.policy.name, rule.name) not in self._used
        )


def fate_of(seen: Seen, of: Under, mesh_default: str = ALLOW_MESHED) -> tuple[Fate, str]:
    """What becomes of these links, and why in a line."""
    # Whether the pod takes plaintext is its own setting, no policy's: what came in shows that it did.
    plaintext = seen.peer is None and (not seen.denied or seen.by_policy)
    ordered = sorted((one.policy for one in (*of.candidates, *of.others)), key=lambda p: p.name)
    verdict = judge(
        seen.peer,
        seen.peer_ip or NOBODYS_IP,
        seen.port,
        PolicySet(mesh_default, allow_plaintext=plaintext, policies=tuple(ordered)),
    )
    where = " (at some of its pods)" if of.some else ""
    by = f"{verdict.policy} {verdict.rule}".strip()
    if isinstance(verdict, Denial):
        near = f"; nearest: {verdict.nearest}" if verdict.nearest else ""
        return "still" if seen.denied else "cut", f"{by}{where}{near}"
    if verdict.would_deny:
        by = f"{verdict.would_deny} {verdict.would_deny_rule} would deny it, but only audits"
    if not seen.denied:
        return "kept", f"{by}{where}"
    if seen.by_policy:
        return "opened", f"{by}{where}"
    return "still", "what denied it is not what policies decide"
