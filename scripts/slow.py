"""Runs a command on a slow machine: `python -m scripts.slow PERCENT COMMAND...`, as root.

A cgroup gives the command and all that it starts so many per cent of one core, and no more: it gets its
turn ever so often and stands still in between, as on a machine that is shared by many. Others on the
machine notice nothing. Understands cgroup v1 and v2.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PERIOD_US = 100_000
_V1, _V2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")


@contextmanager
def slowed(percent: int) -> Iterator[Path]:
    """A cgroup with that share of one core; yields the file that a process id is written to.

    Raises OSError where no cgroup can be made.
    """
    quota_us = max(1000, percent * _PERIOD_US // 100)
    one = _V2 if (_V2 / "cgroup.controllers").exists() else _V1
    group = one / f"podlink-slow-{os.getpid()}"
    group.mkdir()
    try:
        if one == _V2:
            (group / "cpu.max").write_text(f"{quota_us} {_PERIOD_US}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(quota_us))
        yield group / "cgroup.procs"
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            (one / "cgroup.procs").write_text(pid)  # what outlives the command is slow no more
        group.rmdir()


def main(argv: list[str]) -> int:
    """Run the command and return its exit code."""
    if len(argv) < 2 or not argv[0].isdigit() or not 1 <= int(argv[0]) <= 100:
        print("usage: python -m scripts.slow PERCENT COMMAND... (1 to 100)", file=sys.stderr)
        return 2
    try:
        with slowed(int(argv[0])) as tasks:
            # The command enters before it starts; exec keeps the process.
            enter = f'echo $$ > {tasks} && exec "$@"'
            with subprocess.Popen(["sh", "-c", enter, "slow", *argv[1:]]) as command:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command hears it, and ends
                return command.wait()
    except OSError as e:
        print(
            f"scripts.slow needs a cgroup it may make (root, cpu controller): {e}", file=sys.stderr
        )
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
