"""The state of the cluster as the registry knows it: changed fact by fact, asked by key. Pure.

Every change returns the topics whose answers may now differ. A topic is an IP, a port of whatever IP
(":30080"), a Service ("name.namespace"), or a pod's own settings ("pod/<uid>").
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

from registry.endpoints import Dropped, EndpointView, join, named
from registry.facts import (
    NamespaceFacts,
    NodeFacts,
    PodFacts,
    PolicyObject,
    ServiceFacts,
    SliceFacts,
)
from registry.forwards import Forward, Forwards
from registry.keys import range_topic
from registry.policies import Policies
from registry.ranges import Addresses, Network, PodRanges

Topics = set[str]
_NOBODY: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ServiceView:
    service: ServiceFacts
    endpoints: tuple[EndpointView, ...]


@dataclass(frozen=True, slots=True)
class NodeView:
    """An address of a node: whatever answers there is on the host's network, without an identity
    that its address could prove.
    """

    ip: str


@dataclass(frozen=True, slots=True)
class OutsideView:
    """An address of a Service's load balancer, or an external IP: some of its ports lead to Services,
    the others out of the cluster.
    """


class Unassigned:
    """An address of a range that pods' addresses come from, and no pod's that we know: a new pod's, of
    which the kubelet has not told yet, or nobody's.
    """


OUTSIDE, UNASSIGNED = OutsideView(), Unassigned()
Found = PodFacts | ServiceView | NodeView | OutsideView | Unassigned | Forward | None
"""None: nothing of the cluster, so external."""


HttpPorts = dict[str, frozenset[int]]
_NO_HTTP: HttpPorts = {}


def settings_topic(uid: str) -> str:
    return f"pod/{uid}"


class Model:
    """Implements `endpoints.World`. `on_drop(service, dropped)` hears of each Service's refused
    addresses when the set of them changes.
    """

    def __init__(self, on_drop: Callable[[str, list[Dropped]], None] | None = None) -> None:
        self._on_drop = on_drop
        self._pods: dict[str, PodFacts] = {}
        self._pods_at: defaultdict[str, set[str]] = defaultdict(set)
        self._host_pods_at: defaultdict[str, set[str]] = defaultdict(set)
        self._pods_in: defaultdict[str, set[str]] = defaultdict(set)
        self._forwards = Forwards(self._pods.__getitem__)
        self._ranges = PodRanges()
        self._vouched: dict[str, tuple[str, ...]] = {}
        """Addresses that pods have shown to be theirs before the API server says so."""
        self._pods_on: defaultdict[str, set[str]] = defaultdict(set)
        self._zones_of: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._services: dict[str, ServiceFacts] = {}
        self._services_at: defaultdict[str, set[str]] = defaultdict(set)
        self._slices: dict[str, SliceFacts] = {}
        self._slices_of: defaultdict[str, set[str]] = defaultdict(set)
        self._services_naming: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._named = Addresses()
        """The keys of `_services_naming` that are addresses."""
        self._namespaces: dict[str, NamespaceFacts] = {}
        self.policies = Policies()
        self._views: dict[str, ServiceView] = {}
        self._http: dict[str, HttpPorts] = {}
        """Of each Service that says it speaks HTTP: on which ports of which pods."""
        self._dropped: dict[str, list[Dropped]] = {}

    # What is known of an address.

    def pod_at(self, ip: str) -> PodFacts | None:
        """The pod that holds `ip`: a living one before a terminating one, then the newest.

        Addresses are used again, sometimes before the last holder's object is gone.
        """
        uids = self._pods_at.get(ip, _NOBODY)
        if not uids:
            return None
        return max((self._pods[uid] for uid in uids), key=_claim)

    def host_pod_at(self, ip: str, uid: str) -> PodFacts | None:
        return self._pods[uid] if uid in self._host_pods_at.get(ip, _NOBODY) else None

    def is_node(self, ip: str) -> bool:
        return self._forwards.is_node(ip)

    def is_claimed(self, ip: str, ports: Iterable[int]) -> bool:
        """Whether a Service calls one of these ports of the address its own."""
        return any(self._forwards.claims(ip, port) for port in ports)

    def nodes_at(self, ip: str) -> list[str]:
        """The names of the nodes that have the address."""
        return self._forwards.nodes_at(ip)

    def is_cluster_ip(self, ip: str) -> bool:
        return bool(self._services_at.get(ip))

    def is_unassigned(self, ip: str) -> bool:
        return self._ranges.covers(ip)

    def zone_of_node(self, node: str) -> str:
        """The zone that most slices say `node` is in; "" if none says.

        Tenants write slices too, so nothing but the preference for near endpoints may rest on it.
        """
        zones = self._zones_of.get(node)
        return max(zones, key=lambda zone: (zones[zone], zone)) if zones else ""

    # Questions.

    def pod(self, uid: str) -> PodFacts | None:
        return self._pods.get(uid)

    def pods(self) -> Iterable[PodFacts]:
        return self._pods.values()

    def namespace(self, name: str) -> NamespaceFacts | None:
        return self._namespaces.get(name)

    def at_ip(self, ip: str) -> Found:
        """Who is at `ip`, in canonical text."""
        if services := self._services_at.get(ip):
            newest = max(services, key=lambda name: (self._services[name].created, name))
            return self.service(newest)
        if (pod := self.pod_at(ip)) is not None:
            return pod
        if self._forwards.is_node(ip):
            return NodeView(ip)
        if self._forwards.is_claimed(ip):
            return OUTSIDE
        return UNASSIGNED if self._ranges.covers(ip) else None

    def at_port(self, ip: str, port: int) -> Found:
        """Where one port of `ip` leads: elsewhere, or to whoever is at `ip`."""
        if self._services_at.get(ip) or self.pod_at(ip) is not None:
            return self.at_ip(ip)
        return self._forwards.at(ip, port) or self.at_ip(ip)

    def service(self, name: str) -> ServiceView | None:
        """The Service called "name.namespace", with its endpoints."""
        facts = self._services.get(name)
        if facts is None:
            return None
        view = self._views.get(name)
        if view is None:
            slices = [self._slices[key] for key in sorted(self._slices_of.get(name, _NOBODY))]
            endpoints, dropped = join(facts, slices, self)
            view = self._views[name] = ServiceView(facts, tuple(endpoints))
            if dropped != self._dropped.get(name, []):
                self._dropped[name] = dropped
                if self._on_drop is not None:
                    self._on_drop(name, dropped)
        return view

    def service_pod(self, pod: str, service: str) -> PodFacts | None:
        """The pod that the headless Service "name.namespace" calls `pod` in DNS."""
        view = self.service(service)
        endpoint = named(view.endpoints, pod) if view is not None else None
        return endpoint.pod if endpoint is not None else None

    def http_ports(self, pod: PodFacts) -> list[int]:
        """The pod's ports that Services of its own namespace say speak HTTP."""
        services = {name for ip in pod.ips for name in self._services_naming.get(ip, ())}
        found = {port for name in services for port in self._http.get(name, {}).get(pod.uid, ())}
        return sorted(found)

    def _read_http(self, name: str) -> HttpPorts:
        facts = self._services.get(name)
        wanted = {port.port for port in facts.ports if port.speaks_http} if facts else set()
        if not wanted:
            return _NO_HTTP
        view, found = self.service(name), defaultdict[str, set[int]](set)
        for endpoint in view.endpoints if view is not None else ():
            if endpoint.pod is not None:
                found[endpoint.pod.uid].update(to for port, to in endpoint.ports if port in wanted)
        return {uid: frozenset(ports) for uid, ports in found.items()}

    # Changes. `old` and `new` are as an informer tells them: None for not there.

    def change_pod(self, old: PodFacts | None, new: PodFacts | None) -> Topics:
        changed: Topics = set()
        used = self._ranges.in_use
        if old is not None:
            self._forget_pod(self._pods[old.uid], changed)
            if new is None or new.uid != old.uid:
                self._vouched.pop(old.uid, None)
        if new is not None:
            self._learn_pod(self._with_vouched(new), changed)
        if used != self._ranges.in_use:
            self._touch(self._ranges.networks, changed)
        return self._spread(changed)

    def vouch(self, uid: str, ips: Iterable[str]) -> Topics:
        """The pod has shown that it has these addresses, before the kubelet has told any of it: they
        are its own until then, unless another pod has them that is there to stay."""
        pod = self._pods.get(uid)
        if pod is None or pod.ips or pod.host_network or pod.finished:
            return set()
        holders = {ip: self.pod_at(ip) for ip in ips if not self._services_at.get(ip)}
        self._vouched[uid] = tuple(
            ip for ip, holder in holders.items() if holder is None or holder.terminating
        )
        return self.change_pod(pod, pod)

    def _with_vouched(self, pod: PodFacts) -> PodFacts:
        if pod.ips:
            self._vouched.pop(pod.uid, None)
        vouched = self._vouched.get(pod.uid)
        return replace(pod, ips=vouched) if vouched else pod

    def change_service(self, old: ServiceFacts | None, new: ServiceFacts | None) -> Topics:
        changed: Topics = set()
        for facts, present in ((old, False), (new, True)):
            if facts is None:
                continue
            name = f"{facts.name}.{facts.namespace}"
            changed.add(name)
            changed.update(facts.cluster_ips)
            changed.update(self._forwards.place_service(facts, present))
            for ip in facts.cluster_ips:
                _keep(self._services_at, ip, name, present)
            if present:
                self._services[name] = facts
            else:
                del self._services[name]
                if self._dropped.pop(name, None) and self._on_drop is not None:
                    self._on_drop(name, [])
        return self._spread(changed)

    def change_slice(self, key: str, old: SliceFacts | None, new: SliceFacts | None) -> Topics:
        changed: Topics = set()
        for facts, step in ((old, -1), (new, 1)):
            if facts is None:
                continue
            service = f"{facts.service}.{facts.namespace}"
            changed.add(service)
            _keep(self._slices_of, service, key, step > 0)
            for ip in {endpoint.claimed_ip for endpoint in facts.endpoints}:
                naming = self._services_naming[ip]
                if not naming:
                    self._name(ip, True)
                naming[service] += step
                if not naming[service]:
                    del naming[service]
                if not naming:
                    del self._services_naming[ip]
                    self._name(ip, False)
            self._place_nodes(facts, step, changed)
            if step > 0:
                self._slices[key] = facts
            else:
                del self._slices[key]
        return self._spread(changed)

    def _name(self, claimed: str, present: bool) -> None:
        with suppress(ValueError):  # tenants write slices: it may be any text
            self._named.change(claimed, present)

    def _place_nodes(self, facts: SliceFacts, step: int, changed: Topics) -> None:
        """Count what the slice says of zones: one voice for each node that it names."""
        for node, zone in {(one.node, one.zone) for one in facts.endpoints}:
            if not node or not zone:
                continue
            before, zones = self.zone_of_node(node), self._zones_of[node]
            zones[zone] += step
            if not zones[zone]:
                del zones[zone]
            if not zones:
                del self._zones_of[node]
            if self.zone_of_node(node) != before:
                on_it = self._pods_on.get(node, _NOBODY)
                changed.update(settings_topic(uid) for uid in on_it)

    def change_node(self, old: NodeFacts | None, new: NodeFacts | None) -> Topics:
        changed: Topics = set()
        used, ranges = self._ranges.in_use, set[Network]()
        for facts, present in ((old, False), (new, True)):
            if facts is not None:
                changed.update(self._forwards.place_node(facts, present))
                own = set(facts.pod_networks)
                ranges.update(one for one in own if self._ranges.place_network(one, present))
        if used != self._ranges.in_use:
            ranges.update(self._ranges.networks)
        if used or self._ranges.in_use:  # else no range counts, neither before nor now
            self._touch(ranges, changed)
        return self._spread(changed)

    def _touch(self, ranges: Iterable[Network], changed: Topics) -> None:
        """Any address of theirs may be external where it was not, or the other way round."""
        for network in ranges:
            changed.add(range_topic(network))
            changed.update(self._named.within(network))

    def change_namespace(self, old: NamespaceFacts | None, new: NamespaceFacts | None) -> Topics:
        facts = new or old
        assert facts is not None
        if new is not None:
            self._namespaces[new.name] = new
        else:
            self._namespaces.pop(facts.name, None)
        return {settings_topic(uid) for uid in self._pods_in.get(facts.name, _NOBODY)}

    def change_policy(self, old: PolicyObject | None, new: PolicyObject | None) -> Topics:
        """Only the pods that it selected or now selects may hear of it."""
        named = new or old
        assert named is not None
        before = self.policies.of(named.namespace, named.name)
        after = self.policies.change(old, new)
        if before == after:
            return set()
        pods = (self._pods[uid] for uid in self._pods_in.get(named.namespace, _NOBODY))
        return {
            settings_topic(pod.uid)
            for pod in pods
            if any(one is not None and self.policies.selects(one, pod) for one in (before, after))
        }

    def count_selected(self, namespace: str, name: str) -> int:
        """How many pods that have not finished the policy selects now."""
        policy = self.policies.of(namespace, name)
        if policy is None:
            return 0
        pods = (self._pods[uid] for uid in self._pods_in.get(namespace, _NOBODY))
        return sum(not pod.finished and self.policies.selects(policy, pod) for pod in pods)

    def _learn_pod(self, pod: PodFacts, changed: Topics) -> None:
        self._pods[pod.uid] = pod
        self._pods_in[pod.namespace].add(pod.uid)
        if pod.node:
            self._pods_on[pod.node].add(pod.uid)
        changed.add(settings_topic(pod.uid))
        self._place(pod, True, changed)

    def _forget_pod(self, pod: PodFacts, changed: Topics) -> None:
        self._place(pod, False, changed)
        changed.add(settings_topic(pod.uid))
        _keep(self._pods_in, pod.namespace, pod.uid, False)
        _keep(self._pods_on, pod.node, pod.uid, False)
        del self._pods[pod.uid]

    def _place(self, pod: PodFacts, present: bool, changed: Topics) -> None:
        changed.update(self._forwards.place_pod(pod, present))
        if pod.finished:  # its address is free for the next pod
            return
        held = self._host_pods_at if pod.host_network else self._pods_at
        for ip in pod.ips:
            _keep(held, ip, pod.uid, present)
            changed.add(ip)
            if not pod.host_network:
                self._ranges.place_pod(ip, present)

    def _spread(self, changed: Topics) -> Topics:
        """Add the Services that name a changed address, and forget their joined endpoints."""
        for topic in list(changed):
            if services := self._services_naming.get(topic):
                changed.update(services)
        for topic in list(changed):
            self._views.pop(topic, None)
            if (facts := self._services.get(topic)) is not None:
                changed.update(facts.cluster_ips)
            self._tell_http(topic, changed)
        return changed

    def _tell_http(self, service: str, changed: Topics) -> None:
        """Pods whose ports a Service calls HTTP, or no longer does, hear of it."""
        old, new = self._http.pop(service, _NO_HTTP), self._read_http(service)
        if new:
            self._http[service] = new
        if old != new:
            uids = {uid for uid in (*old, *new) if old.get(uid) != new.get(uid)}
            changed.update(settings_topic(uid) for uid in uids)


def _claim(pod: PodFacts) -> tuple[bool, str, str]:
    return (not pod.terminating, pod.created, pod.uid)


def _keep(index: defaultdict[str, set[str]], key: str, member: str, present: bool) -> None:
    if present:
        index[key].add(member)
    elif key in index:
        index[key].discard(member)
        if not index[key]:
            del index[key]
