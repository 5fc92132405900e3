"""How much of the network a pod's `skip-subnets` may leave to nobody's eyes. Pure.

A skip list is for exceptions. So there is a bound on each network, one on all together, and one on the
part of each of the cluster's own networks. The injector asks, the CNI plugin and the capture container
ask again what they can, and the guard asks the same in CEL (`injector/kinds.py`, `injector/cel.py`).
"""

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network

from kit.contract import SHORTEST_SKIPPED_PREFIX

Network = IPv4Network | IPv6Network

LONGEST_COUNTED_PREFIX = {4: 32, 6: 48}
"""By IP version, for the sum: a longer one counts as if it had this length."""
SHARE_BITS = 20
"""In the sum of shares, something smaller than 1/2^20 of a cluster's network counts as that."""
MAX_SHARE = 2**SHARE_BITS // 4
"""Of each of the cluster's networks: a quarter."""


def size(network: Network) -> int:
    """In units of the smallest network that is counted."""
    longest = LONGEST_COUNTED_PREFIX[network.version]
    return int(2 ** (longest - min(network.prefixlen, longest)))


def most(version: int) -> int:
    """What all skipped networks of an IP version may be together, as `size`: one of the widest."""
    return int(2 ** (LONGEST_COUNTED_PREFIX[version] - SHORTEST_SKIPPED_PREFIX[version]))


def too_much(skipped: Iterable[Network]) -> str:
    """Why these are too many addresses; "" if they are not. What stands there twice counts twice."""
    total = {4: 0, 6: 0}
    for network in skipped:
        if network.prefixlen < SHORTEST_SKIPPED_PREFIX[network.version]:
            return f"{network} is too wide"
        total[network.version] += size(network)
    for version, sum_ in total.items():
        if sum_ > most(version):
            widest = SHORTEST_SKIPPED_PREFIX[version]
            return f"together they are more than a /{widest} of IPv{version}"
    return ""


def of_the_cluster(skipped: Iterable[Network], cluster: Iterable[Network]) -> Network | None:
    """The first of the cluster's networks of which more than a quarter is skipped, or all."""
    listed = list(skipped)
    for network in cluster:
        if sum(_share(one, network) for one in listed) > MAX_SHARE:
            return network
    return None


def _share(skipped: Network, network: Network) -> int:
    """How much of `network` it is, in 2^20ths. Of two networks that overlap one holds the other."""
    if skipped.version != network.version or not skipped.overlaps(network):
        return 0
    longer = max(0, skipped.prefixlen - network.prefixlen)
    return int(2 ** (SHARE_BITS - min(longer, SHARE_BITS)))
