"""How long a test waits for what must come.

Such a limit is there to end a test that hangs, with the line it hung at; it says nothing about speed. So
it is one number, far beyond what a slow and shared machine takes, and below the limit of a whole test
(pyproject). A test about a time limit of the product gives the product a short limit or a clock of the
test's own, and what it waits for would otherwise never come.
"""

import time

PATIENCE_S = 60.0
_SAMPLE_CPU_S = 0.1
_SLOWEST = 5.0


def slowness() -> float:
    """How many times longer than alone on a core work takes here just now: from 1 to 5.

    For a test in which podlink must keep up with real time, such as leaves of seconds: it makes its
    seconds so many times longer.
    """
    wall, cpu = time.monotonic(), time.process_time()
    while (used := time.process_time() - cpu) < _SAMPLE_CPU_S:
        pass
    return min(_SLOWEST, max(1.0, (time.monotonic() - wall) / used))
