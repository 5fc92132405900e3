"""ClusterIPs, as kube-proxy does them: one nft table, replaced as a whole when endpoints change.

`ruleset` is pure: Services and EndpointSlices in, the text for `nft -f -` out.
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


def ruleset(found: Sequence[Frontend]) -> str:
    """The whole table. Replacing it in one transaction leaves running connections alone."""
    chains, services, refused = [], [], []
    pods = sorted({ip for f in found for ip, _ in f.endpoints})
    for number, front in enumerate(found):
        key = f"{front.ip} . {front.protocol} . {front.port}"
        if not front.endpoints:
            refused.append(f"{key} : goto refuse")
            continue
        services.append(f"{key} : goto svc{number}")
        branches = []
        for index, (ip, port) in enumerate(front.endpoints):
            branches.append(f"{index} : goto svc{number}_{index}")
            target = f"meta l4proto {front.protocol} dnat to {ip}:{port}"
            chains.append(f"chain svc{number}_{index} {{ {target}; }}")
        pick = f"numgen random mod {len(front.endpoints)} vmap {{ {', '.join(branches)} }}"
        chains.append(f"chain svc{number} {{ {pick}; }}")
    hairpins = [f"{ip} . {ip}" for ip in pods]
    lookup = "ip daddr . meta l4proto . th dport vmap"
    kind = "type ipv4_addr . inet_proto . inet_service : verdict"
    lines = [
        "table ip podlink_services {}",
        "delete table ip podlink_services",
        "table ip podlink_services {",
        f"set hairpins {{ type ipv4_addr . ipv4_addr; {_elements(hairpins)} }}",
        *chains,
        "chain refuse { meta l4proto tcp reject with tcp reset; reject; }",
        f"map services {{ {kind}; {_elements(services)} }}",
        f"map refused {{ {kind}; {_elements(refused)} }}",
        "chain prerouting { type nat hook prerouting priority dstnat; " + lookup + " @services; }",
        "chain output { type nat hook output priority -100; " + lookup + " @services; }",
        "chain postrouting { type nat hook postrouting priority srcnat;"
        " ip saddr . ip daddr @hairpins masquerade; }",
        f"chain unserved {{ ip daddr {DNS_IP} return; {lookup} @refused;"
        f" ip daddr {SERVICE_CIDR} goto refuse; }}",
        "chain forward { type filter hook forward priority filter; jump unserved; }",
        "chain own { type filter hook output priority filter; jump unserved; }",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _elements(items: Sequence[str]) -> str:
    return f"elements = {{ {', '.join(items)} }};" if items else ""


class ServiceProxy:
    """Keeps the node's table in step with the Services and their endpoints."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._loaded = ""

    async def start(self) -> None:
        self._store.listen(self._hear)
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
        text = ruleset(frontends(services, self._store.select(resources.SLICES.key)))
        if text != self._loaded:
            await tools.run("nft", "-f", "-", feed=text)
            self._loaded = text
