"""Makes the ranges of stand-ins local to the pod, by rtnetlink(7).

`ip route add local 248.0.0.0/6 dev lo`, without a program: the image has no iproute2, and neither has
the node on which the CNI plugin runs.
"""

import errno
import os
import socket
import struct
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from sidecar.source_address import RANGES

_NEW, _DELETE = 24, 25  # RTM_NEWROUTE, RTM_DELROUTE (linux/rtnetlink.h)
_REQUEST, _ACK, _REPLACE, _CREATE = 0x1, 0x4, 0x100, 0x400
_ERROR: Final = 2  # NLMSG_ERROR
_TABLE_LOCAL, _PROTOCOL_STATIC, _SCOPE_HOST, _TYPE_LOCAL = 255, 4, 254, 2
_DESTINATION, _OUT_INTERFACE = 1, 4  # RTA_DST, RTA_OIF
_HEADER = struct.Struct("=IHHII")
_ROUTE = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_CODE = struct.Struct("=i")


def make_local(version: int) -> None:
    """The range of that IP version belongs to this network namespace from now on. Raises OSError.

    Twice is as once.
    """
    _ask(_NEW, _REQUEST | _ACK | _CREATE | _REPLACE, RANGES[version])


def give_up(version: int) -> None:
    """The range is as foreign as before; also where it was never ours. Raises OSError."""
    try:
        _ask(_DELETE, _REQUEST | _ACK, RANGES[version])
    except OSError as e:
        if e.errno not in (errno.ESRCH, errno.ENOENT, errno.EAFNOSUPPORT):
            raise


def _ask(kind: int, flags: int, network: IPv4Network | IPv6Network) -> None:
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    body = _ROUTE.pack(
        family, network.prefixlen, 0, 0, _TABLE_LOCAL, _PROTOCOL_STATIC, _SCOPE_HOST, _TYPE_LOCAL, 0
    )
    body += _attribute(_DESTINATION, network.network_address.packed)
    body += _attribute(_OUT_INTERFACE, struct.pack("=I", socket.if_nametoindex("lo")))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(5.0)
        netlink.bind((0, 0))
        netlink.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)
        answer = netlink.recv(4096)
    _, said, _, _, _ = _HEADER.unpack_from(answer)
    code = -_CODE.unpack_from(answer, _HEADER.size)[0] if said == _ERROR else errno.EPROTO
    if code:
        raise OSError(code, f"no local route for {network}: {os.strerror(code)}")


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value  # both are multiples of four
