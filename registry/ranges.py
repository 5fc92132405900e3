"""The ranges that pods' addresses come from, as nodes tell (`spec.podCIDRs`). Pure.

An address in one of them that no known pod has is not external: it is a new pod's, of which the kubelet
has not told yet, or nobody's. But a node has such ranges also where the network plugin gives addresses
from elsewhere, and they may then be any network's: so they count only once a pod is seen in one of them.
"""

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address

Network = IPv4Network | IPv6Network
_Place = tuple[int, int, int]
"""Version, length of the prefix, and the prefix as a number."""


class PodRanges:
    """The ranges of all nodes, and whether pods' addresses are seen in them."""

    def __init__(self) -> None:
        self._networks: Counter[Network] = Counter()
        self._places: set[_Place] = set()
        self._lengths: Counter[tuple[int, int]] = Counter()
        self._pods: dict[int, list[int]] = {4: [], 6: []}
        """Addresses of pods as numbers, in order; one that two pods have stands twice."""
        self._inside = 0
        """Pairs of a range and a pod's address in it."""

    @property
    def in_use(self) -> bool:
        return self._inside > 0

    @property
    def networks(self) -> Iterable[Network]:
        return self._networks.keys()

    def covers(self, ip: str) -> bool:
        """Whether the address is of a range, and pods are seen in ranges."""
        return self.in_use and self._ranges_with(ip) > 0

    def _ranges_with(self, ip: str) -> int:
        address = ip_address(ip)
        bits, number = address.max_prefixlen, int(address)
        return sum(
            (version, length, number >> (bits - length)) in self._places
            for version, length in self._lengths
            if version == address.version
        )

    def place_network(self, network: Network, present: bool) -> bool:
        """A node has the range, or has it no longer. Returns whether that changes the set of them."""
        self._networks[network] += 1 if present else -1
        if self._networks[network] != (1 if present else 0):
            return False
        length, step = (network.version, network.prefixlen), 1 if present else -1
        place = *length, int(network.network_address) >> (network.max_prefixlen - length[1])
        self._lengths[length] += step
        if present:
            self._places.add(place)
        else:
            self._places.discard(place)
            del self._networks[network]
        if not self._lengths[length]:
            del self._lengths[length]
        pods = self._pods[network.version]
        first, last = int(network.network_address), int(network.broadcast_address)
        self._inside += step * (bisect_right(pods, last) - bisect_left(pods, first))
        return True

    def place_pod(self, ip: str, present: bool) -> None:
        """A pod has the address, or has it no longer."""
        address = ip_address(ip)
        pods, number = self._pods[address.version], int(address)
        if present:
            insort(pods, number)
        else:
            del pods[bisect_left(pods, number)]
        self._inside += self._ranges_with(ip) * (1 if present else -1)
