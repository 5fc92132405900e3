"""Ports that lead elsewhere than to whoever has their address: node ports, host ports, and the ports of
load balancers and external IPs. Pure.

Inside a cluster kube-proxy (and the CNI plugin, for host ports) translates all of these on the node of
whoever dials, so they lead to a pod without leaving the cluster, and to a meshed one they must lead by
tunnel.

A tenant writes a Service's `externalIPs` and a pod's `hostPort`, so both are claims. An address that a
pod or a ClusterIP has never comes here. Of one port, the first in this order has it:

    node port            the API server gives each number to one Service
    load balancer        the status of a Service, which its controller writes
    host port            the kubelet lets one pod of a node have it
    external IP          whoever claimed it first: an address and port that another Service has is kept

(kube-proxy leaves open who of two that claim one external IP gets it.)
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from registry.facts import NodeFacts, PodFacts, ServiceFacts
from registry.keys import port_topic

_Claims = defaultdict[str, dict[str, str]]
"""By address: each Service that claims it ("name.namespace"), and when that was made."""


@dataclass(frozen=True, slots=True)
class ToService:
    """To a port of the Service "name.namespace"; of its endpoints, to those on `only_node` if it is
    set (`externalTrafficPolicy: Local`, at another node's port)."""

    service: str
    port: int
    only_node: str = ""


@dataclass(frozen=True, slots=True)
class ToPod:
    """To a port of the pod."""

    pod: PodFacts
    port: int


Forward = ToService | ToPod


class Forwards:
    """`holder(uid)` is the pod of that UID. Every change returns the topics that it touches."""

    def __init__(self, holder: Callable[[str], PodFacts]) -> None:
        self._holder = holder
        self._node_ports: defaultdict[int, dict[str, tuple[str, int, bool]]] = defaultdict(dict)
        """Each Service that has the number: when it was made, its own port, and whether only
        endpoints of the node dialled are to be chosen."""
        self._balancers: _Claims = defaultdict(dict)
        self._external: _Claims = defaultdict(dict)
        self._ports: dict[str, frozenset[int]] = {}
        """Of each Service that claims an address. Apart from the claims: a Service may have a thousand
        ports, and each is claimed at each of its addresses."""
        self._host_ports: defaultdict[tuple[str, int], set[str]] = defaultdict(set)
        """By node and number: UIDs of pods."""
        self._nodes_at: defaultdict[str, Counter[str]] = defaultdict(Counter)

    # Questions.

    def is_node(self, ip: str) -> bool:
        return ip in self._nodes_at

    def nodes_at(self, ip: str) -> list[str]:
        return sorted(self._nodes_at.get(ip, ()))

    def is_claimed(self, ip: str) -> bool:
        """Whether a Service calls the address its load balancer's or an external IP."""
        return ip in self._balancers or ip in self._external

    def claims(self, ip: str, port: int) -> bool:
        """Whether a Service claims that port of the address."""
        return bool(self._first(self._balancers, ip, port) or self._first(self._external, ip, port))

    def at(self, ip: str, port: int) -> Forward | None:
        """Where the port leads; None: to whoever has the address."""
        nodes = self.nodes_at(ip)
        if nodes and (having := self._node_ports.get(port)):
            name, (_, own, local) = min(having.items(), key=lambda one: (one[1][0], one[0]))
            return ToService(name, own, nodes[0] if local else "")
        if service := self._first(self._balancers, ip, port):
            return ToService(service, port)
        if (pod := self._host_pod(nodes, ip, port)) is not None:
            return pod
        if service := self._first(self._external, ip, port):
            return ToService(service, port)
        return None

    def _first(self, claims: _Claims, ip: str, port: int) -> str:
        """The oldest Service with that port that claims the address; "" for none."""
        having = claims.get(ip, {})
        fit = [(made, name) for name, made in having.items() if port in self._ports[name]]
        return min(fit)[1] if fit else ""

    def _host_pod(self, nodes: Iterable[str], ip: str, port: int) -> ToPod | None:
        for node in nodes:
            pods = [self._holder(uid) for uid in self._host_ports.get((node, port), ())]
            for pod in sorted(pods, key=lambda one: (one.terminating, one.created, one.uid)):
                for one in pod.host_ports:
                    if one.number == port and one.host_ip in ("", ip) and pod.ips:
                        return ToPod(pod, one.port)
        return None

    # Changes.

    def place_service(self, facts: ServiceFacts, present: bool) -> set[str]:
        name = f"{facts.name}.{facts.namespace}"
        touched = {*facts.balancer_ips, *facts.external_ips}
        if touched:
            ports = frozenset(port.port for port in facts.ports)
            touched.update(map(port_topic, ports))
            if present:
                self._ports[name] = ports
            else:
                self._ports.pop(name, None)
        for claims, ips in (
            (self._balancers, facts.balancer_ips),
            (self._external, facts.external_ips),
        ):
            for ip in ips:
                if present:
                    claims[ip][name] = facts.created
                elif ip in claims:
                    claims[ip].pop(name, None)
                    if not claims[ip]:
                        del claims[ip]
        for number, port in facts.node_ports:
            having = self._node_ports[number]
            if present:
                having[name] = (facts.created, port, facts.external_local)
            else:
                having.pop(name, None)
            if not having:
                del self._node_ports[number]
            touched.add(port_topic(number))
        return touched

    def place_pod(self, pod: PodFacts, present: bool) -> set[str]:
        """Its node's addresses and, unless it has finished, its host ports."""
        touched = self._place_node(pod.node, pod.node_ips, present)
        for one in () if pod.finished else pod.host_ports:
            uids = self._host_ports[pod.node, one.number]
            (uids.add if present else uids.discard)(pod.uid)
            if not uids:
                del self._host_ports[pod.node, one.number]
            touched.add(port_topic(one.number))
        return touched

    def place_node(self, node: NodeFacts, present: bool) -> set[str]:
        return self._place_node(node.name, node.ips, present)

    def _place_node(self, name: str, ips: Iterable[str], present: bool) -> set[str]:
        touched = set()
        for ip in ips:
            names = self._nodes_at[ip]
            before = set(names)
            _count(names, name, 1 if present else -1)
            if set(names) != before:
                touched.add(ip)
            if not names:
                del self._nodes_at[ip]
        return touched


def _count(counter: Counter[str], key: str, step: int) -> None:
    counter[key] += step
    if not counter[key]:
        del counter[key]
