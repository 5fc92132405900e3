"""What holds for every test: nothing is left behind, examples are repeatable, nothing hangs.

- `tests.leaks`: a test that leaves a task, a socket, a process, a namespace or a thread behind fails.
- Hypothesis: the profile `fast` unless HYPOTHESIS_PROFILE names another; `deep` for the nightly run.
  In CI (`CI` set) `fast` draws the same examples each time, so that a red build is red for its own
  change.
- A unit test has a limit of CPU time (`tests.limits`). Wall time only ends what hangs: pyproject's
  limit.
"""

import os
import resource

import pytest
from hypothesis import HealthCheck, settings

from tests.limits import UNIT_CPU_S

WHOLE_PROGRAMS = frozenset({"bench", "cli", "e2e", "local", "traces"})
"""Folders of tests/ whose tests start programs or clusters."""

# A thousand links at once take more descriptors than the usual soft limit; a sidecar raises its own.
_, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(_hard, 65536) if _hard > 0 else 65536, _hard))

_in_ci = bool(os.environ.get("CI"))
# No deadline per example: on a shared machine it would measure the neighbours.
settings.register_profile(
    "fast",
    max_examples=50,
    deadline=None,
    derandomize=_in_ci,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "deep",
    settings.get_profile("fast"),
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "5000")),
)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "fast")
settings.load_profile(PROFILE)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say at the end how to have the same order again: `-q` leaves the plugin's header out."""
    seed: str = config.getoption("random_order_seed", "default:")
    if config.getoption("random_order_enabled", False) or not seed.startswith("default:"):
        terminalreporter.write_line(f"random order: SEED={seed.removeprefix('default:')}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give every unit test its limit, unless it names one of its own or examples are many."""
    tests = config.rootpath / "tests"
    for item in items:
        folder = item.path.relative_to(tests).parts[0] if item.path.is_relative_to(tests) else ""
        slow = folder in WHOLE_PROGRAMS or PROFILE != "fast"
        if folder and not slow and item.get_closest_marker("cpu_limit") is None:
            item.add_marker(pytest.mark.cpu_limit(UNIT_CPU_S))
