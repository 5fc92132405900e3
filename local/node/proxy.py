"""Addresses of Services, as kube-proxy does them, and host ports of pods, as the CNI plugin portmap does
them: an nft table for each IP version, changed in one transaction at a time.

`frontends`, `contents` and `change` are pure: objects in, the text for `nft -f -` out.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kit.tasks import spawn, stop
from local.apiserver import resources
from local.apiserver.store import Event, Store
from local.controllers.endpoints import pod_addresses
from local.node import tools
from local.node.network import DNS_IP, NODE_IP, NODE_IP6, SERVICE_CIDR, SERVICE_CIDR6
from local.objects import Object, dig, labels_of, name_of, namespace_of

_SERVICE_NAME = "kubernetes.io/service-name"


@dataclass(frozen=True, slots=True)
class Frontend:
    """One address and port of a Service, and the endpoints behind it, in a fixed order."""

    ip: str
    protocol: str
    port: int
    endpoints: tuple[tuple[str, int], ...]
    masquerade: bool = False
    """Comes from outside and takes the node's address on its way (externalTrafficPolicy: Cluster)."""


def frontends(services: Iterable[Object], slices: Sequence[Object]) -> list[Frontend]:
    """Every address and port of the Services with its usable endpoints: the ready, else the serving
    ones that end."""
    by_service: dict[tuple[str, str], list[Object]] = {}
    for one in slices:
        owner = namespace_of(one), labels_of(one).get(_SERVICE_NAME, "")
        by_service.setdefault(owner, []).append(one)
    found: dict[tuple[str, str, int], Frontend] = {}
    for service in services:
        own = by_service.get((namespace_of(service), name_of(service)), [])
        hide = dig(service, "spec", "externalTrafficPolicy", default="Cluster") == "Cluster"
        for port in dig(service, "spec", "ports", default=[]):
            protocol = port.get("protocol", "TCP").lower()
            for ip, number, outside in _addresses(service, port):
                ends = tuple(_endpoints(own, port.get("name", ""), ":" in ip))
                front = Frontend(ip, protocol, number, ends, outside and hide)
                found.setdefault((ip, protocol, number), front)  # the first to ask for it has it
    return list(found.values())


def _addresses(service: Object, port: Object) -> Iterable[tuple[str, int, bool]]:
    """Where one port of a Service is reached: address, port, and whether from outside."""
    spec = service["spec"]
    inside = [ip for ip in spec.get("clusterIPs") or () if ip not in ("None", "")]
    versions = {":" in ip for ip in inside}
    for ip in inside:
        if ip != DNS_IP:
            yield ip, port["port"], False
    balancers = dig(service, "status", "loadBalancer", "ingress", default=[])
    for ip in (*(spec.get("externalIPs") or ()), *(one["ip"] for one in balancers)):
        if (":" in ip) in versions:
            yield ip, port["port"], True
    for ip in (NODE_IP, NODE_IP6) if "nodePort" in port else ():
        if (":" in ip) in versions:
            yield ip, port["nodePort"], True


def _endpoints(slices: Iterable[Object], port_name: str, v6: bool) -> list[tuple[str, int]]:
    ready: list[tuple[str, int]] = []
    leaving: list[tuple[str, int]] = []
    for one in slices:
        if one.get("addressType") != ("IPv6" if v6 else "IPv4"):
            continue
        for port in one.get("ports") or ():
            if port.get("name", "") != port_name:
                continue
            for endpoint in one.get("endpoints") or ():
                conditions = endpoint.get("conditions") or {}
                where = endpoint["addresses"][0], port["port"]
                if conditions.get("ready", True):
                    ready.append(where)
                elif conditions.get("serving") and conditions.get("terminating"):
                    leaving.append(where)
    return sorted(set(ready or leaving))


_HIDE = "0x70"
"""The connection mark of what takes the node's address on its way."""
_DNS_CHAINS = f"""
  chain queries {{
    type filter hook prerouting priority raw
    ip daddr {DNS_IP} udp dport 53 notrack
  }}
  chain answers {{
    type filter hook output priority raw
    ip saddr {DNS_IP} udp sport 53 notrack
  }}"""


@dataclass(frozen=True, slots=True)
class Family:
    """The words of one IP version in nft, each with a table of its own."""

    v6: bool

    @property
    def word(self) -> str:
        return "ip6" if self.v6 else "ip"

    @property
    def table(self) -> str:
        return f"{self.word} podlink_services"

    @property
    def base(self) -> str:
        """What stays for good. The hooked chains are never replaced: a connection whose first packet
        came between the old ones and the new would go untranslated for its whole life."""
        ip, kind = self.word, "ipv6_addr" if self.v6 else "ipv4_addr"
        lookup = f"{ip} daddr . meta l4proto . th dport vmap"
        contents = f"type {kind} . inet_proto . inet_service : verdict;"
        cidr = SERVICE_CIDR6 if self.v6 else SERVICE_CIDR
        spared = "" if self.v6 else f"ip daddr {DNS_IP} return"
        return f"""
table {self.table} {{
  set hairpins {{ type {kind} . {kind}; }}
  map services {{ {contents} }}
  map refused {{ {contents} }}
  chain refuse {{ meta l4proto tcp reject with tcp reset; reject; }}
  chain unserved {{
    {spared}
    {lookup} @refused
    {ip} daddr {cidr} goto refuse
  }}
  chain prerouting {{ type nat hook prerouting priority dstnat; {lookup} @services; }}
  chain output {{ type nat hook output priority -100; {lookup} @services; }}
  chain postrouting {{
    type nat hook postrouting priority srcnat
    ct mark {_HIDE} masquerade
    {ip} saddr . {ip} daddr @hairpins masquerade
  }}
  chain forward {{ type filter hook forward priority filter; jump unserved; }}
  chain own {{ type filter hook output priority filter; jump unserved; }}{"" if self.v6 else _DNS_CHAINS}
}}
"""


