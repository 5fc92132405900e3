"""What LinkPolicies would have done to the links on record. Pure.

The matcher is the one that sidecars enforce with. The record holds identities and ports, no labels;
which pods a selector means is taken from the pods that run as that identity today. Where only some
of them are selected, the outcome says so.
"""

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from certs.trust.identity import IdentityMalformed, WorkloadIdentity
from policy.judge import Denial, judge
from policy.linkpolicy import LinkPolicy
from policy.rules import PolicySet

Fate = Literal["cut", "opened", "refused", "kept"]
_ORDER: tuple[Fate, ...] = ("cut", "opened", "refused", "kept")
_NOBODYS_IP = "192.0.2.1"
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
    """The destination's."""
    port: int
    denied: bool
    by_policy: bool
    """A policy (or the want of a rule) denied it, not a missing identity or another cause."""
    links: int
    last_ns: int


@dataclass(frozen=True, slots=True)
class Outcome:
    seen: Seen
    fate: Fate
    why: str


@dataclass(frozen=True, slots=True)
class Replay:
    outcomes: tuple[Outcome, ...]
    unused: tuple[str, ...]
    """Rules of the candidates that no recorded link matched: `namespace/name rule`."""
    notes: tuple[str, ...]

    def count(self, fate: Fate) -> int:
        return sum(one.seen.links for one in self.outcomes if one.fate == fate)

    def as_json(self) -> dict[str, Any]:
        return {
            "outcomes": [
                {
                    **asdict(one.seen),
                    "peer": str(one.seen.peer or ""),
                    "fate": one.fate,
                    "why": one.why,
                }
                for one in self.outcomes
            ],
            "unused": list(self.unused),
            "notes": list(self.notes),
            "cut": self.count("cut"),
        }


def read_traffic(rows: Iterable[Mapping[str, Any]]) -> list[Seen]:
    """Rows of GET /api/traffic. Both sides tell of a link: whoever told of more is believed, and the
    receiver's word on who denied it counts. What is no link between known ends is left out."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("security") == "self" or row.get("destination_kind") != "identity":
            continue
        verdict = str(row.get("verdict"))
        if verdict == "failed":
            continue
        key = (
            row["source_kind"],
            row["source"],
            row["destination"],
            row["port"],
            verdict == "denied",
        )
        groups.setdefault(key, []).append(row)
    found = []
    for (kind, source, destination, port, denied), group in groups.items():
        try:
            to = WorkloadIdentity.parse(str(destination))
            peer = WorkloadIdentity.parse(str(source)) if kind == "identity" else None
        except IdentityMalformed:
            continue
        sides = {"outbound": 0, "inbound": 0}
        for row in group:
            for side in sides if row.get("sides") == "both" else (row.get("sides"),):
                if side in sides:
                    sides[side] += int(row.get("links") or row.get("opened") or 0)
        text = f"{peer.namespace}/{peer.service_account}" if peer is not None else str(source)
        found.append(
            Seen(
                source=text or "not known",
                peer=peer,
                peer_ip=_address(str(source)) if kind == "address" else "",
                namespace=to.namespace,
                account=to.service_account,
                port=int(port),
                denied=denied,
                by_policy=any(row.get("reason") == "policy_denied" for row in group),
                links=max(sides.values()) or 1,
                last_ns=max(int(row.get("last_ns") or 0) for row in group),
            )
        )
    return found


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""


def replay(
    candidates: Sequence[LinkPolicy],
    others: Sequence[LinkPolicy],
    traffic: Iterable[Seen],
    labels: Labels,
) -> Replay:
    """`others` are the policies in force that no candidate replaces: rules of all add up."""
    outcomes: list[Outcome] = []
    used: set[tuple[str, str]] = set()
    notes: list[str] = []
    for seen in traffic:
        pods = labels.get((seen.namespace, seen.account))
        if pods is None:
            note = f"{seen.namespace}/{seen.account} runs no pod today: taken as not selected"
            if note not in notes:
                notes.append(note)
            continue
        picked = [[one.selects(seen.namespace, pod) for pod in pods] for one in candidates]
        if not any(map(any, picked)):
            continue
        some = any(any(hits) and not all(hits) for hits in picked)
        here = [one for one, hits in zip(candidates, picked, strict=True) if any(hits)]
        rest = [one for one in others if any(one.selects(seen.namespace, pod) for pod in pods)]
        ip = seen.peer_ip or _NOBODYS_IP
        for one in here:
            for rule in (*one.policy.allow, *one.policy.deny):
                if rule.matches(seen.peer, ip, seen.port):
                    used.add((one.policy.name, rule.name))
        outcomes.append(_outcome(seen, [*here, *rest], ip, some))
    outcomes.sort(key=lambda one: (_ORDER.index(one.fate), -one.seen.links, one.seen.source))
    unused = tuple(
        f"{one.policy.name} {rule.name}"
        for one in candidates
        for rule in (*one.policy.allow, *one.policy.deny)
        if (one.policy.name, rule.name) not in used
    )
    return Replay(tuple(outcomes), unused, tuple(notes))


def _outcome(seen: Seen, policies: Sequence[LinkPolicy], ip: str, some: bool) -> Outcome:
    plaintext = seen.peer is None and (not seen.denied or seen.by_policy)
    ordered = sorted((one.policy for one in policies), key=lambda policy: policy.name)
    verdict = judge(
        seen.peer, ip, seen.port, PolicySet(allow_plaintext=plaintext, policies=tuple(ordered))
    )
    where = " (at some of its pods)" if some else ""
    if isinstance(verdict, Denial):
        by = f"{verdict.policy} {verdict.rule}".strip()
        near = f"; nearest: {verdict.nearest}" if verdict.nearest else ""
        return Outcome(seen, "refused" if seen.denied else "cut", f"{by}{where}{near}")
    by = f"{verdict.policy} {verdict.rule}".strip()
    if verdict.would_deny:
        by = f"{verdict.would_deny} {verdict.would_deny_rule} would deny it, but only audits"
    if seen.denied:
        return Outcome(seen, "opened" if seen.by_policy else "refused", f"{by}{where}")
    return Outcome(seen, "kept", f"{by}{where}")
