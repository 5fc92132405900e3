"""Each reason why no namespaces can be made, with its remedy."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from local.permission import Machine, observe, remedy
from local.supervisor import SOURCE_ROOT
from local.userns import IdMaps
from tests.patience import PATIENCE_S

ALL = (1 << 41) - 1
USER = Machine(root=False)
ROOT = Machine(root=True, capabilities=ALL)


@pytest.mark.parametrize(
    ("machine", "says"),
    [
        (Machine(root=False, max_user_namespaces=0), "sysctl -w user.max_user_namespaces="),
        (
            Machine(root=False, unprivileged_userns_clone=0),
            "sysctl -w kernel.unprivileged_userns_clone=1",
        ),
        (
            Machine(root=False, apparmor_restrict=1),
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        (Machine(root=True), "give it them, or run it as an ordinary user"),
        (Machine(root=True, container=True), "start the container with --privileged"),
        (
            Machine(root=True, capabilities=ALL, masked_proc=True, container=True),
            "systempaths=unconfined",
        ),
        (Machine(root=True, capabilities=ALL, container=True), "seccomp=unconfined"),
        (Machine(root=False, container=True), "seccomp=unconfined"),
        (USER, "run it as root"),
        (ROOT, "seccomp filter"),
        # What does not bind root is not root's reason.
        (
            Machine(root=True, capabilities=ALL, apparmor_restrict=1, unprivileged_userns_clone=0),
            "seccomp filter",
        ),
        # A switch that is on is no reason.
        (
            Machine(
                root=False,
                apparmor_restrict=0,
                unprivileged_userns_clone=1,
                max_user_namespaces=9,
            ),
            "run it as root",
        ),
    ],
)
def test_the_reason_comes_with_its_remedy_in_one_line(machine: Machine, says: str) -> None:
    words = remedy(machine)
    assert says in words
    assert "\n" not in words


def test_what_this_machine_says_is_read() -> None:
    machine = observe()
    assert machine.root == (os.geteuid() == 0)
    assert machine.max_user_namespaces is None or machine.max_user_namespaces >= 0


_FORBIDDEN = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x10000000) == 0, os.strerror(ctypes.get_errno())
open("/proc/self/setgroups", "w").write("deny")
open("/proc/self/uid_map", "w").write(f"1000 {sys.argv[1]} 1")
open("/proc/self/gid_map", "w").write(f"1000 {sys.argv[2]} 1")
open("/proc/sys/user/max_user_namespaces", "w").write("0")
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Becomes uid 1000 in a user namespace that allows none within, and runs a program there."""


@pytest.mark.netns
@pytest.mark.parametrize("program", ["setup", "up"])
def test_where_user_namespaces_are_forbidden_one_line_says_so(program: str, tmp_path: Path) -> None:
    argv = {
        "setup": ["/bin/sh", str(SOURCE_ROOT / "scripts/setup.sh"), "demo"],
        "up": [sys.executable, "-m", "cli", "local", "up", "--bare", "--name", "forbidden"],
    }[program]
    done = subprocess.run(
        [sys.executable, "-c", _FORBIDDEN, str(os.getuid()), str(os.getgid()), *argv],
        env={
            **os.environ,
            "PYTHONPATH": str(SOURCE_ROOT),
            "TMPDIR": str(tmp_path),
            "XDG_RUNTIME_DIR": "",
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "sudo sysctl -w user.max_user_namespaces=10000, or run it as root" in line


@pytest.mark.netns
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give capabilities up")
def test_root_without_capabilities_is_told_what_lacks() -> None:
    argv = ["/bin/sh", str(SOURCE_ROOT / "scripts/setup.sh"), "demo"]
    done = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *argv],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "root has neither CAP_SYS_ADMIN nor CAP_SETFCAP here" in line


@pytest.mark.netns
def test_a_refused_range_of_ids_leaves_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / "newuidmap"
    helper.write_text("#!/bin/sh\necho refused >&2\nexit 1\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    wanted = ((0, os.getuid(), 1), (1, 100_000, 65_536))
    with subprocess.Popen(["unshare", "--user", "cat"], stdin=subprocess.PIPE) as program:
        while os.readlink(f"/proc/{program.pid}/ns/user") == os.readlink("/proc/self/ns/user"):
            time.sleep(0.01)
        given = IdMaps(wanted, wanted, by_helper=True).write(program.pid)
        mapped = Path(f"/proc/{program.pid}/uid_map").read_text().split()
    assert given.single
    assert mapped == ["0", str(os.getuid()), "1"]
