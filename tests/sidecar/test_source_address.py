"""Every address that a peer may have has one stand-in of its own, and the rules give it back."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.source_address import PREFIXES6, RANGES, in_the_way, prefixes4, stand_in

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
PEERS6 = st.sampled_from([ipaddress.ip_network("2000::/3"), ipaddress.ip_network("fc00::/7")])


def translated(ip: str, tos: int) -> Address:
    """What the rules of `sidecar.capture.plan` make of a stand-in and the DSCP of its packet."""
    address = ipaddress.ip_address(ip)
    if address.version == 4:
        (real,) = (real for dscp, real in prefixes4() if dscp == tos >> 2)
        return ipaddress.IPv4Address(int(real.network_address) | int(address) & int(real.hostmask))
    ((standing, real6),) = ((s, r) for s, r in PREFIXES6.items() if address in s)
    return ipaddress.IPv6Address(int(real6.network_address) | int(address) & int(standing.hostmask))


def may_be_a_peer(address: Address) -> bool:
    return not (
        address.is_loopback
        or address.is_multicast
        or address in RANGES[address.version]
        or (address.version == 4 and (int(address) >> 24 == 0 or int(address) == 0xFFFFFFFF))
    )


@given(st.ip_addresses(v=4))
def test_every_ipv4_address_of_a_host_is_given_back(address: ipaddress.IPv4Address) -> None:
    source = stand_in(str(address))
    if not may_be_a_peer(address):
        assert source is None
        return
    assert source is not None
    assert ipaddress.ip_address(source.ip) in RANGES[4]
    assert source.tos & 0b11 == 0, "the lower two bits are not ours (ECN)"
    assert translated(source.ip, source.tos) == address


@given(PEERS6.flatmap(lambda network: st.ip_addresses(network=network)))
def test_every_ipv6_address_of_a_host_is_given_back(address: ipaddress.IPv6Address) -> None:
    source = stand_in(str(address))
    assert source is not None
    assert ipaddress.ip_address(source.ip) in RANGES[6]
    assert source.tos == 0
    assert translated(source.ip, source.tos) == address


@pytest.mark.attack_row(54)
@pytest.mark.parametrize(
    "ip",
    [
        "127.0.0.1", "127.255.255.255", "0.0.0.0", "0.1.2.3", "224.0.0.1", "239.255.255.255",
        "255.255.255.255", "248.0.0.1", "251.255.255.255", "::", "::1", "fe80::1", "ff02::1",
        "4000::1", "7d44::9", "64:ff9b::1", "::ffff:127.0.0.1",
    ],
)  # fmt: skip
def test_what_no_peer_can_have_is_never_shown(ip: str) -> None:
    assert stand_in(ip) is None


def test_the_commonest_peers_need_no_mark_and_come_first() -> None:
    assert stand_in("10.244.3.9") == ("250.244.3.9", 0, 0)
    firsts = [real for _, real in prefixes4()[:4]]
    for private, real in zip(
        ("10.1.2.3", "172.16.0.1", "192.168.0.1", "100.64.0.1"), firsts, strict=True
    ):
        assert ipaddress.ip_address(private) in real
    assert len({dscp for dscp, _ in prefixes4()}) == len(prefixes4())


@pytest.mark.parametrize(
    ("network", "is_in_the_way"),
    [
        ("248.0.0.0/8", True), ("250.1.1.1/32", True), ("240.0.0.0/4", True),
        ("240.0.0.0/8", False), ("252.0.0.0/6", False), ("10.0.0.0/8", False),
        ("0.0.0.0/0", False), ("4001:db8::/32", True), ("7fff::/16", True),
        ("fd00::/8", False), ("2000::/3", False), ("::/0", False),
    ],
)  # fmt: skip
def test_whoever_uses_addresses_of_stand_ins_is_noticed(network: str, is_in_the_way: bool) -> None:
    found = in_the_way([ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network(network)])
    assert (str(found) == network) if is_in_the_way else found is None
