"""Of a tunnel an app is shown what the peer's leaf, or the registry, vouches for; nothing else."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from certs.trust.identity import WorkloadIdentity
from sidecar.dataplane.links.caller import source_of_tunnel
from sidecar.dataplane.sources import NOT_DIRECT, Sources
from sidecar.directory import EXTERNAL, Found, Workload

SHOP = WorkloadIdentity("cluster.local", "shop", "web")
OTHER = WorkloadIdentity("cluster.local", "shop", "other")
OWN = "10.244.0.5"


@dataclass
class FakePeer:
    ips: frozenset[str]
    identity: WorkloadIdentity = SHOP


@dataclass
class FakeTunnel:
    peer_ip: str
    peer: FakePeer
    links: int = 1
    peer_port: int = 40001

    @property
    def direct(self) -> bool:
        return self.peer_ip in self.peer.ips


@dataclass
class FakePlane:
    """Of the plane, what is asked here; the directory knows `found` at every address."""

    found: Found | None = None
    leaves_name_pods: bool = True
    sources: Sources = field(default_factory=lambda: Sources(True, {OWN, "fd44::5"}))

    def __post_init__(self) -> None:
        self.sources.tested(4, "")
        self.sources.tested(6, "")

    @property
    def directory(self) -> "FakePlane":
        return self

    def known(self, _: str) -> Found | None:
        return self.found


def seen(ip: str, *leaf: str, to: str = OWN, links: int = 1, plane: Any = None) -> Any:
    tunnel: Any = FakeTunnel(ip, FakePeer(frozenset(leaf)), links)
    asked: Any = plane or FakePlane()
    return source_of_tunnel(asked, tunnel, to)


def test_an_address_of_the_leaf_is_shown_and_the_port_of_the_first_link_alone() -> None:
    assert seen("10.244.3.9", "10.244.3.9") == ("250.244.3.9", 0, 40001)
    assert seen("10.244.3.9", "10.244.3.9", links=2) == ("250.244.3.9", 0, 0)
    assert seen("fd44::9", "10.244.3.9", "fd44::9", to="fd44::5") == ("7d44::9", 0, 40001)


@pytest.mark.attack_row(54)
def test_a_peer_is_not_shown_at_an_address_that_its_leaf_does_not_name() -> None:
    plane = FakePlane()
    assert seen("10.244.3.10", "10.244.3.9", plane=plane) is None
    assert plane.sources.counts == {NOT_DIRECT: 1}


@pytest.mark.attack_row(54)
@pytest.mark.parametrize(
    ("identity", "is_shown"), [(SHOP, True), (OTHER, False), (None, False)], ids=str
)
def test_where_leaves_name_no_pods_the_registry_must_know_the_identity_there(
    identity: WorkloadIdentity | None, is_shown: bool
) -> None:
    plane = FakePlane(_workload(identity), leaves_name_pods=False)
    assert (seen("10.244.3.9", plane=plane) is not None) == is_shown
    assert seen("10.244.3.9", plane=FakePlane(EXTERNAL, leaves_name_pods=False)) is None
    assert seen("10.244.3.9", plane=FakePlane(None, leaves_name_pods=False)) is None


def _workload(identity: WorkloadIdentity | None) -> Workload:
    return Workload("uid-1", "shop", "web-0", identity, ("10.244.3.9",))


def test_an_app_of_the_other_ip_version_sees_the_peers_address_of_that_version() -> None:
    assert seen("fd44::9", "10.244.3.9", "fd44::9") == ("250.244.3.9", 0, 0)
    assert seen("fd44::9", "fd44::9") is None
    assert seen("fd44::8", "10.244.3.9", "fd44::9") is None, "the leaf is not of who came"


@pytest.mark.parametrize("to", ["127.0.0.1", "::1"])
def test_an_app_on_loopback_is_called_from_loopback(to: str) -> None:
    assert seen("10.244.3.9", "10.244.3.9", "fd44::9", to=to) is None


def test_nothing_is_shown_to_a_pod_that_does_not_want_it() -> None:
    plane = FakePlane(sources=Sources(False))
    assert seen("10.244.3.9", "10.244.3.9", plane=plane) is None
    assert plane.sources.counts == {}
