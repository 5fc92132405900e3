"""Messages of the registry into the values that the data plane uses. Pure.

What cannot be understood is refused whole: a policy that is half understood might allow what it
forbids (Istio CVE-2022-21679).
"""

import ipaddress
from dataclasses import replace

from certs.trust.identity import WorkloadIdentity
from kit.contract import HTTP_APP_PROTOCOLS
from kit.ports import PortSet
from policy.rules import MESH_DEFAULTS, Policy, PolicySet, Rule, Source
from proto import registry_pb2 as pb
from sidecar.directory import EXTERNAL, Endpoint, Found, Service, Workload

POLICY_FORMAT = 1
"""The newest form of policies that this version knows whole."""


class NotUnderstood(ValueError):
    """The registry said something that this version does not know: keep what was known before."""

    reason = "registry_not_understood"


def found(entry: pb.Entry, trust_domain: str) -> Found:
    """Raises NotUnderstood."""
    kind = entry.WhichOneof("found")
    try:
        if kind == "workload":
            return workload(entry.workload, trust_domain)
        if kind == "service":
            return service(entry.service, trust_domain)
    except ValueError as e:
        raise NotUnderstood(f"{entry.key}: {e}") from e
    if kind == "external":
        return EXTERNAL
    raise NotUnderstood(f"{entry.key}: neither a pod, a Service nor external")


def held_endpoints(old: Found | None, new: Found) -> Service | None:
    """The Service `new` with the endpoints of `old`, if it came without any; None if it may stand.

    Only endpoints whose identity is checked are held: an address that is reached in plaintext may
    have become somebody else's.
    """
    if not isinstance(old, Service) or not isinstance(new, Service) or new.endpoints:
        return None
    held = tuple(e for e in old.endpoints if e.workload is not None and e.workload.identity)
    return replace(new, endpoints=held) if held and old.ports == new.ports else None


def workload(said: pb.Workload, trust_domain: str) -> Workload:
    """A meshed pod's identity follows from its namespace and service account, nothing else."""
    meshed = said.meshed and not said.host_network
    return Workload(
        uid=said.uid,
        namespace=said.namespace,
        name=said.name,
        identity=WorkloadIdentity(trust_domain, said.namespace, said.service_account)
        if meshed
        else None,
        ips=tuple(said.ips),
        node=said.node,
        zone=said.zone,
        tunnel_only=said.mode == "localhost",
        skip_inbound=PortSet.parse(said.skip_inbound_ports),
        skip_outbound=PortSet.parse(said.skip_outbound_ports),
        http_ports=PortSet.parse(said.http_ports),
        terminating=said.terminating,
        host_network=said.host_network,
    )


def service(said: pb.Service, trust_domain: str) -> Service:
    return Service(
        namespace=said.namespace,
        name=said.name,
        cluster_ips=tuple(said.cluster_ips),
        ports=frozenset(port.port for port in said.ports),
        endpoints=tuple(_endpoint(e, trust_domain) for e in said.endpoints),
        affinity_timeout_s=said.affinity_timeout_s,
        balance=said.balance,
        traffic_distribution=said.traffic_distribution,
        publish_not_ready=said.publish_not_ready,
        local_only=said.local_only,
        http_ports=frozenset(p.port for p in said.ports if p.app_protocol in HTTP_APP_PROTOCOLS),
    )


def _endpoint(said: pb.Endpoint, trust_domain: str) -> Endpoint:
    return Endpoint(
        ip=said.ip,
        ports=dict(said.ports),
        workload=workload(said.workload, trust_domain) if said.HasField("workload") else None,
        ready=said.ready,
        serving=said.serving,
        terminating=said.terminating,
        for_zones=frozenset(said.for_zones),
    )


def policy_set(said: pb.PodSettings) -> PolicySet:
    """Raises NotUnderstood, in which case the policies in force stay in force."""
    if said.policy_format > POLICY_FORMAT:
        raise NotUnderstood(f"policy format {said.policy_format}, {POLICY_FORMAT} is known")
    if said.mesh_default not in MESH_DEFAULTS or said.plaintext not in ("allow", "deny"):
        raise NotUnderstood(f"settings {said.mesh_default!r}, {said.plaintext!r}")
    try:
        policies = tuple(
            Policy(
                name=f"{policy.namespace}/{policy.name}",
                allow=tuple(map(_rule, policy.allow)),
                deny=tuple(map(_rule, policy.deny)),
                audit=policy.audit,
            )
            for policy in said.policies
        )
        plaintext_ports = PortSet.parse(said.plaintext_ports)
    except ValueError as e:
        raise NotUnderstood(f"settings: {e}") from e
    return PolicySet(said.mesh_default, said.plaintext == "allow", policies, plaintext_ports)


def _rule(said: pb.Rule) -> Rule:
    return Rule(
        name=said.name,
        sources=tuple(Source(s.namespace, s.service_account) for s in getattr(said, "from")),
        networks=tuple(ipaddress.ip_network(cidr) for cidr in said.from_cidrs),
        ports=frozenset(said.ports),
    )
