"""What an eavesdropper on the node sees of meshed traffic: nothing of what apps say."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.node.network import BRIDGE
from tests.e2e.mesh import Mesh, until
from tests.e2e.objects import PLAIN, container, pod, service, serving

SECRET, POSTCARD = "marker-only-in-the-mesh-7f3a", "marker-in-plaintext-51cd"
# The bridge: whatever goes from one pod to another passes it.
EAVESDROP = "tcpdump -i {} -n -Z root -B 65536 -U -w {} tcp & cat > /dev/null; kill -INT $!; wait"


@pytest.fixture(scope="module", autouse=True)
def servers(mesh: Mesh) -> Iterator[None]:
    redis = ["redis-server", "--port", "6379", "--save", "", "--dir", "/tmp"]
    open_to_all = ["--bind", "*", "-::*", "--protected-mode", "no"]
    made = [
        service("whisper", 7001),
        service("vault", 6379),
        pod("whisper", serving("echo", 7001)),
        pod("vault", container([*redis, *open_to_all], listens=6379)),
        pod("postcards", serving("echo", 7001), where=PLAIN),
    ]
    mesh.apply(*made)
    yield
    mesh.delete(*made)


@pytest.mark.attack_row(1)
def test_no_word_of_a_meshed_link_is_on_the_wire_in_the_clear(mesh: Mesh, tmp_path: Path) -> None:
    redis = ("redis-cli", "-h", "vault")
    caught = tmp_path / "wire.pcap"
    with mesh.on_node("bash", "-c", EAVESDROP.format(BRIDGE, caught)) as eavesdropper:
        while "listening on" not in (line := eavesdropper.line()):
            assert line, "tcpdump ended before it listened"
        for version in (4, 6):
            ip = mesh.ip("mesh/whisper", version)
            mesh.talk("mesh/client", ip, 7001, SECRET)
        mesh.talk("mesh/client", "whisper", 7001, SECRET)
        assert mesh.run("mesh/client", *redis, "set", SECRET, SECRET).strip() == "OK"
        assert mesh.run("mesh/client", *redis, "get", SECRET).strip() == SECRET
        many = f"for i in $(seq 1000); do echo set k$i {SECRET}; done | redis-cli -h vault"
        assert mesh.run("mesh/client", "bash", "-c", many).count("OK") == 1000
        # The control: what the same app says to a pod outside the mesh is there to be read.
        bare = mesh.ip("plain/postcards")
        mesh.talk("mesh/client", bare, 7001, POSTCARD)
        until(lambda: caught.read_bytes().count(POSTCARD.encode()) >= 2, "the control is caught")
        eavesdropper.end_input()
        told = []
        while line := eavesdropper.line():
            told.append(line)
    assert _count(told, "packets dropped by kernel") == 0
    assert _count(told, "packets captured") > 100
    assert caught.read_bytes().count(SECRET.encode()) == 0


def _count(told: list[str], what: str) -> int:
    found = re.search(rf"(\d+) {what}", "\n".join(told))
    assert found is not None, told
    return int(found[1])
