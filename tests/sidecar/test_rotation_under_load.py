"""Leaves and roots are replaced under 200 requests a second, and no request fails."""

import asyncio
import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from certs.rotation import Phase
from kit.tasks import spawn, stop
from tests.certs.client.test_ca import until
from tests.certs.running_ca import RunningCa, running_ca
from tests.certs.server.test_rotate import answered, give, phase, status
from tests.patience import PATIENCE_S, slowness
from tests.sidecar.mesh_of_two import Load, Two, two_sidecars

PER_SECOND = 200


async def rotate(ca: RunningCa, number: int, *, wait_for_clocks: bool) -> None:
    """One whole rotation. The last minute before the old root goes is an allowance for clocks, of
    which there is only one here: the short form does not sit it out."""
    old = ca.authority.bundle.roots
    await answered(ca.fake, give(ca.fake, "start", 10 * number, automatic=True))
    await until(lambda: phase(ca) is Phase.SIGNING)
    rotation = ca.server.keeper.keyring.rotation
    assert rotation is not None and rotation.leaves_end is not None
    left = rotation.leaves_end - dt.datetime.now(dt.UTC)
    if not wait_for_clocks:
        await asyncio.sleep(max(0.0, left.total_seconds() - 60))
        force = frozenset({"old_leaves"})
        said = await answered(ca.fake, give(ca.fake, "advance", 10 * number + 1, force=force))
        assert said.startswith("ended")
    await until(lambda: phase(ca) is None, left.total_seconds() + PATIENCE_S)
    assert not set(ca.authority.bundle.roots) & set(old)
    await until(lambda: status(ca.fake)["phase"] == "")  # it is told a moment later


def check(two: Two, load: Load) -> None:
    assert not load.failed, (dict(load.failed), two.why())
    assert load.done == len([r for r in two.records if r.verdict == "allowed"])
    assert all(r.security == "mtls" for r in two.records), "never plaintext"
    assert all(client.renewals >= 2 for client in two.clients), "leaves were replaced as well"


@pytest.mark.fault_row("root-rotation")
async def test_no_request_fails_while_leaves_and_the_root_are_replaced(tmp_path: Path) -> None:
    second = slowness()
    short: Any = {"leaf_ttl_s": 5.0 * second, "stale_s": 1.0 * second, "reread_s": 0.2}
    async with running_ca(tmp_path, **short) as ca, two_sidecars(ca) as two:
        load = Load(two.upstream, PER_SECOND)
        running = spawn(load.run(), name="load")
        try:
            await rotate(ca, 1, wait_for_clocks=False)
            await asyncio.sleep(0.5)
        finally:
            await stop(running)
        check(two, load)
        assert load.done > PER_SECOND


@pytest.mark.soak
@pytest.mark.fault_row("root-rotation")
@pytest.mark.timeout(900)
async def test_no_request_fails_over_three_rotations_with_leaves_of_twenty_seconds(
    tmp_path: Path,
) -> None:
    long: Any = {"leaf_ttl_s": 20.0, "stale_s": 5.0, "reread_s": 1.0}
    async with running_ca(tmp_path, **long) as ca, two_sidecars(ca) as two:
        load = Load(two.upstream, PER_SECOND)
        running = spawn(load.run(), name="load")
        try:
            for number in (1, 2, 3):
                await rotate(ca, number, wait_for_clocks=True)
        finally:
            await stop(running)
        check(two, load)
        print(f"{load.done} requests, none failed")


@pytest.mark.fault_row("control-plane-down")
async def test_a_ca_that_is_gone_is_not_felt_until_a_leaf_ends_and_then_nothing_is_plaintext(
    tmp_path: Path,
) -> None:
    from tests.certs.fake_kube import FakeKube

    fake, second = FakeKube(), slowness()
    async with running_ca(tmp_path, fake, leaf_ttl_s=6.0 * second) as ca:
        address = ca.address
        held = two_sidecars(ca)
        two = await held.__aenter__()
    try:
        load = Load(two.upstream, 50)
        running = spawn(load.run(), name="load")
        ends = min(client.current.deadline for client in two.clients if client.current)
        from kit.clock import monotonic

        # A link that begins in the last moment may be cut by the end itself.
        await asyncio.sleep(max(0.0, ends - monotonic() - 0.7 * second))
        assert not load.failed, "longer than half a leaf's life, and nobody noticed"
        assert load.done > 50
        await until(lambda: all(client.current is None for client in two.clients), PATIENCE_S)
        await stop(running)
        before = len(two.records)
        late = Load(two.upstream, 20)
        running = spawn(late.run(), name="load without certificates")
        await asyncio.sleep(1.0 * second)
        await stop(running)
        assert late.done == late.failed["no answer"] and late.done + late.failed.total() > 5
        new = two.records[before:]
        assert new and all(r.reason == "no_certificate" for r in new)
        assert all(r.security != "plaintext" for r in two.records)
        async with running_ca(tmp_path, fake, leaf_ttl_s=6.0 * second, listen=address):
            # One step of back-off is at most a tenth of a life, and never under a second.
            await until(lambda: all(client.current for client in two.clients))
            again = Load(two.upstream, 50)
            running = spawn(again.run(), name="load again")
            await asyncio.sleep(0.5 * second)
            await stop(running)
            assert again.done > 5 and not again.failed
    finally:
        await held.__aexit__(None, None, None)
