"""How a peer's address is handed through the kernel to the app. Pure.

The proxy has no capability, so it cannot connect from an address that is not its own. It binds to a
**stand-in** instead: an address of a range that capture made local (`sidecar.capture.routes`) and that
encodes the peer's. One chain of our nft table, made while capture had NET_ADMIN, gives the connection
its real source on the way to the app (`sidecar.capture.plan`), and connection tracking turns the app's
answers back.

IPv4: the stand-in range has 26 bits. The other six travel as the DSCP of the connection's first
packet, which anybody may set (IP_TOS, ip(7)) and which never leaves the pod:

    10.244.3.9  =  000010 | 10.11110100.00000011.00001001
                    DSCP    248.0.0.0/6 + these 26 bits    ->  250.244.3.9, DSCP 2 ^ 2 = 0

The DSCP is XORed with that of 10.0.0.0/8, so that the commonest peers need none.
IPv6: global unicast (2000::/3) and unique local addresses (fc00::/7) fit whole into a part of the
address space that IANA has given to nobody, 4000::/2 (RFC 4291, section 2.4).
"""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, NamedTuple

from kit.contract import STAND_INS

_RANGE4, _RANGE6 = IPv4Network(STAND_INS[4]), IPv6Network(STAND_INS[6])
RANGES: Final[dict[int, IPv4Network | IPv6Network]] = {4: _RANGE4, 6: _RANGE6}
"""By IP version: what is made local to the pod."""
PREFIXES6: Final = {
    IPv6Network("4000::/3"): IPv6Network("2000::/3"),
    IPv6Network("7c00::/7"): IPv6Network("fc00::/7"),
}
"""Stand-ins, and the addresses they stand for."""
EXAMPLES: Final = {4: "198.51.100.7", 6: "2001:db8:6::7"}
"""Addresses that nobody has (RFC 5737, RFC 3849), to prove the way by."""
_LOW_BITS: Final = 26
_MASK: Final = (1 << _LOW_BITS) - 1
_COMMON: Final = int(IPv4Address("10.0.0.0")) >> _LOW_BITS
_MULTICAST: Final = IPv4Network("224.0.0.0/4")
_TOS_SHIFT: Final = 2
"""The DSCP is the upper six bits of the TOS octet (RFC 2474, section 3)."""
_KEPT: Final = 4096
_WIDEST: Final = {4: 4, 6: 2}


class Source(NamedTuple):
    """What a connection to the app is bound to so that the app sees somebody else's address."""

    ip: str
    """The stand-in."""
    tos: int
    """The TOS octet of its first packet."""
    port: int = 0
    """To be seen, too, if it is free; 0 for any."""


@lru_cache(_KEPT)
def stand_in(ip: str) -> Source | None:
    """For an address in canonical text; None for one that no other pod or host can have, or that has
    no stand-in: loopback, link-local of IPv6, multicast, unspecified, the stand-ins themselves."""
    address = ip_address(ip)
    if address.is_loopback or address.is_multicast or address.is_unspecified:
        return None
    if isinstance(address, IPv4Address):
        return _stand_in4(address)
    return _stand_in6(address)


def _stand_in4(address: IPv4Address) -> Source | None:
    if address in _RANGE4 or int(address) >> 24 == 0 or int(address) == 0xFFFF_FFFF:
        return None
    low, high = int(address) & _MASK, int(address) >> _LOW_BITS
    bound = IPv4Address(int(_RANGE4.network_address) | low)
    return Source(str(bound), (high ^ _COMMON) << _TOS_SHIFT)


def _stand_in6(address: IPv6Address) -> Source | None:
    for standing, real in PREFIXES6.items():
        if address in real:
            host = int(address) & int(real.hostmask)
            return Source(str(IPv6Address(int(standing.network_address) | host)), 0)
    return None


def prefixes4() -> list[tuple[int, IPv4Network]]:
    """DSCP, and the addresses that 248.0.0.0/6 stands for under it. The private ranges come first:
    rules are tried in order."""
    found = []
    for high in range(1 << (32 - _LOW_BITS)):
        network = IPv4Network((high << _LOW_BITS, 32 - _LOW_BITS))
        if network != _RANGE4 and not network.overlaps(_MULTICAST):
            found.append((high ^ _COMMON, network))
    return sorted(found, key=lambda pair: (_rank(pair[1]), pair[1]))


_PRIVATE: Final = (
    IPv4Network("10.0.0.0/8"),
    IPv4Network("172.16.0.0/12"),
    IPv4Network("192.168.0.0/16"),
    IPv4Network("100.64.0.0/10"),
)


def _rank(network: IPv4Network) -> int:
    ranks = (rank for rank, private in enumerate(_PRIVATE) if private.overlaps(network))
    return next(ranks, len(_PRIVATE))


def in_the_way(networks: Iterable[IPv4Network | IPv6Network]) -> IPv4Network | IPv6Network | None:
    """The first of what somebody uses that holds addresses meant for stand-ins, if any does: there
    the ranges must not be made local. Networks wider than a stand-in's could only mean "everything"."""
    for network in networks:
        if network.prefixlen < _WIDEST[network.version]:
            continue
        if any(
            network.overlaps(one) for one in (_RANGE4, _RANGE6) if one.version == network.version
        ):
            return network
    return None
