"""Real-time priority for the length of a measurement, and not longer."""

import os
import subprocess
import sys
import threading

import pytest

from bench.priority import threads, undisturbed


def test_every_thread_is_found_and_a_dead_process_has_none() -> None:
    stop = threading.Event()
    extra = threading.Thread(target=stop.wait)
    extra.start()
    try:
        assert {os.getpid(), extra.native_id} <= set(threads([os.getpid()]))
    finally:
        stop.set()
        extra.join()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert threads([ended.pid]) == []


def test_the_policy_is_set_inside_and_taken_back_after_an_error() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        with pytest.raises(RuntimeError), undisturbed([child.pid]) as granted:
            inside = os.sched_getscheduler(child.pid)
            raise RuntimeError
        assert inside == (os.SCHED_RR if granted else os.SCHED_OTHER)
        assert os.sched_getscheduler(child.pid) == os.SCHED_OTHER
    finally:
        child.kill()
        child.communicate()
