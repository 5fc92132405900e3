"""Reads what SO_ORIGINAL_DST returns: a sockaddr of the destination before redirection.

(linux/netfilter_ipv4.h, linux/netfilter_ipv6/ip6_tables.h; the socket module does not name the
option.)
"""

import ipaddress
import struct

SO_ORIGINAL_DST = 80
SOCKADDR_IN_SIZE = 16
SOCKADDR_IN6_SIZE = 28
_AF_INET, _AF_INET6 = 2, 10
_IN = struct.Struct("=H2s4s8x")
_IN6 = struct.Struct("=H2s4x16s4x")


def parse_sockaddr(raw: bytes) -> tuple[str, int]:
    """(IP in canonical text, port); raises ValueError for anything but an IPv4 or IPv6 sockaddr.

    An IPv4-mapped IPv6 address comes back as the IPv4 address it stands for.
    """
    if len(raw) == SOCKADDR_IN_SIZE:
        family, port, address = _IN.unpack(raw)
        if family == _AF_INET:
            return ".".join(map(str, address)), port[0] << 8 | port[1]
    elif len(raw) == SOCKADDR_IN6_SIZE:
        family, port, address = _IN6.unpack(raw)
        if family == _AF_INET6:
            ip = ipaddress.IPv6Address(address)
            return str(ip.ipv4_mapped or ip), port[0] << 8 | port[1]
    raise ValueError(f"no sockaddr of IPv4 or IPv6: {len(raw)} bytes")
