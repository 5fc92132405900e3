"""Which addresses this pod is known to use: what making a range local would hide from it."""

import ipaddress
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kit.contract import CANARIES
from sidecar.capture.plan import Network

_NAMESERVER = re.compile(r"^\s*nameserver\s+(?P<ip>[0-9A-Fa-f:.]+)", re.MULTILINE)
_IPV4_ROUTES, _IPV6_ROUTES = Path("/proc/net/route"), Path("/proc/net/ipv6_route")
_RESOLVER = Path("/etc/resolv.conf")


def in_use() -> list[Network]:
    """Our own addresses, routes with their gateways, and name servers.

    What cannot be read is left out: a pod without IPv6 has no IPv6 routes.
    """
    found: list[Network] = []
    for text in (*_own(), *_named()):
        with suppress(ValueError):
            found.append(ipaddress.ip_network(text))
    return [*found, *_routes4(_read(_IPV4_ROUTES)), *_routes6(_read(_IPV6_ROUTES))]


def _own() -> Iterator[str]:
    for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(CANARIES[version])  # of a datagram socket: nothing is sent
            yield str(probe.getsockname()[0])


def _named() -> Iterator[str]:
    yield from (found["ip"] for found in _NAMESERVER.finditer(_read(_RESOLVER)))


def _routes4(text: str) -> Iterator[Network]:
    """`/proc/net/route`: addresses in hexadecimal, as the machine has them in memory."""
    for line in text.splitlines()[1:]:
        fields = line.split()
        with suppress(ValueError, IndexError, struct.error):
            destination, gateway, mask = (int(fields[n], 16) for n in (1, 2, 7))
            length = mask.bit_count()
            yield ipaddress.IPv4Network((struct.pack("=I", destination), length), strict=False)
            yield ipaddress.IPv4Network(struct.pack("=I", gateway))


def _routes6(text: str) -> Iterator[Network]:
    """`/proc/net/ipv6_route`: of all tables; those to `lo` are our own doing or the kernel's."""
    for line in text.splitlines():
        fields = line.split()
        with suppress(ValueError, IndexError):
            if fields[-1] == "lo":
                continue
            destination, length, gateway = bytes.fromhex(fields[0]), int(fields[1], 16), fields[4]
            yield ipaddress.IPv6Network((destination, length), strict=False)
            yield ipaddress.IPv6Network(bytes.fromhex(gateway))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
