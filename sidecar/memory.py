"""Sheds new links before the kernel ends the process for its memory.

Where there is a limit (cgroup v2, or PODLINK_MEMORY_LIMIT), what is used is looked at twice a second.
Above HIGH new links are turned away and idle tunnels dropped, until it is below LOW: an app hears a
reset at once, and the links that are open live on. Meanwhile free heap is given back from time to time:
malloc keeps what links have freed, and by that alone the shedding would never end.
"""

import asyncio
import gc
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sidecar.resident import return_free_heap

EVERY_S: Final = 0.5
HIGH, LOW = 0.85, 0.75
_GIVE_BACK_EVERY: Final = 4
"""Looks; it takes milliseconds."""
_CGROUP: Final = Path("/sys/fs/cgroup")
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


def limit_of_cgroup(root: Path = _CGROUP) -> int:
    """The limit of our own cgroup in bytes; 0 if there is none or nobody says (cgroup v2)."""
    try:
        raw = (root / "memory.max").read_text().strip()
        return 0 if raw == "max" else int(raw)
    except (OSError, ValueError):
        return 0


def used_bytes(root: Path = _CGROUP) -> int:
    """What counts against the limit: the cgroup's use without file cache that can go, or else our
    resident memory."""
    try:
        current = int((root / "memory.current").read_text())
        for line in (root / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "inactive_file":
                current -= int(value)
        return current
    except (OSError, ValueError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
