"""A peer's network swallows everything, both ways, in the middle of links: idle and busy ones.

`make soak`: detection may take half a minute.
"""

import json
from collections.abc import Iterator

import pytest

from tests.e2e.mesh import Mesh, now
from tests.e2e.objects import pod, serving
from tests.e2e.test_choosing import BLACKHOLE

pytestmark = pytest.mark.soak

DETECTED_WITHIN_S = 45.0
"""Half a minute by design (docs/limits.md); the rest is for a busy machine."""
TALK = """
import json, socket, sys, time
with socket.create_connection((sys.argv[1], 7001), timeout=120) as sock:
    sock.sendall(b"hello"); sock.recv(5, socket.MSG_WAITALL)
    print(json.dumps({"open": True}), flush=True)
    try:
        while True:
            if sys.argv[2] == "busy":
                sock.sendall(bytes(1000)); time.sleep(0.05)
                sock.recv(65536)
            else:
                if not sock.recv(1): raise EOFError
    except OSError as e:
        print(json.dumps({"ended": type(e).__name__}), flush=True)
    except EOFError:
        print(json.dumps({"ended": "end"}), flush=True)
"""


@pytest.fixture(scope="module", autouse=True)
def pods(mesh: Mesh) -> Iterator[None]:
    made = [pod("vanishing", serving("echo", 7001))]
    mesh.apply(*made)
    yield
    mesh.delete(*made)


@pytest.mark.fault_row("half-open")
def test_both_an_idle_and_a_busy_link_to_a_peer_that_vanished_end_with_an_error(mesh: Mesh) -> None:
    since, ip = now(), mesh.ip("mesh/vanishing")
    enter = ("nsenter", f"--net=/proc/{mesh.pid('mesh/vanishing')}/ns/net", "nft")
    with (
        mesh.in_pod("mesh/client", "python", "-c", TALK, ip, "idle") as idle,
        mesh.in_pod("mesh/client", "python", "-c", TALK, ip, "busy") as busy,
    ):
        for one in (idle, busy):
            assert json.loads(one.line()) == {"open": True}
        mesh.node(*enter, BLACKHOLE)
        try:
            for one in (busy, idle):
                ended = json.loads(one.line(DETECTED_WITHIN_S))["ended"]
                assert ended == "ConnectionResetError", "an end would pass for a whole answer"
        finally:
            mesh.node(*enter, "delete table inet hole")
    links = mesh.eventually_links(since, 2, source="mesh/client", destination="mesh/vanishing")
    lost = [link for link in links if link["close"] == "lost"]
    assert len(lost) == 2
