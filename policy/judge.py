"""May this peer reach this port? Pure: no I/O, so every rule is a table test.

Deny wins, then allow, then: denied if any enforcing policy selects this pod, else the mesh default.
"""

from collections.abc import Iterator
from typing import NamedTuple

from certs.trust.identity import WorkloadIdentity
from policy.rules import ALLOW_ALL, ALLOW_MESHED, Policy, PolicySet, Rule

NO_RULE = "no-rule"
"""In place of a rule's name: the policies select the pod, and none of their rules allows the link."""


class Permit(NamedTuple):
    """Proof that `judge` said yes. The dialler of the app takes a Permit, never a bare port."""

    peer: WorkloadIdentity | None
    port: int
    policy: str
    rule: str
    would_deny: str = ""
    """The auditing policy that would have refused this link; empty if none."""
    would_deny_rule: str = ""
    """Its rule: `deny[0]` or `no-rule`."""


class Denial(NamedTuple):
    """A no, and why."""

    text: str
    """One line for a person."""
    policy: str = ""
    """`namespace/name` of the policy that decided; of the first that selects the pod if none of
    their rules allows the link; empty if the mesh default or `plaintext: deny` decided."""
    rule: str = ""
    """`deny[0]`, `no-rule`, `default:deny` or `plaintext:deny`."""
    nearest: str = ""
    """The rule that came nearest to allowing it, and what kept it; empty if no rule is near."""
    plaintext: bool = False
    """Refused because the peer has no identity and the pod takes no plaintext."""


def judge(
    peer: WorkloadIdentity | None, peer_ip: str, port: int, in_force: PolicySet
) -> Permit | Denial:
    """The verdict on one link.

    `peer` is who the peer's checked leaf says it is, None for plaintext; `peer_ip` its TCP source
    in canonical text; `port` the app's port as it was dialled.
    """
    if peer is None and not in_force.takes_plaintext(port):
        return Denial(
            f"plaintext from {peer_ip} to port {port}", rule="plaintext:deny", plaintext=True
        )
    would_deny, by = "", ""
    for policy in in_force.policies:
        for rule in policy.deny:
            if rule.matches(peer, peer_ip, port):
                if not policy.audit:
                    return _denied_by(policy, rule, peer, peer_ip, port, in_force)
                if not would_deny:
                    would_deny, by = policy.name, rule.name
    selecting = ""
    permit: Permit | None = None
    for policy in in_force.policies:
        allowing = next((r for r in policy.allow if r.matches(peer, peer_ip, port)), None)
        if policy.audit:
            if allowing is None and not would_deny:
                would_deny, by = policy.name, NO_RULE
            continue
        selecting = selecting or policy.name
        if allowing is not None and permit is None:
            permit = Permit(peer, port, policy.name, allowing.name)
    if permit is None:
        if selecting:
            return Denial(
                "no rule of the policies that select this pod allows it",
                selecting,
                NO_RULE,
                nearest(peer, peer_ip, port, in_force),
            )
        verdict = _by_default(peer, port, in_force)
        if isinstance(verdict, Denial):
            return verdict
        permit = verdict
    if would_deny:
        return permit._replace(would_deny=would_deny, would_deny_rule=by)
    return permit


def _denied_by(
    policy: Policy,
    rule: Rule,
    peer: WorkloadIdentity | None,
    peer_ip: str,
    port: int,
    in_force: PolicySet,
) -> Denial:
    near = next(
        (
            f"{other.name} {r.name} allows it, but a deny rule wins"
            for other in in_force.policies
            for r in other.allow
            if not other.audit and r.matches(peer, peer_ip, port)
        ),
        "",
    )
    return Denial(f"{policy.name} {rule.name} denies it", policy.name, rule.name, near)


def _by_default(peer: WorkloadIdentity | None, port: int, in_force: PolicySet) -> Permit | Denial:
    default = in_force.mesh_default
    if default == ALLOW_ALL or (default == ALLOW_MESHED and peer is not None):
        return Permit(peer, port, "", f"default:{default}")
    if default == ALLOW_MESHED and in_force.takes_plaintext(port):
        # `plaintext: allow` (or the port's own) on pod or namespace is the word that lets them in.
        return Permit(peer, port, "", "plaintext:allow")
    return Denial(f"the mesh default is {default}", rule=f"default:{default}")


def nearest(peer: WorkloadIdentity | None, peer_ip: str, port: int, in_force: PolicySet) -> str:
    """The allow rule in force that lacks least for this link, and what it lacks; "" if none."""
    best = min(_lacks(peer, peer_ip, port, in_force), default=None)
    return best[2] if best is not None else ""


def _lacks(
    peer: WorkloadIdentity | None, peer_ip: str, port: int, in_force: PolicySet
) -> Iterator[tuple[int, int, str]]:
    """How far each allow rule is from this link: (distance, its place, words)."""
    rules = ((p, r) for p in in_force.policies if not p.audit for r in p.allow)
    for place, (policy, rule) in enumerate(rules):
        distance, words = 0, []
        if rule.ports and port not in rule.ports:
            distance += 1
            words.append(f"allows {_listed(sorted(rule.ports))}, not port {port}")
        if not rule.names(peer, peer_ip):
            far, lack = _who_lacks(rule, peer, peer_ip)
            distance += far
            words.append(lack)
        yield distance, place, f"{policy.name} {rule.name} {' and '.join(words)}"


def _who_lacks(rule: Rule, peer: WorkloadIdentity | None, peer_ip: str) -> tuple[int, str]:
    if peer is None:
        if rule.networks:
            return 2, f"allows {_listed(rule.networks)}, not {peer_ip}"
        return 4, "allows identities, and this peer showed none"
    if not rule.sources:
        return 4, "allows addresses without identity, and this peer has one"
    here = any(source.namespace == peer.namespace for source in rule.sources)
    names = f"allows {_listed(rule.sources)}, not {peer.namespace}/{peer.service_account}"
    return (1 if here else 2), names


def _listed(things: object, most: int = 3) -> str:
    texts = [str(thing) for thing in things]  # type: ignore[attr-defined]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
