"""How a proxy ends: once the links have, or sooner if it is told so."""

import asyncio

import pytest

from kit.settings import Settings
from sidecar.carrier import Carrier
from sidecar.config import SidecarConfig
from tests.patience import PATIENCE_S
from tests.sidecar.dataplane.conftest import FakeDirectory
from tests.sidecar.test_config import GOOD


def carrier(**changes: str) -> Carrier:
    config = SidecarConfig.from_settings(Settings({**GOOD, **changes}))
    return Carrier(asyncio.get_running_loop(), config, FakeDirectory(), lambda record: None)


@pytest.mark.fault_row("drain")
async def test_a_native_sidecar_without_links_ends_at_once() -> None:
    it = carrier()
    await asyncio.wait_for(it.drain(asyncio.Event()), PATIENCE_S)
    assert it.plane.draining
    it.close()


@pytest.mark.fault_row("drain")
async def test_a_plain_container_waits_for_the_apps_last_calls_unless_it_is_hurried() -> None:
    it, hurry = carrier(PODLINK_DRAIN_LINGER="1h"), asyncio.Event()
    draining = asyncio.ensure_future(it.drain(hurry))
    await asyncio.wait({draining}, timeout=0.3)
    assert not draining.done()
    hurry.set()
    await asyncio.wait_for(draining, PATIENCE_S)
    it.close()


@pytest.mark.fault_row("drain")
async def test_the_grace_period_ends_the_wait_whatever_is_open() -> None:
    it = carrier(PODLINK_DRAIN_LINGER="1h", PODLINK_SHUTDOWN_GRACE_PERIOD="200ms")
    await asyncio.wait_for(it.drain(asyncio.Event()), PATIENCE_S)
    it.close()
