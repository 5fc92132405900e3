"""What is in force for one pod: policies, their rules and the mesh default. Values only."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from certs.trust.identity import WorkloadIdentity
from kit.ports import NO_PORTS, PortSet

ALLOW_MESHED, ALLOW_ALL, DENY = "allow-meshed", "allow-all", "deny"
MESH_DEFAULTS = frozenset({ALLOW_MESHED, ALLOW_ALL, DENY})

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Source:
    """Peers of one namespace; `service_account` empty means any of it."""

    namespace: str
    service_account: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.service_account or '(any)'}"


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of `allow` or `deny`. A rule over identities never matches a peer without one, and
    a rule over networks never matches a peer with one (ISTIO-SECURITY-2021-004).
    """

    name: str
    """`allow[0]`: where it stands in its policy."""
    sources: tuple[Source, ...] = ()
    networks: tuple[Network, ...] = ()
    ports: frozenset[int] = frozenset()
    """Empty: every port."""

    def matches(self, peer: WorkloadIdentity | None, peer_ip: str, port: int) -> bool:
        """Names are compared whole and byte for byte."""
        if self.ports and port not in self.ports:
            return False
        return self.names(peer, peer_ip)

    def names(self, peer: WorkloadIdentity | None, peer_ip: str) -> bool:
        """Whether the peer is among those the rule is about, on whatever port."""
        if peer is not None:
            namespace, account = peer.namespace, peer.service_account
            for source in self.sources:
                if source.namespace == namespace and source.service_account in ("", account):
                    return True
            return False
        if not self.networks:
            return False
        address: IPv4Address | IPv6Address = ip_address(peer_ip)
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
    plaintext_ports: PortSet = NO_PORTS
    """Ports where that holds though `allow_plaintext` does not."""

    def takes_plaintext(self, port: int) -> bool:
        """Whether the pod's settings let peers without identity come to `port`, before any policy."""
        return self.allow_plaintext or port in self.plaintext_ports


NOT_TOLD = PolicySet(mesh_default="not known yet: the registry has not said")
"""In force until the registry speaks: nobody is let in, since a policy might forbid it."""
