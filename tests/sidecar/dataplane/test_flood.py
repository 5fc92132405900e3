"""A peer with a valid leaf that does nothing but shake hands, and what the others' links feel of it.

`make soak`; the figures are in docs/limits.md, no time is asserted.
"""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.certs.forge import Forge
from tests.patience import PATIENCE_S
from tests.sidecar.dataplane.conftest import WEB, StartPair, connected
from tests.sidecar.dataplane.test_faults import _patient
from tests.sidecar.dataplane.test_memory import ROOT, far_process

Serve = Any
SECONDS = 10.0
FLOODER = """
import json, socket, ssl, sys, time
told = json.loads(sys.stdin.readline())
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.set_alpn_protocols(["podlink/1"])
context.load_cert_chain(told["pair"])
done = refused = 0
ends = time.monotonic() + told["seconds"]
while time.monotonic() < ends:
    try:
        with socket.create_connection(("127.0.0.1", told["port"]), 5, ("127.0.0.2", 0)) as sock:
            with context.wrap_socket(sock) as tls:
                done += 1
    except OSError:
        refused += 1
print(json.dumps({"done": done, "refused": refused}))
"""


async def round_trips(pair: Any, seconds: float) -> list[float]:
    """Milliseconds of each of 100 small exchanges a second, on a link that is open."""
    reader, writer = await connected(pair.upstream, b"hello")
    assert await reader.readexactly(5) == b"hello"
    took, ends = [], time.monotonic() + seconds
    while time.monotonic() < ends:
        began = time.monotonic()
        writer.write(b"hello")
        assert await asyncio.wait_for(reader.readexactly(5), PATIENCE_S) == b"hello"
        took.append(1000 * (time.monotonic() - began))
        await asyncio.sleep(0.01)
    writer.close()
    return sorted(took)


async def flood(port: int, pem: Path) -> "asyncio.Task[list[Any]]":
    """Three processes that shake hands with whoever listens there; the task has what they counted."""
    told = {"pair": str(pem), "port": port, "seconds": SECONDS + 2}
    flooders = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            FLOODER,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        for _ in range(3)
    ]
    line = json.dumps(told).encode() + b"\n"

    async def counted() -> list[Any]:
        return [json.loads((await one.communicate(line))[0]) for one in flooders]

    for one in flooders:
        assert one.stdin is not None
        one.stdin.write(line)
    line = b""
    return asyncio.ensure_future(counted())


@pytest.mark.soak
@pytest.mark.attack_row(23)
async def test_open_links_work_on_while_a_peer_floods_handshakes(
    start_pair: StartPair, serve: Serve, forge: Forge, tmp_path: Path
) -> None:
    """Measured three times: in quiet, while the same flood hits another proxy of this machine (so the
    flooders take their CPU and no more), and while it hits this one."""
    pair, pem = start_pair(await serve(_patient)), tmp_path / "pair.pem"
    key_pem, chain_pem = forge.leaf(str(WEB), ips=["127.0.0.2"])
    pem.write_bytes(key_pem + chain_pem)
    localhost = {"PODLINK_MODE": "localhost"}
    async with far_process(forge, **localhost) as far, far_process(forge, **localhost) as other:
        pair.near.plane.tunnel_port = far.port
        lines, counted = [], []
        for what, target in (("quiet", 0), ("another flooded", other.port), ("flooded", far.port)):
            flooding = await flood(target, pem) if target else None
            await asyncio.sleep(1)
            took = await round_trips(pair, SECONDS)
            assert len(took) > 20
            lines.append(f"{what} {took[len(took) // 2]:.1f}/{took[int(0.99 * len(took))]:.1f} ms")
            if flooding is not None:
                said = await flooding
                counted.append({name: sum(one[name] for one in said) for name in said[0]})
        turned_away = (await far.state())["turned_away"]
        pair.near.plane.pool.drop_all()
    print(f"p50/p99: {', '.join(lines)}; handshakes {counted}, turned away {turned_away}")
    assert counted[1]["done"] > 0


async def flood_frames(kind: str, port: int, pem: Path, seconds: float) -> "asyncio.Task[Any]":
    """A process that floods whoever listens there with frames; the task has what it counted."""
    flooder = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.sidecar.dataplane.frame_flooder",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    told = {"pair": str(pem), "port": port, "seconds": seconds, "kind": kind}

    async def counted() -> Any:
        return json.loads((await flooder.communicate(json.dumps(told).encode() + b"\n"))[0])

    return asyncio.ensure_future(counted())


@pytest.mark.soak
@pytest.mark.attack_row(55)
@pytest.mark.parametrize("kind", ["PING", "a PING each", "GOAWAY", "OPEN", "KeyUpdate"])
async def test_open_links_work_on_while_a_peer_floods_frames(
    kind: str, start_pair: StartPair, serve: Serve, forge: Forge, tmp_path: Path
) -> None:
    """As above, with 32 tunnels that are made again when they are ended. What the flooder itself takes
    of the machine it takes in both floods."""
    pair, pem = start_pair(await serve(_patient)), tmp_path / "pair.pem"
    key_pem, chain_pem = forge.leaf(str(WEB), ips=["127.0.0.2"])
    pem.write_bytes(key_pem + chain_pem)
    localhost = {"PODLINK_MODE": "localhost"}
    async with far_process(forge, **localhost) as far, far_process(forge, **localhost) as other:
        pair.near.plane.tunnel_port = far.port
        p99s, lines, counted = [], [], []
        for what, target in (("quiet", 0), ("another flooded", other.port), ("flooded", far.port)):
            flooding = await flood_frames(kind, target, pem, SECONDS + 2) if target else None
            await asyncio.sleep(1)
            took = await round_trips(pair, SECONDS)
            p99s.append(took[int(0.99 * len(took))])
            lines.append(f"{what} {took[len(took) // 2]:.1f}/{p99s[-1]:.1f} ms")
            if flooding is not None:
                counted.append(await flooding)
        turned_away = (await far.state())["turned_away"]
        pair.near.plane.pool.drop_all()
    print(f"{kind}, p50/p99: {', '.join(lines)}; {counted}, turned away {turned_away}")
    assert counted[1]["tunnels"] > 0
