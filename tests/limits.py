"""A pytest plugin: how much a test may use before it fails.

What says something about the code is CPU time: a test that computes too long fails on any machine, and
one that only waits for its turn on a shared machine does not. So a unit test has a limit in seconds of
CPU time of this process (`ITIMER_PROF`; `cpu_limit(seconds)` sets another). Wall time is limited too,
by pytest-timeout, but only to end what hangs.

What ages is made in the test that uses it: a leaf out of `tests.certs.forge` on import, or in the
fixture of a module or a session, is an error.

`--cpu=N` prints the N tests that used most CPU time, and the wall time of each folder.
"""

import signal
import time
from collections import Counter
from collections.abc import Generator
from types import FrameType
from typing import Any

import pytest

from tests.certs import forge

UNIT_CPU_S = 15.0
"""A unit test uses a tenth of a second; Hypothesis with 50 examples a few. CPU time itself grows when
caches and cores are shared, so this is three times what the largest needs on a quiet machine."""
_used: dict[str, tuple[float, float]] = {}
"""Node ID -> CPU and wall seconds, set-up and tear-down included."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cpu", type=int, default=0, help="print the N tests that used most CPU time")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "cpu_limit(seconds): CPU time of this process that a test may use; 0 for any"
    )
    forge.leaves_may_be_made(False)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    forge.leaves_may_be_made(True)
    cpu, wall = time.process_time(), time.monotonic()
    try:
        return (yield)
    finally:
        forge.leaves_may_be_made(False)
        _used[item.nodeid] = (time.process_time() - cpu, time.monotonic() - wall)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
    before = forge.leaves_may_be_made(fixturedef.scope == "function")
    try:
        return (yield)
    finally:
        forge.leaves_may_be_made(before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    marker = item.get_closest_marker("cpu_limit")
    limit_s = float(marker.args[0]) if marker is not None else 0.0
    if not limit_s:
        return (yield)

    def over(_signal: int, _frame: FrameType | None) -> None:
        pytest.fail(f"more than {limit_s:g} s of CPU time")

    before = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, limit_s)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if not (most := config.getoption("--cpu")):
        return
    terminalreporter.section("CPU time")
    by_cpu = sorted(_used.items(), key=lambda used: -used[1][0])
    for node, (cpu_s, wall_s) in by_cpu[:most]:
        terminalreporter.write_line(f"{cpu_s:7.2f} s CPU {wall_s:7.2f} s  {node}")
    folders = Counter[str]()
    for node, (_, wall_s) in _used.items():
        folders["/".join(node.split("/")[:2])] += wall_s  # type: ignore[assignment]
    for folder, wall_s in folders.most_common():
        terminalreporter.write_line(f"{wall_s:7.1f} s in {folder}")
