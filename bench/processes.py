"""Child processes pinned to a CPU, and what the kernel says they cost.

CPU time comes from /proc/<pid>/stat: user and system time of the whole process, all its threads,
also those that have ended (proc(5)). Memory comes from /proc/<pid>/smaps_rollup.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_MIB = 1024 * 1024


class ChildFailed(SystemExit):
    """A process of the bench could not start or ended too early; says which and shows its log."""


@dataclass(frozen=True)
class Memory:
    """Of one process, in MiB."""

    resident: float
    anonymous: float
    """What it allocated itself: neither files nor shared libraries."""


@dataclass(frozen=True)
class Cpus:
    """Who runs where: the proxies on one CPU, load and app on another, for steadier ratios."""

    proxies: frozenset[int]
    ends: frozenset[int]

    @classmethod
    def split(cls) -> "Cpus":
        """The first CPU we may use for the proxies, the last one for load and app."""
        allowed = sorted(os.sched_getaffinity(0))
        return cls(frozenset(allowed[:1]), frozenset(allowed[-1:]))


@contextlib.contextmanager
def on(cpus: Iterable[int]) -> Iterator[None]:
    """Children started inside inherit these CPUs, and so does every thread they make."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Child:
    """A process whose output goes to a log file; it ends with the run."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        cpus: Iterable[int],
        log: Path,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.log = name, log
        with on(cpus), log.open("ab") as out:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def check_alive(self) -> None:
        """Raise ChildFailed, with the end of the log, if the process has ended."""
        if (status := self._process.poll()) is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise ChildFailed(f"bench: {self.name} ended with status {status}\n{tail}")

    def stop(self, patience_s: float = 3.0) -> None:
        """End it politely, and after `patience_s` by force. May be called again."""
        self._process.terminate()
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def parse_cpu_ticks(stat: str) -> int:
    """User plus system time in clock ticks, from the text of /proc/<pid>/stat.

    The command's name stands in parentheses and may hold anything, so fields count from the last
    closing one: utime and stime are fields 14 and 15 of proc(5).
    """
    fields = stat.rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time that these processes have used since they started."""
    ticks = sum(parse_cpu_ticks(Path(f"/proc/{pid}/stat").read_text()) for pid in pids)
    return ticks / _TICKS_PER_S


def parse_memory(smaps_rollup: str) -> Memory:
    """The sums of /proc/<pid>/smaps_rollup that we report."""
    kib = {}
    for line in smaps_rollup.splitlines()[1:]:
        name, _, rest = line.partition(":")
        kib[name] = int(rest.split()[0])
    return Memory(resident=kib["Rss"] * 1024 / _MIB, anonymous=kib["Anonymous"] * 1024 / _MIB)


def memory(pids: Sequence[int]) -> Memory:
    """The mean over these processes."""
    each = [parse_memory(Path(f"/proc/{pid}/smaps_rollup").read_text()) for pid in pids]
    return Memory(
        resident=sum(m.resident for m in each) / len(each),
        anonymous=sum(m.anonymous for m in each) / len(each),
    )


def wait_until(done: Callable[[], bool], what: str, *, timeout_s: float, child: Child) -> float:
    """Poll `done` until it holds; return the seconds that took. Raises ChildFailed otherwise."""
    began = time.monotonic()
    while not done():
        child.check_alive()
        if time.monotonic() - began > timeout_s:
            raise ChildFailed(f"bench: {what} did not come within {timeout_s:.0f} s")
        time.sleep(0.002)
    return time.monotonic() - began
