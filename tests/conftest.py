"""What holds for every test: nothing is left behind, examples are repeatable, nothing hangs.

- `tests.leaks`: a test that leaves a task, a socket, a process, a namespace or a thread behind fails.
- Hypothesis: the profile `fast` unless HYPOTHESIS_PROFILE names another; `deep` for the nightly run.
  In CI (`CI` set) `fast` draws the same examples each time, so that a red build is red for its own
  change.
- A unit test has five seconds. Suites that start whole programs have pyproject's limit.
"""

import os
import resource

import pytest
from hypothesis import HealthCheck, settings

UNIT_LIMIT_S = 5
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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give every unit test its limit, unless it names one of its own or examples are many."""
    tests = config.rootpath / "tests"
    for item in items:
        folder = item.path.relative_to(tests).parts[0] if item.path.is_relative_to(tests) else ""
        slow = folder in WHOLE_PROGRAMS or PROFILE != "fast"
        if folder and not slow and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(UNIT_LIMIT_S))
