"""The app sees its caller's own address, whoever calls, and real programs that go by it work."""

from collections.abc import Iterator

import pytest

from tests.e2e.mesh import Mesh
from tests.e2e.objects import pod, serving

pytestmark = [pytest.mark.timeout(120)]


@pytest.fixture(scope="module", autouse=True)
def pods(mesh: Mesh) -> Iterator[None]:
    made = [
        pod("web", serving("whoami", 7001, port_name="who")),
        pod("open-web", serving("whoami", 7001), config={"plaintext": "allow"}),
        pod("own-web", serving("whoami", 7001), config={"source-address": "pod"}),
        pod("busy-web", serving("whoami", 7001), config={"workers": "2"}),
        pod("caller"),
    ]
    mesh.apply(*made)
    yield
    mesh.delete(*made)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", ["web", "busy-web"])
def test_a_peer_is_seen_by_its_own_address(mesh: Mesh, name: str, version: int) -> None:
    for _ in range(4):
        seen = mesh.attempt("mesh/caller", mesh.ip(f"mesh/{name}", version), 7001, "who")["got"]
        assert seen.rpartition(" ")[0] == mesh.ip("mesh/caller", version)
