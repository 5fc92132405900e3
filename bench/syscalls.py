"""System calls per request of both proxies of a pair, counted by strace (if it is installed).

A traced process is slow, so events pile up and one wake-up serves more of them: compare the counts
with each other, not with a count on a fast day.
"""

import re
import shutil
import subprocess
import sys
import time

from bench.proxies import Proxy, text

_REQUESTS = 2_000
_CONNECTIONS = 64
_TOTAL = re.compile(r"^\s*(?P<calls>[0-9]+) total$", re.MULTILINE)


def strace_works() -> bool:
    """Whether strace is here and may trace."""
    found = shutil.which("strace")
    if found is None:
        return False
    return subprocess.run([found, "-o", "/dev/null", "true"], check=False).returncode == 0


def parse_total(summary: str) -> int:
    """The number of calls in the last line of `strace -c -U calls,name`; 0 if there was none."""
    found = _TOTAL.search(summary)
    return 0 if found is None else int(found["calls"])


def count_syscalls(proxy: Proxy) -> list[float]:
    """Calls per request over kept-alive connections; [] if nothing is in the path."""
    if not (pids := proxy.pids()):
        return []
    load = subprocess.Popen(
        [
            *(sys.executable, "-m", "bench.load", "requests", text(proxy.client_address)),
            *("--connections", str(_CONNECTIONS), "--count", str(_REQUESTS)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert load.stdin is not None
    assert load.stdout is not None
    load.stdout.readline()
    summary = proxy.path("strace.txt")
    attach = [option for pid in pids for option in ("-p", str(pid))]
    tracer = subprocess.Popen(
        ["strace", "-q", "-c", "-U", "calls,name", "-f", "-o", str(summary), *attach],
        stderr=subprocess.DEVNULL,
    )
    time.sleep(0.5)  # until it is attached: strace -c says nothing when it is
    load.stdin.write("go\n")
    load.stdin.flush()
    load.stdout.readline()
    tracer.terminate()
    tracer.wait(10)
    load.kill()
    load.communicate()
    return [parse_total(summary.read_text()) / _REQUESTS]
