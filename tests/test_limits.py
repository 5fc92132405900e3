"""The limits of tests/limits.py, shown on tests that break them and on ones that do not."""

import pytest

HEAD = """
import time
import pytest

pytestmark = pytest.mark.cpu_limit(0.3)
"""


def run(pytester: pytest.Pytester, body: str) -> pytest.RunResult:
    pytester.makepyfile(HEAD + body)
    return pytester.runpytest_subprocess("-p", "tests.limits", "-p", "no:cacheprovider", "--cpu=1")


def test_a_test_that_computes_too_long_fails_and_one_that_waits_does_not(
    pytester: pytest.Pytester,
) -> None:
    result = run(
        pytester,
        """
def test_it_spins():
    while True:
        pass

def test_it_waits():
    time.sleep(0.6)

@pytest.mark.cpu_limit(0)
def test_it_may_spin():
    ends = time.process_time() + 0.4
    while time.process_time() < ends:
        pass
""",
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*more than 0.3 s of CPU time*", "* s CPU * s  *"])


async def test_the_limit_ends_an_async_test_too(pytester: pytest.Pytester) -> None:
    pytester.makeini(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )
    result = run(
        pytester,
        """
import asyncio

async def test_it_spins():
    while True:
        await asyncio.sleep(0)

async def test_it_is_well_after_that():
    await asyncio.sleep(0)
""",
    )
    result.assert_outcomes(passed=1, failed=1)


EARLY = {
    "on import": "PAIR = FORGE.leaf()\ndef test_it(): pass\n",
    "by a module's fixture": """
@pytest.fixture(scope="module")
def pair():
    return FORGE.leaf()

def test_it(pair):
    pass
""",
}


@pytest.mark.parametrize("when", EARLY)
def test_a_leaf_that_is_made_before_the_test_that_uses_it_is_an_error(
    pytester: pytest.Pytester, when: str
) -> None:
    result = run(pytester, "from tests.certs.forge import Forge\nFORGE = Forge()\n" + EARLY[when])
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*MadeTooEarly*"])


def test_a_leaf_of_a_test_and_one_with_times_of_its_own_are_made(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
from tests.certs.forge import DAY, Forge

FORGE = Forge()
LASTING = FORGE.leaf(not_after=FORGE.now + DAY)

@pytest.fixture
def pair():
    return FORGE.leaf()

def test_it(pair):
    assert pair.der != FORGE.leaf().der != LASTING.der
""",
    )
    result.assert_outcomes(passed=1)
