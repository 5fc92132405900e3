"""What a sidecar starts with, before anybody has told it anything."""

import asyncio

from kit.contract import OWN_PORTS
from kit.settings import Settings
from policy.rules import NOT_TOLD
from sidecar.app import Sidecar
from sidecar.config import SidecarConfig
from sidecar.telemetry.config import TelemetryConfig
from sidecar.workers.in_process import InProcess
from tests.certs.fake_source import FakeSource
from tests.certs.forge import Forge
from tests.sidecar.test_config import GOOD


async def test_it_lets_nobody_in_and_is_not_ready_before_ca_and_registry_have_spoken() -> None:
    settings = Settings({**GOOD, "PODLINK_UPSTREAMS": "5432=db.prod:5432"})
    sidecar = Sidecar(
        asyncio.get_running_loop(),
        SidecarConfig.from_settings(settings),
        TelemetryConfig.from_settings(settings),
        FakeSource(Forge()),
    )
    carriers = sidecar._carriers
    assert isinstance(carriers, InProcess)
    plane = carriers.carrier.plane
    assert plane.policy == NOT_TOLD
    assert plane.usable_trust() is None
    assert plane.own_ports == OWN_PORTS | {5432}
    well, why = sidecar._ready()
    assert not well
    assert "no certificate from the CA" in why and "no word from the registry" in why
    await sidecar._close()
