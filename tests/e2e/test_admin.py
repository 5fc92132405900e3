"""The admin pages of a real proxy, asked as the CLI does and as kubectl does."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cli.exec import ExecFailed, exec_json, exec_lines
from kit.kube import Kube
from tests.e2e.mesh import Mesh
from tests.e2e.objects import MESH, PLAIN
from tests.patience import PATIENCE_S

PATHS = ["/state", "/pool", "/endpoints", "/certificates", "/capture", "/policy", "/links", "/loop"]


@pytest.fixture
async def kube(mesh: Mesh) -> AsyncIterator[Kube]:
    async with await Kube.from_kubeconfig(str(mesh.cluster.kubeconfig)) as running:
        yield running
    await asyncio.sleep(0.25)  # aiohttp closes a TLS transport in a later turn of the loop


async def test_every_page_can_be_read_from_a_laptop(mesh: Mesh, kube: Kube) -> None:
    said: dict[str, Any] = {path: await exec_json(kube, MESH, "client", path) for path in PATHS}
    assert said["/state"]["ready"] is True
    assert said["/state"]["identity"] == f"spiffe://cluster.local/ns/{MESH}/sa/client"
    assert said["/certificates"]["leaf"]["ips"] == sorted(said["/state"]["ips"])
    assert said["/certificates"]["usable"] is True
    assert said["/loop"]["lag_s"] >= 0
    listed = await exec_json(kube, MESH, "client", "/")
    assert set(PATHS) | {"/tap"} == set(listed["paths"])
    for page in said.values():  # no key, no token
        assert "PRIVATE" not in json.dumps(page)


async def test_the_tap_shows_a_link_as_it_ends(mesh: Mesh, kube: Kube) -> None:
    lines = exec_lines(kube, MESH, "client", "/tap")
    waiting = asyncio.ensure_future(anext(aiter(lines)))
    url = f"http://{mesh.ip(f'{PLAIN}/stranger')}:9/"
    try:
        while not waiting.done():  # the tap is not open at once
            await asyncio.to_thread(
                mesh.cluster.exec, f"{MESH}/client", ["curl", "-s", "-m", "2", url]
            )
            await asyncio.wait({waiting}, timeout=0.2)
        link = waiting.result()
        assert (link["direction"], link["original_port"]) == ("outbound", 9)
        assert link["trace_id"]
    finally:
        waiting.cancel()
        await lines.aclose()  # type: ignore[attr-defined]


def test_kubectl_exec_gives_the_same(mesh: Mesh) -> None:
    argv = ["kubectl", "--kubeconfig", str(mesh.cluster.kubeconfig), "-n", MESH, "exec", "client"]
    argv += ["-c", "podlink-proxy", "--", "python", "-m", "sidecar.admin", "/state"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pod"] == f"{MESH}/client"


@pytest.mark.attack_row(41)
def test_the_app_cannot_reach_the_socket(mesh: Mesh) -> None:
    assert mesh.cluster.exec(f"{MESH}/client", ["ls", "/run/podlink"]).returncode != 0
    asked = mesh.cluster.exec(f"{MESH}/client", ["python", "-m", "sidecar.admin", "/state"])
    assert asked.returncode == 1
    assert "the proxy does not answer" in asked.stderr


async def test_what_cannot_be_asked_is_said_in_one_line(mesh: Mesh, kube: Kube) -> None:
    for pod, where, said in (
        ("nobody", MESH, f"there is no pod {MESH}/nobody"),
        ("stranger", PLAIN, "has no container podlink-proxy: it is not meshed"),
    ):
        with pytest.raises(ExecFailed, match=said):
            await exec_json(kube, where, pod, "/state")
    with pytest.raises(ExecFailed, match="/nothing: no such page; / lists them"):
        await exec_json(kube, MESH, "client", "/nothing")
