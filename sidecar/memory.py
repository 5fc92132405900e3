"""Sheds new links before the kernel ends the process for its memory.

Where there is a limit (the cgroup's, v1 or v2, or PODLINK_MEMORY_LIMIT, which the injector sets to the
container's), what is used is looked at twice a second.
Above HIGH new links are turned away and idle tunnels dropped, until it is below LOW: an app hears a
reset at once, and the links that are open live on. Meanwhile free heap is given back from time to time:
malloc keeps what links have freed, and by that alone the shedding would never end.
"""

import asyncio
import gc
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from sidecar.resident import return_free_heap

EVERY_S: Final = 0.5
HIGH, LOW = 0.85, 0.75
_GIVE_BACK_EVERY: Final = 4
"""Looks; it takes milliseconds."""
_CGROUP: Final = Path("/sys/fs/cgroup")
_OWN: Final = Path("/proc/self/cgroup")
_NO_LIMIT: Final = 1 << 60
"""What v1 says where there is none is a number too large to be one."""
_PAGE: Final = 4096
_log = logging.getLogger(__name__)


class MemoryWatch:
    """`changed(True)` when to shed, `changed(False)` when no more. Without a limit it does nothing."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limit_bytes: int,
        changed: Callable[[bool], None],
        used: "Callable[[], int] | None" = None,
    ) -> None:
        self._loop, self._changed = loop, changed
        self.limit_bytes = limit_bytes
        """0 where there is none."""
        self._used = used or used_bytes
        self.shedding = False
        self._looks = 0
        self._timer: asyncio.TimerHandle | None = None
        if limit_bytes:
            self._timer = loop.call_later(EVERY_S, self._tick)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def look(self) -> None:
        """Compare, now."""
        if self.shedding:
            self._looks += 1
            if self._looks % _GIVE_BACK_EVERY == 0:
                gc.collect()
                return_free_heap()
        share = self._used() / self.limit_bytes
        if share > HIGH and not self.shedding:
            self.shedding = True
            _log.warning(
                "memory is short: no new links until it is not",
                extra={"share": round(share, 2), "limit_bytes": self.limit_bytes},
            )
            self._changed(True)
        elif share < LOW and self.shedding:
            self.shedding = False
            _log.info("memory suffices again", extra={"share": round(share, 2)})
            self._changed(False)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(EVERY_S, self._tick)
        self.look()


class Cgroup(NamedTuple):
    """Where the kernel says what a cgroup may use and does use, and under which names."""

    folder: Path
    limit: str
    current: str
    inactive: str


def cgroup_of(root: Path = _CGROUP, process: Path = _OWN) -> Cgroup | None:
    """Our own cgroup's memory controller, v2 or v1; None if there is none to be seen.

    In a container the tree mostly begins with the container's own cgroup; elsewhere the path of
    /proc/self/cgroup leads there (cgroups(7)).
    """
    paths = _paths(process)
    for folder in (root / paths.get("", ""), root):
        if (folder / "memory.max").exists():
            return Cgroup(folder, "memory.max", "memory.current", "inactive_file")
    for folder in (root / "memory" / paths.get("memory", ""), root / "memory"):
        if (folder / "memory.limit_in_bytes").exists():
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            return Cgroup(folder, *names)
    return None


def limit_of_cgroup(root: Path = _CGROUP, process: Path = _OWN) -> int:
    """The limit of our own cgroup in bytes; 0 if there is none or nobody says."""
    group = cgroup_of(root, process)
    if group is None:
        return 0
    try:
        raw = (group.folder / group.limit).read_text().strip()
        limit = 0 if raw == "max" else int(raw)
    except (OSError, ValueError):
        return 0
    return 0 if limit >= _NO_LIMIT else limit


def used_bytes(root: Path = _CGROUP, process: Path = _OWN) -> int:
    """What counts against the limit: our resident memory, or more if our cgroup has a limit and says so,
    without file cache that can go. A cgroup without one is not ours alone: it may be the machine's."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
    group = cgroup_of(root, process)
    if group is None or not limit_of_cgroup(root, process):
        return resident
    try:
        current = int((group.folder / group.current).read_text())
        for line in (group.folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == group.inactive:
                current -= int(value)
    except (OSError, ValueError):
        return resident
    return max(current, resident)


def _paths(process: Path) -> dict[str, str]:
    """By v1 controller, and "" for v2: the path of our cgroup below the root of its tree."""
    found = {}
    try:
        lines = process.read_text().splitlines()
    except OSError:
        return {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = path.lstrip("/")
    return found
