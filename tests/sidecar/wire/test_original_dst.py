"""SO_ORIGINAL_DST's answer, as the kernel writes it."""

import ipaddress
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.wire.original_dst import parse_sockaddr

ports = st.integers(0, 65535)


@given(st.ip_addresses(v=4), ports)
def test_an_ipv4_sockaddr_is_read(ip: ipaddress.IPv4Address, port: int) -> None:
    raw = struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + ip.packed + bytes(8)
    assert parse_sockaddr(raw) == (str(ip), port)


@given(st.ip_addresses(v=6), ports)
def test_an_ipv6_sockaddr_is_read(ip: ipaddress.IPv6Address, port: int) -> None:
    head = struct.pack("=H", socket.AF_INET6) + struct.pack("!H", port)
    raw = head + bytes(4) + ip.packed + bytes(4)
    assert parse_sockaddr(raw) == (str(ip.ipv4_mapped or ip), port)


@given(st.binary(max_size=40))
def test_anything_else_is_a_value_error(raw: bytes) -> None:
    try:
        ip, port = parse_sockaddr(raw)
    except ValueError:
        return
    ipaddress.ip_address(ip)
    assert 0 <= port <= 65535


def test_another_family_is_refused() -> None:
    with pytest.raises(ValueError, match="no sockaddr"):
        parse_sockaddr(struct.pack("=H", 1) + bytes(14))