V4, V6 = Family(False), Family(True)


@dataclass(frozen=True, slots=True)
class Contents:
    """One state of a table: its elements, and the chains that choose an endpoint, by name."""

    elements: tuple[tuple[str, tuple[str, ...]], ...]
    chains: tuple[tuple[str, str], ...]


def contents(found: Sequence[Frontend], generation: int) -> Contents:
    """What the table should hold. Chains of different generations never share a name."""
    chains, services, refused = [], [], []
    for number, front in enumerate(found):
        key = f"{front.ip} . {front.protocol} . {front.port}"
        if not front.endpoints:
            refused.append(f"{key} : goto refuse")
            continue
        name = f"svc{generation}_{number}"
        for index, (ip, port) in enumerate(front.endpoints):
            where = f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
            chains.append((f"{name}_{index}", f"meta l4proto {front.protocol} dnat to {where}"))
        branches = (f"{index} : goto {name}_{index}" for index in range(len(front.endpoints)))
        pick = f"numgen random mod {len(front.endpoints)} vmap {{ {', '.join(branches)} }}"
        mark = f"ct mark set {_HIDE} " if front.masquerade else ""
        chains.append((name, mark + pick))
        services.append(f"{key} : goto {name}")
    pods = sorted({ip for front in found for ip, _ in front.endpoints})
    hairpins = tuple(f"{ip} . {ip}" for ip in pods)
    named = (("services", tuple(services)), ("refused", tuple(refused)), ("hairpins", hairpins))
    return Contents(named, tuple(chains))


def change(table: str, old: Contents, new: Contents) -> str:
    """The one transaction for `nft -f -` that leads from `old` to `new`."""
    lines = [f"add chain {table} {name}" for name, _ in new.chains]
    lines += [f"add rule {table} {name} {rule}" for name, rule in new.chains]
    for name, elements in new.elements:
        kind = "set" if name == "hairpins" else "map"
        lines.append(f"flush {kind} {table} {name}")
        if elements:
            lines.append(f"add element {table} {name} {{ {', '.join(elements)} }}")
    # The last first: a Service's chain refers to those of its endpoints, which come before it.
    lines += [f"flush chain {table} {name}" for name, _ in reversed(old.chains)]
    lines += [f"delete chain {table} {name}" for name, _ in reversed(old.chains)]
    return "\n".join(lines) + "\n"


def host_ports(pods: Iterable[Object]) -> list[Frontend]:
    """The `hostPort`s of the pods that have an address and have not ended, the oldest pod's first."""
    found: dict[tuple[str, str, int], Frontend] = {}
    for pod in sorted(pods, key=lambda one: str(one["metadata"].get("creationTimestamp", ""))):
        if dig(pod, "status", "phase") in ("Succeeded", "Failed") or pod["spec"].get("hostNetwork"):
            continue
        listed = [p for one in pod["spec"]["containers"] for p in one.get("ports") or ()]
        for port in (one for one in listed if "hostPort" in one):
            protocol, number = port.get("protocol", "TCP").lower(), port["hostPort"]
            for ip in (NODE_IP, NODE_IP6):
                if port.get("hostIP") not in (None, "", "0.0.0.0", "::", ip):
                    continue
                own = [a for a in pod_addresses(pod) if (":" in a) == (":" in ip)]
                ends = tuple((a, port["containerPort"]) for a in own[:1])
                front = Frontend(ip, protocol, number, ends)
                if ends:
                    found.setdefault((ip, protocol, number), front)
    return list(found.values())


class ServiceProxy:
    """Keeps the node's table in step with the Services and their endpoints, and with host ports."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._found: list[Frontend] = []
        self._loaded = {family: Contents((), ()) for family in (V4, V6)}
        self._generation = 0

    async def start(self) -> None:
        self._store.listen(self._hear)
        await tools.run("nft", "-f", "-", feed=V4.base + V6.base)
        await self._load()
        self._task = spawn(self._run(), name="service-proxy")

    async def stop(self) -> None:
        await stop(self._task)

    def _hear(self, event: Event) -> None:
        if event.key in (resources.SERVICES.key, resources.SLICES.key, resources.PODS.key):
            self._changed.set()

    async def _run(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._load()

    async def _load(self) -> None:
        services = self._store.select(resources.SERVICES.key)
        found = frontends(services, self._store.select(resources.SLICES.key))
        taken = {(front.ip, front.protocol, front.port) for front in found}
        for front in host_ports(self._store.select(resources.PODS.key)):
            if (front.ip, front.protocol, front.port) not in taken:
                found.append(front)
        if found == self._found:
            return
        self._generation += 1
        new, feed = {}, ""
        for family, old in self._loaded.items():
            own = [front for front in found if (":" in front.ip) == family.v6]
            new[family] = contents(own, self._generation)
            feed += change(family.table, old, new[family])
        await tools.run("nft", "-f", "-", feed=feed)
        self._found, self._loaded = found, new
