"""A real app on loopback, and the certificates of a run."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import mutual
from bench.certificates import make_certificates
from bench.processes import Child, Cpus, wait_until
from bench.proxies import Site, free_address, text


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Where a pair can be started: the app runs, and answers."""
    everywhere = frozenset(os.sched_getaffinity(0))
    cpus = Cpus(everywhere, everywhere)
    it = Site(free_address(), make_certificates(tmp_path), cpus, tmp_path, free_address())
    command = [sys.executable, "-m", "bench.app", text(it.app)]
    app = Child("the app", command, cpus=everywhere, log=tmp_path / "app.log")
    try:
        wait_until(lambda: mutual.answers(it.app), "the app", timeout_s=10, child=app)
        yield it
    finally:
        app.stop()
