"""Whatever is told in whatever order, the model answers like somebody who reads the whole cluster anew
for each question; and whoever forgets only what a change names never keeps an answer that is old.
"""

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from registry.answers import Answers
from registry.facts import NodeFacts, PodFacts, ServiceFacts, SliceFacts, read_policy
from registry.keys import Key, is_ip, topic_network
from registry.model import settings_topic
from tests.registry.cluster import Cluster, Raw
from tests.registry.objects import (
    endpoint,
    namespace_object,
    node,
    pod,
    service,
    slice_of,
    with_host_port,
)

_NAMES = ("a", "b")
_SPACES = ("shop", "prod")
_IPS = ("10.0.0.1", "10.0.0.2", "fd00::1", "192.0.2.1", "10.96.0.1", "127.0.0.1")
_CLAIMED = ("198.51.100.7", "10.0.0.1", "10.96.0.1", "192.0.2.1")
_PORTS = (80, 81, 30080)
_RANGES = ("10.0.0.0/24", "10.0.0.0/30", "fd00::/64")
_CLUSTER_IPS = ("10.96.0.1", "10.96.0.2", "fd00:96::1")
_KEYS = [
    Key.parse(text)
    for text in (
        *_IPS,
        *_CLUSTER_IPS,
        *(f"{name}.{space}" for name in _NAMES for space in _SPACES),
        *(f"{host}.{name}.shop" for host in ("a", "first") for name in _NAMES),
        *(f"{ip}:{port}" for ip in _CLAIMED for port in _PORTS),
        "198.51.100.7",
        "10.0.0.9",
    )
]
_names, _ips = map(st.sampled_from, (_NAMES, _IPS))
_spaces = st.sampled_from(("shop", "shop", "shop", "prod"))
_labels = st.dictionaries(st.just("app"), st.sampled_from("ab"), max_size=1)


