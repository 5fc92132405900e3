"""One forge for all tests of this package; each test has leaves of its own, made when it starts."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop

from tests.certs.forge import BadLeaf, Forge, Pair
from tests.certs.running_ca import RunningCa, running_ca


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every test here runs on the loop that every program of ours runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def forge() -> Forge:
    return Forge()


@pytest.fixture
def bad_leaves(forge: Forge) -> dict[str, BadLeaf]:
    return forge.bad_leaves()


@pytest.fixture
def good_leaf(forge: Forge) -> Pair:
    return forge.leaf(ips=["10.0.0.7", "fd00::7"])


@pytest.fixture
async def ca(tmp_path: Path) -> AsyncIterator[RunningCa]:
    """A whole CA on loopback; its API server is scripted through `ca.fake`."""
    async with running_ca(tmp_path) as running:
        yield running
