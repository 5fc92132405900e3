"""The ranges that pods' addresses come from, as nodes tell (`spec.podCIDRs`). Pure.

An address in one of them that no known pod has is not external: it is a new pod's, of which the kubelet
has not told yet, or nobody's. But a node has such ranges also where the network plugin gives addresses
from elsewhere, and they may then be any network's: so they count only once a pod is seen in one of them.
"""

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network
_Place = tuple[int, int, int]
"""Version, length of the prefix, and the prefix as a number."""


class Addresses:
    """Addresses in order, each as often as it was added: what lies in a range is found without looking
    at the others.
    """

    def __init__(self) -> None:
        self._numbers: dict[int, list[int]] = {4: [], 6: []}

    def change(self, ip: str, present: bool) -> None:
        address = ip_address(ip)
        numbers, number = self._numbers[address.version], int(address)
        if present:
            insort(numbers, number)
        else:
            del numbers[bisect_left(numbers, number)]

    def count(self, network: Network) -> int:
        first, last = self._ends(network)
        return last - first

    def within(self, network: Network) -> set[str]:
        first, last = self._ends(network)
        make = IPv4Address if network.version == 4 else IPv6Address
        return {str(make(number)) for number in self._numbers[network.version][first:last]}

    def _ends(self, network: Network) -> tuple[int, int]:
        numbers = self._numbers[network.version]
        first, last = int(network.network_address), int(network.broadcast_address)
        return bisect_left(numbers, first), bisect_right(numbers, last)


class PodRanges:
    """The ranges of all nodes, and whether pods' addresses are seen in them."""

    def __init__(self) -> None:
        self._networks: Counter[Network] = Counter()
        self._places: set[_Place] = set()
        self._lengths: Counter[tuple[int, int]] = Counter()
        self._pods = Addresses()
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
        return self.in_use and self.with_address(ip) > 0

    def with_address(self, ip: str) -> int:
        """How many ranges the address lies in."""
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
        self._inside += step * self._pods.count(network)
        return True

    def place_pod(self, ip: str, present: bool) -> None:
        """A pod has the address, or has it no longer."""
        self._pods.change(ip, present)
        self._inside += self.with_address(ip) * (1 if present else -1)