class History(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster()
        self.answers = Answers(self.cluster.model, "allow-meshed")
        self.settings: dict[str, Any] = {}
        self.raws: dict[tuple[str, str, str], Raw] = {}
        self.touched: set[str] = set()
        self.told: dict[str, int] = {}

    @initialize()
    def something_is_there(self) -> None:
        """Else most histories would never get as far as a Service whose endpoints are known."""
        self._put("service", service("a", "10.96.0.1"))
        self._put("slice", slice_of("a", endpoint("10.0.0.1"), endpoint("10.0.0.2"), name="x"))
        self._put("pod", pod("a", "10.0.0.1"))

    def _put(self, kind: str, raw: Raw) -> None:
        metadata = raw["metadata"]
        self.raws[kind, metadata.get("namespace", ""), metadata["name"]] = raw
        self._forget(put(self.cluster, kind, raw))

    def _forget(self, topics: set[str]) -> None:
        self.answers.forget(topics)
        self.touched = topics
        for topic in topics:
            self.settings.pop(topic, None)

    @rule(
        name=_names,
        namespace=_spaces,
        ips=st.lists(_ips.filter(lambda ip: ip[:3] in ("10.", "fd0")), max_size=2, unique=True),
        more=st.fixed_dictionaries(
            {},
            optional={
                "uid": st.sampled_from(["one", "two"]),
                "node": st.sampled_from(["n1", "n2", ""]),
                "node_ip": st.sampled_from(["192.0.2.1", "192.0.2.2"]),
                "created": st.sampled_from(["2026-11-21T08:00:01Z", "2026-11-21T08:00:02Z"]),
                "phase": st.sampled_from(["Pending", "Running", "Succeeded", "Failed"]),
                "terminating": st.booleans(),
                "meshed": st.booleans(),
                "host_network": st.booleans(),
                "labels": _labels,
            },
        ),
        host_port=st.sampled_from([0, 0, *_PORTS]),
    )
    def pod_told(
        self, name: str, namespace: str, ips: list[str], more: dict[str, Any], host_port: int
    ) -> None:
        if "uid" in more:  # of one name at a time, in one namespace
            more["uid"] = f"{namespace}-{name}-{more['uid']}"
        made = pod(name, *ips, namespace=namespace, **more)
        self._put("pod", with_host_port(made, host_port, 8080) if host_port else made)

    @rule(
        name=st.sampled_from(["n1", "n2"]),
        ips=st.lists(st.sampled_from(_CLAIMED), max_size=2, unique=True),
        cidrs=st.lists(st.sampled_from(_RANGES), max_size=2, unique=True),
    )
    def node_told(self, name: str, ips: list[str], cidrs: list[str]) -> None:
        self._put("node", node(name, *ips, cidrs=cidrs))

    @rule(
        name=_names,
        namespace=_spaces,
        ips=st.lists(st.sampled_from(_CLUSTER_IPS), max_size=2, unique=True),
        ports=st.lists(st.sampled_from(["db", "web"]), max_size=2, unique=True),
        created=st.sampled_from(["2026-11-21T07:00:01Z", "2026-11-21T07:00:02Z"]),
        claimed=st.lists(st.sampled_from(_CLAIMED), max_size=2, unique=True),
        balanced=st.lists(st.sampled_from(_CLAIMED), max_size=2, unique=True),
        node_port=st.booleans(),
    )
    def service_told(
        self,
        name: str,
        namespace: str,
        ips: list[str],
        ports: list[str],
        created: str,
        claimed: list[str],
        balanced: list[str],
        node_port: bool,
    ) -> None:
        raw_ports = tuple(
            {"name": port, "port": number, **({"nodePort": 30000 + number} if node_port else {})}
            for number, port in enumerate(ports, 80)
        )
        made = service(
            name,
            *ips,
            namespace=namespace,
            ports=raw_ports,
            created=created,
            balancer=balanced,
            externalIPs=claimed,
        )
        self._put("service", made)

    @rule(
        of=_names,
        namespace=_spaces,
        name=st.sampled_from(["x", "y"]),
        ends=st.lists(
            st.tuples(
                _ips,
                st.sampled_from(["", "shop-a", "shop-b-one", "prod-a"]),
                st.booleans(),
                st.sampled_from(["", "first"]),
                st.sampled_from([("n1", "z1"), ("n1", "z2"), ("n2", "z1"), ("", "")]),
            ),
            max_size=3,
        ),
    )
    def slice_told(self, of: str, namespace: str, name: str, ends: list[Any]) -> None:
        made = []
        for ip, target, ready, host, (near, zone) in ends:
            one = endpoint(ip, conditions={"ready": ready}, hostname=host, nodeName=near, zone=zone)
            if target:
                one["targetRef"] = {"kind": "Pod", "name": target[5:6], "uid": target}
            made.append(one)
        self._put("slice", slice_of(of, *made, namespace=namespace, name=name))

    @rule(name=_spaces, plaintext=st.sampled_from(["allow", "deny"]))
    def namespace_told(self, name: str, plaintext: str) -> None:
        self._put("namespace", namespace_object(name, plaintext=plaintext))

    @rule(
        name=_names,
        namespace=_spaces,
        labels=_labels,
        uid=st.sampled_from(["1", "2"]),
        generation=st.integers(1, 3),
        wrong=st.booleans(),
    )
    def policy_told(
        self, name: str, namespace: str, labels: Any, uid: str, generation: int, wrong: bool
    ) -> None:
        spec: Raw = {"selector": {"matchLabels": labels}, "allow": [{"from": [{"namespace": "x"}]}]}
        if wrong:
            spec["alow"] = []
        metadata = {"name": name, "namespace": namespace, "uid": uid, "generation": generation}
        self._put("policy", {"metadata": metadata, "spec": spec})

    @rule(data=st.data())
    def something_goes(self, data: st.DataObject) -> None:
        if self.raws:
            key = data.draw(st.sampled_from(sorted(self.raws)))
            raw = self.raws.pop(key)
            self._forget(put(self.cluster, key[0], raw, gone=True))

    @invariant()
    def no_answer_is_old(self) -> None:
        """What was kept since the last change equals what is made anew."""
        anew = Answers(self.cluster.model, "allow-meshed")
        for key in _KEYS:
            assert self.answers.entry(key).framed == anew.entry(key).framed, key.text
        for uid in self.cluster.model._pods:
            kept = self.settings.setdefault(settings_topic(uid), self.answers.settings(uid))
            assert kept == anew.settings(uid), uid

    @invariant()
    def whoever_asked_before_is_told(self) -> None:
        """Of a key whose answer differs now the last change names a topic."""
        topics = self.touched
        within = [network for one in topics if (network := topic_network(one)) is not None]
        for key in _KEYS:
            now = self.answers.entry(key).digest
            if self.told.get(key.text, now) != now:
                named = topics & set(key.topics) or (
                    is_ip(key.topic) and any(ip_address(key.topic) in n for n in within)
                )
                assert named, key.text
            self.told[key.text] = now

    @invariant()
    def history_leaves_no_trace(self) -> None:
        """It answers like one that heard only of what is there. Policies apart: the last good form of
        one that cannot be read is history, and meant to be."""
        fresh = Cluster()
        for (kind, _, _), raw in sorted(self.raws.items()):
            if kind != "policy":
                put(fresh, kind, raw)
        anew = Answers(fresh.model, "allow-meshed")
        for key in _KEYS:
            assert self.answers.entry(key).framed == anew.entry(key).framed, key.text
        for uid in self.cluster.model._pods:
            mine, theirs = self.answers.settings(uid), anew.settings(uid)
            assert mine is not None and theirs is not None
            del mine.policies[:]
            assert mine == theirs

    @invariant()
    def the_naive_reader_agrees(self) -> None:
        pods = [f for (kind, _), f in self.cluster._known.items() if kind == "pod"]
        services = [f for (kind, _), f in self.cluster._known.items() if kind == "service"]
        nodes = [f for (kind, _), f in self.cluster._known.items() if kind == "node"]
        slices = [f for (kind, _), f in self.cluster._known.items() if kind == "slice"]
        for ip in (*_IPS, *_CLUSTER_IPS):
            found = self.cluster.model.at_ip(ip)
            wanted = naive_at(ip, pods, services, nodes)
            got = getattr(getattr(found, "service", found), "created", None) if found else None
            assert (type(found).__name__, got) == wanted, ip
        for one in services:
            view = self.cluster.model.service(f"{one.name}.{one.namespace}")
            assert view is not None
            got_ends = {(e.ip, e.pod.uid if e.pod else "", e.ready) for e in view.endpoints}
            assert got_ends == naive_endpoints(one, pods, services, slices, nodes)


def put(cluster: Cluster, kind: str, raw: Raw, *, gone: bool = False) -> set[str]:
    if kind == "policy":
        metadata = raw["metadata"]
        key = ("policy", f"{metadata['namespace']}/{metadata['name']}")
        old, new = cluster._known.pop(key, None), None if gone else read_policy(raw)
        if new is not None:
            cluster._known[key] = new
        return cluster.model.change_policy(old, new)
    if gone:
        return cluster.remove(kind, raw)
    told = {
        "pod": cluster.pods,
        "service": cluster.services,
        "slice": cluster.slices,
        "node": cluster.nodes,
        "namespace": cluster.namespaces,
    }
    return told[kind](raw)


def naive_pod(ip: str, pods: list[PodFacts]) -> PodFacts | None:
    holders = [p for p in pods if ip in p.ips and not p.finished and not p.host_network]
    living = [p for p in holders if not p.terminating] or holders
    return max(living, key=lambda p: (p.created, p.uid)) if living else None


def naive_node(ip: str, pods: list[PodFacts], nodes: list[NodeFacts]) -> bool:
    return any(ip in one.node_ips for one in pods) or any(ip in one.ips for one in nodes)


def naive_unassigned(ip: str, pods: list[PodFacts], nodes: list[NodeFacts]) -> bool:
    ranges = [network for one in nodes for network in one.pod_networks]
    living = [ip_address(i) for p in pods if not p.finished and not p.host_network for i in p.ips]
    seen = any(one in network for one in living for network in ranges)
    return seen and any(ip_address(ip) in network for network in ranges)


def naive_claims(ip: str, services: list[ServiceFacts]) -> set[int]:
    claiming = [s for s in services if ip in (*s.external_ips, *s.balancer_ips)]
    return {port.port for one in claiming for port in one.ports}


def naive_at(
    ip: str, pods: list[PodFacts], services: list[ServiceFacts], nodes: list[NodeFacts]
) -> tuple[str, str | None]:
    here = [s for s in services if ip in s.cluster_ips]
    if here:
        return "ServiceView", max(s.created for s in here)
    if (found := naive_pod(ip, pods)) is not None:
        return "PodFacts", found.created
    if naive_node(ip, pods, nodes):
        return "NodeView", None
    if any(ip in (*s.external_ips, *s.balancer_ips) for s in services):
        return "OutsideView", None
    return "Unassigned" if naive_unassigned(ip, pods, nodes) else "NoneType", None


def naive_ports(of: ServiceFacts, one: SliceFacts) -> list[tuple[int, int]]:
    return [(p.port, to) for p in of.ports for name, to in one.ports if name == p.name]


def naive_endpoints(
    of: ServiceFacts,
    pods: list[PodFacts],
    services: list[ServiceFacts],
    slices: list[SliceFacts],
    nodes: list[NodeFacts],
) -> set[tuple[str, str, bool]]:
    """Address, pod and readiness of every endpoint; "" where nothing meshed or not is known there."""
    found: dict[str, tuple[str, bool]] = {}
    for one in slices:
        if (one.service, one.namespace) != (of.name, of.namespace):
            continue
        for end in one.endpoints:
            ip, here = end.claimed_ip, naive_pod(end.claimed_ip, pods)
            if here is None:
                here = next(
                    (
                        p
                        for p in pods
                        if p.uid == end.target_uid
                        and p.host_network
                        and not p.finished
                        and ip in p.ips
                    ),
                    None,
                )
            if ip.startswith("127."):
                continue
            if here is not None:
                if here.namespace != of.namespace or end.target_uid not in ("", here.uid):
                    continue
            elif (
                end.target_uid
                or any(ip in s.cluster_ips for s in services)
                or naive_node(ip, pods, nodes)
                or naive_claims(ip, services) & {to for _, to in naive_ports(of, one)}
                or naive_unassigned(ip, pods, nodes)
            ):
                continue
            uid, was_ready = found.get(ip, ("", False))
            found[ip] = (uid or (here.uid if here else ""), end.ready or was_ready)
    return {(ip, uid, ready) for ip, (uid, ready) in found.items()}


# A second for each example: far more than one takes, in `make fuzz` too.
TestHistory = pytest.mark.timeout(max(300, settings().max_examples))(History.TestCase)
TestHistory.settings = settings(
    max_examples=settings().max_examples, stateful_step_count=30, deadline=None
)
