"""Messages of the registry into the values that the data plane uses. Pure.

A policy that cannot be understood is refused whole: half understood it might allow what it forbids
(Istio CVE-2022-21679). Of what tenants write (ports and addresses of Services and pods) only what does
not fit is left out, and noted in `kit.checked.Fields`; such a loss never opens anything.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import replace

from certs.trust.identity import WorkloadIdentity
from kit.checked import MAX_PORT, Fields
from kit.contract import HTTP_APP_PROTOCOLS
from kit.ports import PortSet
from policy.rules import MESH_DEFAULTS, Policy, PolicySet, Rule, Source
from proto import registry_pb2 as pb
from sidecar.directory import (
    EXTERNAL,
    ByPort,
    Endpoint,
    External,
    Found,
    Gone,
    Service,
    ToPod,
    ToService,
    Workload,
)

POLICY_FORMAT = 1
"""The newest form of policies that this version knows whole."""


class NotUnderstood(ValueError):
    """The registry said something that this version does not know: keep what was known before."""

    reason = "registry_not_understood"


def found(entry: pb.Entry, trust_domain: str, fields: Fields | None = None) -> Found:
    """Raises NotUnderstood. What is left out is noted in `fields`."""
    try:
        value = _found(entry, trust_domain, fields or Fields())
    except ValueError as e:
        raise NotUnderstood(f"{entry.key}: {e}") from e
    if not entry.forwards:
        return value
    if isinstance(value, Workload | External):
        return ByPort(value)
    raise NotUnderstood(f"{entry.key}: no address that can lead elsewhere")


def _found(entry: pb.Entry, trust_domain: str, fields: Fields) -> Found:
    match entry.WhichOneof("found"):
        case "workload":
            return workload(entry.workload, trust_domain, fields)
        case "service":
            return service(entry.service, trust_domain, fields)
        case "external":
            return EXTERNAL
        case "unassigned":
            return Gone("")
        case "forward":
            return _forward(entry.forward, trust_domain, fields)
    raise ValueError("nothing that this version knows")


def _forward(said: pb.Forward, trust_domain: str, fields: Fields) -> ToService | ToPod:
    if not 0 < said.port <= MAX_PORT:
        raise ValueError(f"leads to port {said.port}")
    if said.WhichOneof("to") == "workload":
        return ToPod(workload(said.workload, trust_domain, fields), said.port)
    if not said.service:
        raise ValueError("leads to no Service and no pod")
    return ToService(said.service, said.port, said.only_node)


def held_endpoints(old: Found | None, new: Found) -> Service | None:
    """The Service `new` with the endpoints of `old`, if it came without any; None if it may stand.

    Only endpoints whose identity is checked are held: an address that is reached in plaintext may
    have become somebody else's.
    """
    if not isinstance(old, Service) or not isinstance(new, Service) or new.endpoints:
        return None
    held = tuple(e for e in old.endpoints if e.workload is not None and e.workload.identity)
    return replace(new, endpoints=held) if held and old.ports == new.ports else None


def workload(said: pb.Workload, trust_domain: str, fields: Fields) -> Workload:
    """A meshed pod's identity follows from its namespace and service account, nothing else. Raises
    ValueError if they make none."""
    meshed = said.meshed and not said.host_network
    return Workload(
        uid=said.uid,
        namespace=said.namespace,
        name=said.name,
        identity=WorkloadIdentity(trust_domain, said.namespace, said.service_account)
        if meshed
        else None,
        ips=_addresses(said.ips, "ips", fields),
        node=said.node,
        zone=said.zone,
        tunnel_only=said.mode == "localhost",
        skip_inbound=_ports(said.skip_inbound_ports, "skip_inbound_ports", fields),
        skip_outbound=_ports(said.skip_outbound_ports, "skip_outbound_ports", fields),
        http_ports=_ports(said.http_ports, "http_ports", fields),
        terminating=said.terminating,
        host_network=said.host_network,
    )


def _addresses(said: Iterable[str], field: str, fields: Fields) -> tuple[str, ...]:
    return tuple(filter(None, (fields.address(ip, field) for ip in said)))


def _ports(said: Iterable[str], field: str, fields: Fields) -> PortSet:
    return fields.ports(",".join(said), field)


def service(said: pb.Service, trust_domain: str, fields: Fields) -> Service:
    ports = [port for port in said.ports if fields.port(port.port, "ports")]
    endpoints = [_endpoint(e, trust_domain, fields) for e in said.endpoints]
    return Service(
        namespace=said.namespace,
        name=said.name,
        cluster_ips=_addresses(said.cluster_ips, "cluster_ips", fields),
        ports=frozenset(port.port for port in ports),
        endpoints=tuple(e for e in endpoints if e is not None),
        affinity_timeout_s=said.affinity_timeout_s,
        balance=said.balance,
        traffic_distribution=said.traffic_distribution,
        publish_not_ready=said.publish_not_ready,
        local_only=said.local_only,
        http_ports=frozenset(p.port for p in ports if p.app_protocol in HTTP_APP_PROTOCOLS),
    )


def _endpoint(said: pb.Endpoint, trust_domain: str, fields: Fields) -> Endpoint | None:
    """None for one that cannot be dialled, or whose pod is named unreadably: that must not pass for
    an address without a pod."""
    ip = fields.address(said.ip, "endpoints.ip")
    if not ip:
        return None
    try:
        pod = workload(said.workload, trust_domain, fields) if said.HasField("workload") else None
    except ValueError:
        fields.refuse("endpoints.workload", "name_malformed", said.workload.service_account)
        return None
    return Endpoint(
        ip=ip,
        ports={
            port: to
            for port, to in said.ports.items()
            if fields.port(port, "endpoints.ports") and fields.port(to, "endpoints.ports")
        },
        workload=pod,
        ready=said.ready,
        serving=said.serving,
        terminating=said.terminating,
        for_zones=frozenset(said.for_zones),
    )


def checked_settings(said: pb.PodSettings, fields: Fields) -> pb.PodSettings:
    """`said` without the ports that are none."""
    http = [port for port in said.http_ports if fields.port(port, "http_ports")]
    if len(http) == len(said.http_ports):
        return said
    kept = pb.PodSettings()
    kept.CopyFrom(said)
    kept.http_ports[:] = http
    return kept


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
