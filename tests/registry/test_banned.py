"""The registry refuses a banned sidecar and ends its stream, as every other peer does."""

import asyncio
from typing import Any

import pytest

from certs.trust.bans import Ban, Bans
from registry.service import RegistryService
from tests.certs.forge import DEFAULT, Forge
from tests.certs.trust.test_bans import facts_of

pytestmark = pytest.mark.attack_row(45)


async def test_only_the_streams_of_the_banned_are_ended() -> None:
    """Which streams are cut; that a new one is refused is the Guard's work (test_bans)."""
    forge = Forge()
    service = RegistryService(hub=_NOT_ASKED, model=_NOT_ASKED, verify=_NOT_ASKED)
    other = "spiffe://cluster.local/ns/prod/sa/db"
    readers = {
        identity: asyncio.ensure_future(asyncio.Event().wait()) for identity in (DEFAULT, other)
    }
    for identity, reader in readers.items():
        service._open[reader] = facts_of(forge, forge.leaf(identity)), identity
    service.cut_banned(Bans.of([Ban("identity", DEFAULT)]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert readers[DEFAULT].cancelled()
    assert not readers[other].done()
    readers[other].cancel()
    await asyncio.gather(*readers.values(), return_exceptions=True)


_NOT_ASKED: Any = None
