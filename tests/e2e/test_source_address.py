"""The app sees its caller's own address, whoever calls."""

import asyncio
from collections.abc import Iterator

import pytest

from cli.checks.proxies import check_proxies
from kit.kube import Kube
from local.node.network import NODE_IP
from tests.e2e.mesh import Mesh, until
from tests.e2e.objects import PLAIN, container, pod, serving

_RPC = {"grpc": {"port": 50051, "service": "shop"}, "periodSeconds": 1, "timeoutSeconds": 5}
_PROBED = {"tcpSocket": {"port": 7001}, "periodSeconds": 1}


@pytest.fixture(scope="module", autouse=True)
def pods(mesh: Mesh) -> Iterator[None]:
    made = [
        pod("who", serving("whoami", 7001)),
        pod("who-open", serving("whoami", 7001), config={"plaintext": "allow"}),
        pod("who-pod", serving("whoami", 7001), config={"source-address": "pod"}),
        pod("who-busy", serving("whoami", 7001), config={"workers": "2"}),
        pod("who-probed", container(_words("whoami", 7001), readinessProbe=_PROBED)),
        pod(
            "who-loopback",
            serving("whoami", 7001, "127.0.0.1"),
            config={"expose-loopback-ports": "7001"},
        ),
        pod("who-rpc", container(_words("grpc-health", 50051), readinessProbe=_RPC)),
        pod("who-broken", serving("whoami", 7001)),
        pod("who-calls"),
    ]
    mesh.apply(*made)
    yield
    mesh.delete(*made)


def _words(*words: object) -> list[str]:
    return ["python", "-m", "tests.e2e.apps", *map(str, words)]


def seen(mesh: Mesh, caller: str, ip: str) -> str:
    """Which address the app at `ip` says that `caller` has."""
    done = mesh.attempt(caller, ip, 7001, "who?")
    assert done["got"], done
    return str(done["got"]).split()[0]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", ["mesh/who", "mesh/who-busy"])
def test_a_peer_is_seen_by_its_own_address(mesh: Mesh, name: str, version: int) -> None:
    for _ in range(4):  # the first by a new tunnel, the others by that one
        assert seen(mesh, "mesh/who-calls", mesh.ip(name, version)) == mesh.ip(
            "mesh/who-calls", version
        )


@pytest.mark.parametrize("version", [4, 6])
def test_a_plaintext_caller_is_seen_as_without_podlink(mesh: Mesh, version: int) -> None:
    ip = mesh.ip("mesh/who-open", version)
    assert seen(mesh, f"{PLAIN}/stranger", ip) == mesh.ip(f"{PLAIN}/stranger", version)
    code = (
        "import socket; s = socket.create_connection(('%s', 7001)); s.sendall(b'?');"
        "print(s.getsockname()[1], s.recv(99).decode())"
    )
    port, _, shown = mesh.run(f"{PLAIN}/stranger", "python", "-c", code % ip).split()
    assert shown == port, "the caller's own port"


def test_a_pod_may_ask_for_its_own_address_instead(mesh: Mesh) -> None:
    ip = mesh.ip("mesh/who-pod")
    assert seen(mesh, "mesh/who-calls", ip) == ip


@pytest.mark.parametrize("name", ["mesh/who-probed", "mesh/who-rpc"])
def test_a_probe_comes_from_the_node(mesh: Mesh, name: str) -> None:
    def probed() -> set[str]:
        lines = (line.split() for line in mesh.seen(name))
        return {words[1] for words in lines if words[0] == "caller"}

    assert until(probed, "a probe was seen") == {NODE_IP}
    said = mesh.admin(name, "/capture")["source_address"]
    assert said["wanted"] and said["proven"] == [4, 6] and not said["why_not"]


def test_who_listens_on_loopback_sees_loopback(mesh: Mesh) -> None:
    assert seen(mesh, "mesh/who-calls", mesh.ip("mesh/who-loopback")) == "127.0.0.1"


def test_an_app_that_calls_itself_sees_itself(mesh: Mesh) -> None:
    ip = mesh.ip("mesh/who")
    assert seen(mesh, "mesh/who", ip) == ip


async def test_where_it_stops_working_the_app_sees_its_pod_and_the_check_says_so(
    mesh: Mesh,
) -> None:
    """Somebody empties the chain: what is not translated is dropped, until the proxy's test sees it."""
    name, ip = "mesh/who-broken", mesh.ip("mesh/who-broken")
    inside = ("nsenter", f"--net=/proc/{mesh.proxy_pid(name)}/ns/net", "nft")
    await asyncio.to_thread(mesh.node, *inside, "flush chain inet podlink shown4")

    def noticed() -> dict[str, str]:
        page: dict[str, dict[str, str]] = mesh.admin(name, "/capture")["source_address"]
        return page["why_not"]

    why = await asyncio.to_thread(until, noticed, "the proxy has noticed")
    assert set(why) == {"4"} and "gets no answer" in why["4"]
    assert await asyncio.to_thread(seen, mesh, "mesh/who-calls", ip) == ip
    async with await Kube.from_kubeconfig(str(mesh.cluster.kubeconfig)) as kube:
        found = [o for o in await check_proxies(kube, "mesh") if o.id == "proxy-source-address"]
    await asyncio.sleep(0.25)  # aiohttp closes a TLS transport in a later turn of the loop
    (one,) = found
    assert one.state == "warn" and name in one.said and "gets no answer" in one.said
