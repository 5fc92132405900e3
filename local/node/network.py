"""The node's network: one bridge, and a link and two addresses for each pod.

Every pod has a /32 and a /128 and reaches everything else through the node, never the next pod
directly (the bridge's ports are isolated). So all traffic passes the node's routing, where
ClusterIPs are translated and translated back, and source addresses stay what they are.
"""

import ipaddress
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from local.apiserver.api import NODE_IP, NODE_IP6, SERVICE_CIDRS
from local.errors import Unusable
from local.node import tools

__all__ = ["NODE_IP", "NODE_IP6", "Address", "Network"]
BRIDGE = "podlink0"
POD_CIDR = ipaddress.IPv4Network("10.244.0.0/24")
POD_CIDR6 = ipaddress.IPv6Network("fd44::/64")
SERVICE_CIDR = str(SERVICE_CIDRS["IPv4"])
SERVICE_CIDR6 = str(SERVICE_CIDRS["IPv6"])
DNS_IP = "10.96.0.10"
"""The cluster's name server, an address of the node itself.

Were it translated like other ClusterIPs, the kernel would now and then drop one of the two queries
(A and AAAA) that a resolver sends at once from one port, and a name would take seconds to resolve
(kubernetes/kubernetes#56903; node-local DNS caches exist for that reason).
"""
assert (str(POD_CIDR[1]), str(POD_CIDR6[1])) == (NODE_IP, NODE_IP6)
_BRIDGE_MAC = "0a:58:0a:f4:00:01"
_SYSCTLS = {
    "ipv4/ip_forward": "1",
    "ipv6/conf/all/forwarding": "1",
    "ipv6/conf/default/accept_dad": "0",
    "ipv6/conf/all/accept_dad": "0",
    "ipv4/conf/all/send_redirects": "0",
    "ipv4/conf/default/send_redirects": "0",
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
}
_BRIDGE_FILTER = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables")


@dataclass(frozen=True, slots=True)
class Address:
    """What a pod is given; `number` is its place in both ranges and the name of its link."""

    number: int

    @property
    def ip(self) -> str:
        return str(POD_CIDR[self.number])

    @property
    def ip6(self) -> str:
        return str(POD_CIDR6[self.number])

    @property
    def link(self) -> str:
        return f"pod{self.number}"


class Network:
    """Hands out addresses and wires pods to the bridge."""

    def __init__(self) -> None:
        # First in, first out: an address rests as long as possible before it means another pod.
        self._free = deque(range(2, POD_CIDR.num_addresses - 1))

    async def start(self) -> None:
        """Make the bridge and the node's routes. The network namespace must be a fresh one."""
        for name, value in _SYSCTLS.items():
            _set(name, value)
        batch = [
            "link set lo up",
            # Without an address of its own a bridge takes the lowest of its ports', and changes it
            # under the pods that have just learnt it when a new pod comes.
            f"link add {BRIDGE} address {_BRIDGE_MAC} type bridge forward_delay 0 mcast_snooping 0",
            f"addr add {NODE_IP}/{POD_CIDR.prefixlen} dev {BRIDGE}",
            f"addr add {NODE_IP6}/{POD_CIDR6.prefixlen} dev {BRIDGE} nodad",
            f"link set {BRIDGE} up",
            # The node's own calls to a ClusterIP need some route before they are translated.
            f"route add {SERVICE_CIDR} dev {BRIDGE} src {NODE_IP}",
            f"route add {SERVICE_CIDR6} dev {BRIDGE} src {NODE_IP6}",
            f"addr add {DNS_IP}/32 dev lo",
        ]
        await tools.run("ip", "-batch", "-", feed="\n".join(batch) + "\n")
        for name in _BRIDGE_FILTER:  # else bridged frames would pass the address rules twice
            _set(f"bridge/{name}", "0", missing_ok=True)

    async def attach(self, pause_pid: int) -> Address:
        """Give the network namespace of `pause_pid` a link and addresses."""
        if not self._free:
            raise Unusable(f"no free pod address in {POD_CIDR}")
        address = Address(self._free.popleft())
        try:
            await self._wire(address, pause_pid)
        except BaseException:
            self._free.append(address.number)
            raise
        return address

    async def _wire(self, address: Address, pause_pid: int) -> None:
        node = [
            f"link add {address.link} type veth peer name eth0 netns {pause_pid}",
            f"link set {address.link} master {BRIDGE} up",
            f"link set {address.link} type bridge_slave isolated on",
        ]
        pod = [
            "link set lo up",
            f"addr add {address.ip}/32 dev eth0",
            f"addr add {address.ip6}/128 dev eth0 nodad",
            "link set eth0 up",
            f"route add default via {NODE_IP} dev eth0 onlink",
            f"route add default via {NODE_IP6} dev eth0 onlink",
        ]
        await tools.run("ip", "-batch", "-", feed="\n".join(node) + "\n")
        enter = ("nsenter", f"--net=/proc/{pause_pid}/ns/net")
        await tools.run(*enter, "ip", "-batch", "-", feed="\n".join(pod) + "\n")

    def release(self, address: Address) -> None:
        """Take the address back. Its link went with the pod's namespace."""
        self._free.append(address.number)


def _set(name: str, value: str, *, missing_ok: bool = False) -> None:
    """Write a network sysctl of this namespace."""
    path = Path(f"/proc/sys/net/{name}")
    if path.exists() or not missing_ok:
        path.write_text(value)
