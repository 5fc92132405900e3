"""What the bench reads from /proc."""

import os
import sys
from pathlib import Path

import pytest

from bench.processes import (
    Child,
    ChildFailed,
    Cpus,
    cpu_seconds,
    memory,
    on,
    parse_cpu_ticks,
    parse_memory,
    wait_until,
)

ROLLUP = """\
55d0c0a00000-7ffd4d5f1000 ---p 00000000 00:00 0                          [rollup]
Rss:               45056 kB
Pss:               39000 kB
Anonymous:         20480 kB
"""


def test_user_and_system_time_add_up_whatever_the_command_is_called() -> None:
    after = "S 1 7 7 0 -1 4194560 900 0 2 0 31 11 0 0 20 0 3 0"
    assert parse_cpu_ticks(f"7 (plain) {after}") == 42
    assert parse_cpu_ticks(f"7 (sly ) R 9 9 (name) {after}") == 42


def test_memory_is_read_in_mib() -> None:
    got = parse_memory(ROLLUP)
    assert (got.resident, got.anonymous) == (44.0, 20.0)


def test_the_kernel_counts_the_work_we_do() -> None:
    before = cpu_seconds([os.getpid()])
    while cpu_seconds([os.getpid()]) < before + 0.05:
        sum(range(10_000))
    assert memory([os.getpid()]).resident > memory([os.getpid()]).anonymous > 0


def test_a_child_runs_on_the_cpus_it_was_given_and_we_go_back_to_ours(tmp_path: Path) -> None:
    ours = os.sched_getaffinity(0)
    wanted = Cpus.split().ends
    log = tmp_path / "log"
    show = "import os; print(sorted(os.sched_getaffinity(0)), flush=True); input()"
    child = Child("shower", [sys.executable, "-c", f"{show}"], cpus=wanted, log=log)
    try:
        with pytest.raises(ChildFailed):  # input() ends at once: its standard input is empty
            wait_until(lambda: False, "never", timeout_s=5, child=child)
    finally:
        child.stop()
    assert log.read_text().startswith(str(sorted(wanted)))
    assert os.sched_getaffinity(0) == ours


def test_affinity_comes_back_after_an_error() -> None:
    ours = os.sched_getaffinity(0)
    with pytest.raises(RuntimeError), on(Cpus.split().proxies):
        raise RuntimeError
    assert os.sched_getaffinity(0) == ours


def test_a_child_that_ended_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", "raise SystemExit('no such thing')"]
    child = Child("the app", command, cpus=os.sched_getaffinity(0), log=log)
    with pytest.raises(ChildFailed, match=r"(?s)the app ended with status 1.*no such thing"):
        wait_until(lambda: False, "never", timeout_s=5, child=child)


def test_waiting_ends_at_its_limit(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(30)"]
    cpus = os.sched_getaffinity(0)
    child = Child("a sleeper", command, cpus=cpus, log=tmp_path / "log")
    try:
        with pytest.raises(ChildFailed, match="a miracle did not come within 0 s"):
            wait_until(lambda: False, "a miracle", timeout_s=0.05, child=child)
    finally:
        child.stop()
