"""A process that holds a key, and another one of the same user that would like to have it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from local.supervisor import SOURCE_ROOT

_HOLDER = """
import os, sys
from kit.undumpable import forbid_dumps
if os.geteuid() == 0:  # whom the kernel lets read everything
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    libc = __import__("ctypes").CDLL(None)
    libc.prctl(4, 1, 0, 0, 0)  # a change of user takes it away: as after an exec by that user
if sys.argv[1] == "private":
    forbid_dumps()
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(kind: str) -> Iterator[int]:
    """The PID of a process that has forbidden dumps, or has not."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=SOURCE_ROOT,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield process.pid
        finally:
            process.communicate("")


@pytest.mark.attack_row(41)
@pytest.mark.skipif(os.geteuid() != 0, reason="the kernel shows root who owns a process's files")
def test_what_forbids_dumps_is_closed_to_its_own_user() -> None:
    """Memory, environment and core file hang on the same flag; the kernel shows it by whose they are."""
    with holder("open") as pid:
        assert Path(f"/proc/{pid}/mem").stat().st_uid == 65534
    with holder("private") as pid:
        assert Path(f"/proc/{pid}/mem").stat().st_uid == 0


@pytest.mark.attack_row(41)
@pytest.mark.parametrize(
    "program",
    [
        "sidecar/__main__.py",
        "sidecar/workers/worker.py",
        "certs/server/__main__.py",
        "registry/__main__.py",
        "traces/__main__.py",
        "injector/__main__.py",
    ],
)
def test_every_program_that_holds_a_key_forbids_dumps_before_anything_else(program: str) -> None:
    body = (Path(SOURCE_ROOT) / program).read_text().partition("def main() -> None:\n")[2]
    assert body.split("\n")[0].strip().startswith("forbid_dumps()")
