"""The search for waits that a slow machine would not keep finds them, and no others."""

import pytest

from tests.waits import findings

WRONG = [
    "x = urllib.request.urlopen(url, timeout=10)",
    "async def f():\n    async with asyncio.timeout(3):\n        pass\n",
    "x = asyncio.wait_for(it.read(), 2.5)",
    "x = asyncio.wait_for(it.read(), timeout=5)",
    "@pytest.mark.timeout(60)\ndef test_it(): pass\n",
    "pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]",
]
RIGHT = [
    "async def f():\n    async with asyncio.timeout(PATIENCE_S):\n        pass\n",
    "x = asyncio.wait_for(it.read(), PATIENCE_S)",
    "x = asyncio.wait_for(it.read(), 0.2)  # it must not come",
    "x = asyncio.wait_for(it.read(), 90)",
    "@pytest.mark.timeout(1500)\ndef test_it(): pass\n",
    "x = call(timeout=0.3)",
]


@pytest.mark.parametrize("source", WRONG)
def test_a_guess_of_a_machines_speed_is_found(source: str) -> None:
    assert len(list(findings(source))) == 1


@pytest.mark.parametrize("source", RIGHT)
def test_patience_and_what_must_not_come_are_not(source: str) -> None:
    assert list(findings(source)) == []
