"""Keep other programs of the machine out of a latency measurement.

A p99 of half a millisecond drowns in the turns that a busy neighbour takes on the same CPU. For the
length of a latency run, everybody in the path (proxies, app and load alike) gets the real-time
policy SCHED_RR, so that it runs when it has something to do. At 1,000 requests/s that is a
fraction of a CPU, and the kernel's own limit for real-time work (95 % of each second) holds.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOWEST = os.sched_param(1)


def threads(pids: Iterable[int]) -> list[int]:
    """Every thread that these processes have at the moment."""
    found: list[int] = []
    for pid in pids:
        with suppress(FileNotFoundError):
            found += (int(task.name) for task in Path(f"/proc/{pid}/task").iterdir())
    return found


@contextmanager
def undisturbed(pids: Iterable[int]) -> Iterator[bool]:
    """Real-time for these processes inside; yields False if we may not ask for that."""
    changed: list[int] = []
    granted = True
    try:
        for thread in threads(pids):
            with suppress(ProcessLookupError):
                os.sched_setscheduler(thread, os.SCHED_RR, _LOWEST)
                changed.append(thread)
    except PermissionError:
        granted = False
    try:
        yield granted
    finally:
        for thread in changed:
            with suppress(ProcessLookupError):
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
