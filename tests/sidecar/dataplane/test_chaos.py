"""Byte-exact under chaos, and flat: short here, long under `make soak`."""

import asyncio
import ctypes
import gc
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from tests.certs.forge import Forge
from tests.sidecar.dataplane.chaos import Chaos, Rotation
from tests.sidecar.dataplane.conftest import Pair, StartPair
from tests.sidecar.dataplane.test_faults import descriptors

Serve = Any
DURATION_S = float(os.environ.get("DURATION", "600"))
"""How long the long form runs."""


def resident_kib() -> int:
    """What is in use. The bodies of the links lie in this very process and are megabytes: what malloc
    keeps of them is not the plane's."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(ctypes.c_size_t(0))
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return int(rollup.split("Anonymous:")[1].split()[0])


async def level(pair: Pair) -> int:
    """Descriptors once both sides have closed the tunnels that were idle."""
    pair.near.plane.pool.drop_all()
    last = 0
    for _ in range(50):
        await asyncio.sleep(0.1)
        now, last = last, descriptors()
        if now == last:
            break
    return last


async def begin(start_pair: StartPair, serve: Serve, forge: Forge, seed: int, cuts: int) -> Chaos:
    async def app(*streams: Any) -> None:
        await chaos.app(*streams)

    pair = start_pair(await serve(app))
    chaos = Chaos(pair, random.Random(seed), Rotation(pair, forge), cuts)
    return chaos


@pytest.mark.fault_row("soak")
async def test_every_byte_and_every_record_is_right_under_chaos(
    start_pair: StartPair, serve: Serve, forge: Forge
) -> None:
    chaos = await begin(start_pair, serve, forge, seed=2026, cuts=8)
    await chaos.run(120)  # warm: what stays after this is what leaks
    before = await level(chaos.pair)
    await chaos.run(120)
    assert chaos.wrong == [], "\n".join(chaos.wrong)
    assert await level(chaos.pair) <= before + 2
    assert chaos.change_certificates.roots >= 1, "no root was replaced"
    assert not chaos.pair.near.plane.open_links


@pytest.mark.soak
@pytest.mark.timeout(DURATION_S + 300)
async def test_two_thousand_links_at_a_time_for_as_long_as_asked(
    start_pair: StartPair, serve: Serve, forge: Forge
) -> None:
    """`DURATION=600 make soak`: integrity of each link, descriptors, and memory that stops growing."""
    chaos = await begin(start_pair, serve, forge, seed=time.time_ns(), cuts=0)
    ends = time.monotonic() + DURATION_S
    kept: list[int] = []
    open_files: list[int] = []
    while not kept or time.monotonic() < ends:
        chaos.cuts = 70
        await chaos.run(2000)
        assert chaos.wrong == []
        open_files.append(await level(chaos.pair))
        kept.append(resident_kib())
        print(f"{2000 * len(kept)} links: {kept[-1]} KiB anonymous, {open_files[-1]} descriptors")
    if len(kept) >= 6:
        early, late = kept[len(kept) // 3], kept[-1]
        assert late < early * 1.05 + 2048, kept
        assert open_files[-1] <= open_files[0] + 4, open_files
