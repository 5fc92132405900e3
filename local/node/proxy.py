"""ClusterIPs, as kube-proxy does them: one nft table, changed in one transaction at a time.

`frontends`, `contents` and `change` are pure: objects in, the text for `nft -f -` out.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kit.tasks import spawn, stop
from local.apiserver import resources
from local.apiserver.store import Event, Store
from local.node import tools
from local.node.network import DNS_IP, SERVICE_CIDR
from local.objects import Object, dig, labels_of, name_of, namespace_of

_SERVICE_NAME = "kubernetes.io/service-name"


@dataclass(frozen=True, slots=True)
class Frontend:
    """One address and port of a Service, and the endpoints behind it, in a fixed order."""

    ip: str
    protocol: str
    port: int
    endpoints: tuple[tuple[str, int], ...]


def frontends(services: Iterable[Object], slices: Sequence[Object]) -> list[Frontend]:
    """Every ClusterIP:port with its usable endpoints: the ready, else the serving ones that end."""
    by_service: dict[tuple[str, str], list[Object]] = {}
    for one in slices:
        owner = namespace_of(one), labels_of(one).get(_SERVICE_NAME, "")
        by_service.setdefault(owner, []).append(one)
    found = []
    for service in services:
        address = dig(service, "spec", "clusterIP", default="None")
        if address in ("None", "", DNS_IP):
            continue
        own = by_service.get((namespace_of(service), name_of(service)), [])
        for port in dig(service, "spec", "ports", default=[]):
            ends = _endpoints(own, port.get("name", ""))
            protocol = port.get("protocol", "TCP").lower()
            found.append(Frontend(address, protocol, port["port"], tuple(ends)))
    return found


def _endpoints(slices: Iterable[Object], port_name: str) -> list[tuple[str, int]]:
    ready: list[tuple[str, int]] = []
    leaving: list[tuple[str, int]] = []
    for one in slices:
        if one.get("addressType") != "IPv4":
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


_TABLE = "ip podlink_services"
_LOOKUP = "ip daddr . meta l4proto . th dport vmap"
_MAP = "type ipv4_addr . inet_proto . inet_service : verdict;"
BASE = f"""
table {_TABLE} {{
  set hairpins {{ type ipv4_addr . ipv4_addr; }}
  map services {{ {_MAP} }}
  map refused {{ {_MAP} }}
  chain refuse {{ meta l4proto tcp reject with tcp reset; reject; }}
  chain unserved {{
    ip daddr {DNS_IP} return
    {_LOOKUP} @refused
    ip daddr {SERVICE_CIDR} goto refuse
  }}
  chain prerouting {{ type nat hook prerouting priority dstnat; {_LOOKUP} @services; }}
  chain output {{ type nat hook output priority -100; {_LOOKUP} @services; }}
  chain postrouting {{
    type nat hook postrouting priority srcnat
    ip saddr . ip daddr @hairpins masquerade
  }}
  chain forward {{ type filter hook forward priority filter; jump unserved; }}
  chain queries {{
    type filter hook prerouting priority raw
    ip daddr {DNS_IP} udp dport 53 notrack
  }}
  chain answers {{
    type filter hook output priority raw
    ip saddr {DNS_IP} udp sport 53 notrack
  }}
  chain own {{ type filter hook output priority filter; jump unserved; }}
}}
"""
"""What stays for good. The hooked chains are never replaced: a connection whose first packet came
between the old ones and the new would go untranslated for its whole life."""


@dataclass(frozen=True, slots=True)
class Contents:
    """One state of the table: its elements, and the chains that choose an endpoint, by name."""

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
        services.append(f"{key} : goto {name}")
        for index, (ip, port) in enumerate(front.endpoints):
            rule = f"meta l4proto {front.protocol} dnat to {ip}:{port}"
            chains.append((f"{name}_{index}", rule))
        branches = (f"{index} : goto {name}_{index}" for index in range(len(front.endpoints)))
        pick = f"numgen random mod {len(front.endpoints)} vmap {{ {', '.join(branches)} }}"
        chains.append((name, pick))
    pods = sorted({ip for front in found for ip, _ in front.endpoints})
    hairpins = tuple(f"{ip} . {ip}" for ip in pods)
    named = (("services", tuple(services)), ("refused", tuple(refused)), ("hairpins", hairpins))
    return Contents(named, tuple(chains))


def change(old: Contents, new: Contents) -> str:
    """The one transaction for `nft -f -` that leads from `old` to `new`."""
    lines = [f"add chain {_TABLE} {name}" for name, _ in new.chains]
    lines += [f"add rule {_TABLE} {name} {rule}" for name, rule in new.chains]
    for name, elements in new.elements:
        kind = "set" if name == "hairpins" else "map"
        lines.append(f"flush {kind} {_TABLE} {name}")
        if elements:
            lines.append(f"add element {_TABLE} {name} {{ {', '.join(elements)} }}")
    # The last first: a Service's chain refers to those of its endpoints, which come before it.
    lines += [f"flush chain {_TABLE} {name}" for name, _ in reversed(old.chains)]
    lines += [f"delete chain {_TABLE} {name}" for name, _ in reversed(old.chains)]
    return "\n".join(lines) + "\n"


class ServiceProxy:
    """Keeps the node's table in step with the Services and their endpoints."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._found: list[Frontend] = []
        self._loaded = Contents((), ())
        self._generation = 0

    async def start(self) -> None:
        self._store.listen(self._hear)
        await tools.run("nft", "-f", "-", feed=BASE)
        await self._load()
        self._task = spawn(self._run(), name="service-proxy")

    async def stop(self) -> None:
        await stop(self._task)

    def _hear(self, event: Event) -> None:
        if event.key in (resources.SERVICES.key, resources.SLICES.key):
            self._changed.set()

    async def _run(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._load()

    async def _load(self) -> None:
        services = self._store.select(resources.SERVICES.key)
        found = frontends(services, self._store.select(resources.SLICES.key))
        if found != self._found:
            new = contents(found, self._generation + 1)
            await tools.run("nft", "-f", "-", feed=change(self._loaded, new))
            self._found, self._loaded = found, new
            self._generation += 1
