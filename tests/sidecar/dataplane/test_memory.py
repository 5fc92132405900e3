"""A proxy under a real limit of memory: new links are shed before the kernel ends the process, those
that are open live, and when they have gone new ones are taken again."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sidecar.dataplane.links.outbound import OutboundLink
from tests.certs.forge import Forge
from tests.patience import PATIENCE_S
from tests.sidecar.dataplane.conftest import API, StartPair, connected
from tests.sidecar.dataplane.test_faults import _patient

Serve = Any
ROOT = Path(__file__).resolve().parents[3]
MIB = 1 << 20
ROOM = 14 * MIB
"""What the proxy may take above what it has at rest: some hundred links' worth."""
_CGROUPS = Path("/sys/fs/cgroup/memory")
"""cgroup v1, where the controller is free to be used; on v2 a systemd scope would be needed."""


class Far:
    """The process of tests/sidecar/dataplane/far.py."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process, self.port = process, port

    async def state(self) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(b"\n")
        said: dict[str, Any] = json.loads(
            await asyncio.wait_for(self.process.stdout.readline(), PATIENCE_S)
        )
        return said


@asynccontextmanager
async def far_process(forge: Forge, **settings: str) -> AsyncIterator[Far]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.sidecar.dataplane.far",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdin is not None and process.stdout is not None
    key_pem, chain_pem = forge.leaf(str(API), ips=["127.0.0.1"])
    told = {
        "key": key_pem.decode(),
        "chain": chain_pem.decode(),
        "bundle": forge.root_pem.decode(),
        "settings": settings,
    }
    try:
        process.stdin.write(json.dumps(told).encode() + b"\n")
        said = json.loads(await asyncio.wait_for(process.stdout.readline(), PATIENCE_S))
        yield Far(process, said["port"])
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), PATIENCE_S)
        except TimeoutError:
            process.kill()
            await process.wait()


def hard_limit(pid: int, limit_bytes: int) -> Callable[[], None]:
    """Put the process into a cgroup that the kernel ends it in above the limit; where that is not ours
    to make, give it so much address space and no more. Returns what undoes it."""
    group = _CGROUPS / f"podlink-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        import resource

        resource.prlimit(pid, resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
        return lambda: None
    (group / "cgroup.procs").write_text(str(pid))
    (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
    return group.rmdir


@pytest.mark.fault_row("memory-limit")
async def test_under_a_real_limit_links_are_shed_and_the_process_lives(
    start_pair: StartPair, serve: Serve, forge: Forge
) -> None:
    async with far_process(forge) as resting:
        at_rest = (await resting.state())["used"]
    limit = int((at_rest + ROOM) / 0.85)
    pair = start_pair(await serve(_patient))
    async with (
        AsyncExitStack() as after,
        far_process(forge, PODLINK_MODE="localhost", PODLINK_MEMORY_LIMIT=str(limit)) as far,
    ):
        after.callback(hard_limit(far.process.pid, limit))  # once the process has ended
        pair.near.plane.tunnel_port = far.port
        opened: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        refused = 0
        try:
            while refused < 40:
                assert len(opened) < 5000, "nothing is shed"
                reader, writer = await connected(pair.upstream, b"hello")
                try:
                    assert await asyncio.wait_for(reader.readexactly(5), PATIENCE_S) == b"hello"
                    opened.append((reader, writer))
                except ConnectionResetError:  # at once, and never a silence
                    writer.close()
                    refused += 1
                except asyncio.IncompleteReadError:
                    raise AssertionError("an end would pass for an answer") from None
            state = await far.state()
            assert state["shedding"] and state["turned_away"]["memory"] > 0
            assert state["used"] < limit
            print(f"{len(opened)} links, then shed at {state['used'] >> 10} KiB of {limit >> 10}")
            for reader, writer in opened:
                writer.write(b"still")
                assert await asyncio.wait_for(reader.readexactly(5), PATIENCE_S) == b"still"
            for _, writer in opened:
                writer.close()
            async with asyncio.timeout(PATIENCE_S):
                while pair.near.plane.live:
                    await asyncio.sleep(0.05)
                pair.near.plane.pool.drop_all()
                while (await far.state())["shedding"]:
                    await asyncio.sleep(0.2)
            pair.near.plane.ejections.worked("127.0.0.1", far.port)
            reader, writer = await connected(pair.upstream, b"again")
            assert await asyncio.wait_for(reader.readexactly(5), PATIENCE_S) == b"again"
            writer.close()
        finally:
            for link in list(pair.near.plane.live):
                assert isinstance(link, OutboundLink)
                link.cut(4, "drain")
            pair.near.plane.pool.drop_all()
    assert far.process.returncode == 0
