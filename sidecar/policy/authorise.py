"""May this peer reach this port? Pure: no I/O, so every rule is a table test.

Deny wins, then allow, then: denied if any enforcing policy selects this pod, else the mesh default.
Names are compared whole and byte for byte. A rule over identities never matches a peer without one,
and a rule over CIDRs never matches a peer with one (ISTIO-SECURITY-2021-004).
"""

import ipaddress
from dataclasses import dataclass
from typing import NamedTuple

from certs.trust.identity import WorkloadIdentity
from sidecar.errors import Denied, PlaintextDenied

ALLOW_MESHED, ALLOW_ALL, DENY = "allow-meshed", "allow-all", "deny"
MESH_DEFAULTS = frozenset({ALLOW_MESHED, ALLOW_ALL, DENY})


@dataclass(frozen=True, slots=True)
class Source:
    """Peers of one namespace; `service_account` empty means any of it."""

    namespace: str
    service_account: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    sources: tuple[Source, ...] = ()
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()
    ports: frozenset[int] = frozenset()
    """Empty: every port."""

    def matches(self, peer: WorkloadIdentity | None, peer_ip: str, port: int) -> bool:
        if self.ports and port not in self.ports:
            return False
        if peer is not None:
            namespace, account = peer.namespace, peer.service_account
            for source in self.sources:
                if source.namespace == namespace and source.service_account in ("", account):
                    return True
            return False
        if not self.networks:
            return False
        address = ipaddress.ip_address(peer_ip)
        return any(address in network for network in self.networks)


@dataclass(frozen=True, slots=True)
class Policy:
    name: str
    """`namespace/name` of the LinkPolicy."""
    allow: tuple[Rule, ...] = ()
    deny: tuple[Rule, ...] = ()
    audit: bool = False
    """Say what it would do, and do nothing."""


@dataclass(frozen=True, slots=True)
class PolicySet:
    """What is in force for one pod."""

    mesh_default: str = ALLOW_MESHED
    allow_plaintext: bool = False
    """Let peers without identity in, as far as the policies say so."""
    policies: tuple[Policy, ...] = ()


NOT_TOLD = PolicySet(mesh_default="not known yet: the registry has not said")
"""In force until the registry speaks: nobody is let in, since a policy might forbid it."""


class Permit(NamedTuple):
    """Proof that `authorise` said yes. The dialler of the app takes a Permit, never a bare port."""

    peer: WorkloadIdentity | None
    port: int
    policy: str
    rule: str
    would_deny: str = ""
    """The auditing policy that would have refused this link; empty if none."""


def authorise(
    peer: WorkloadIdentity | None, peer_ip: str, port: int, in_force: PolicySet
) -> Permit:
    """Return a Permit or raise Denied (PlaintextDenied for a peer without identity).

    `peer` is who the peer's checked leaf says it is, None for plaintext; `peer_ip` its TCP source
    in canonical text; `port` the app's port as it was dialled.
    """
    if peer is None and not in_force.allow_plaintext:
        raise PlaintextDenied(f"plaintext from {peer_ip} to port {port}")
    would_deny = ""
    permit: Permit | None = None
    for policy in in_force.policies:
        for rule in policy.deny:
            if rule.matches(peer, peer_ip, port):
                if not policy.audit:
                    raise Denied(f"{policy.name} {rule.name}")
                would_deny = would_deny or policy.name
    selected = False
    for policy in in_force.policies:
        allowing = next((r for r in policy.allow if r.matches(peer, peer_ip, port)), None)
        if policy.audit:
            if allowing is None:
                would_deny = would_deny or policy.name
            continue
        selected = True
        if allowing is not None and permit is None:
            permit = Permit(peer, port, policy.name, allowing.name)
    if permit is None:
        permit = _by_default(peer, port, in_force, selected)
    if would_deny:
        return Permit(permit.peer, permit.port, permit.policy, permit.rule, would_deny)
    return permit


def _by_default(
    peer: WorkloadIdentity | None, port: int, in_force: PolicySet, selected: bool
) -> Permit:
    if selected:
        raise Denied("no rule of the policies that select this pod allows it")
    default = in_force.mesh_default
    if default == ALLOW_ALL or (default == ALLOW_MESHED and peer is not None):
        return Permit(peer, port, "", f"default:{default}")
    if default == ALLOW_MESHED and in_force.allow_plaintext:
        # `plaintext: allow` on the pod or namespace is the word that lets such peers in.
        return Permit(peer, port, "", "plaintext:allow")
    raise Denied(f"the mesh default is {default}")
