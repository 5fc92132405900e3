"""What the kernel says of this process, under the names that Prometheus clients use for it."""

import os
import resource
from pathlib import Path

from kit.exposition import Family, one
from sidecar.metrics import catalogue as c

_PROC = Path("/proc/self")


def families() -> list[Family]:
    """Without those that /proc does not show (proc(5))."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = [one(c.CPU, used.ru_utime + used.ru_stime), one(c.MAX_FDS, limit)]
    try:
        pages = int((_PROC / "statm").read_text().split()[1])
        found.append(one(c.RESIDENT, pages * os.sysconf("SC_PAGE_SIZE")))
        found.append(one(c.OPEN_FDS, sum(1 for _ in (_PROC / "fd").iterdir())))
        found.append(one(c.STARTED, _started_unix_s()))
    except (OSError, ValueError, IndexError):
        pass
    return found


def _started_unix_s() -> float:
    # The name in field 2 may hold spaces and brackets: count from its end.
    ticks = int((_PROC / "stat").read_text().rpartition(")")[2].split()[19])
    boot = next(
        int(line.split()[1])
        for line in Path("/proc/stat").read_text().splitlines()
        if line.startswith("btime ")
    )
    return boot + ticks / os.sysconf("SC_CLK_TCK")
