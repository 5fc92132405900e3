"""Tasks that a process cannot do without."""

import asyncio

import pytest

from kit.tasks import spawn, stop, vital_task_died
from tests.patience import PATIENCE_S


async def _fails() -> None:
    await asyncio.sleep(0)
    raise KeyError("k")


async def _returns() -> None:
    await asyncio.sleep(0)


async def _lasts() -> None:
    await asyncio.Event().wait()


async def test_a_vital_task_that_fails_is_told_with_its_name_and_reason() -> None:
    waiting = asyncio.ensure_future(vital_task_died())
    await asyncio.sleep(0)
    spawn(_fails(), name="the registry", vital=True)
    died = await asyncio.wait_for(waiting, PATIENCE_S)
    assert str(died) == "the task 'the registry' failed: KeyError: 'k'"


@pytest.mark.parametrize("what", ["ordinary", "returns", "cancelled"])
async def test_no_other_end_of_a_task_is_a_death(what: str) -> None:
    waiting = asyncio.ensure_future(vital_task_died())
    await asyncio.sleep(0)
    if what == "ordinary":
        spawn(_fails(), name="x")
    elif what == "returns":
        spawn(_returns(), name="x", vital=True)
    else:
        await stop(spawn(_lasts(), name="x", vital=True))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()
