"""Namespaces of a test's own to stand for the host, so that what a cluster leaves there can be told.

The machine's own interfaces, rules and mounts change while a test runs, for others use it too. In a
network and a mount namespace of the test's own nothing changes but by what the test starts. An
ordinary user, who could change none of the host's, keeps the machine's namespaces.
"""

import ctypes
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local.node import tools

_NEWNS, _NEWNET = 0x00020000, 0x40000000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def private_host() -> Iterator[None]:
    """This thread, and what it starts, lives in namespaces of its own meanwhile."""
    if os.geteuid() != 0:
        yield
        return
    own = Path("/proc/thread-self/ns")
    before = [os.open(own / kind, os.O_RDONLY | os.O_CLOEXEC) for kind in ("mnt", "net")]
    here = Path.cwd()
    try:
        _demand(_libc.unshare(_NEWNS | _NEWNET), "unshare")
        _demand(_libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None), "mount")
        subprocess.run([_tool("ip"), "link", "set", "lo", "up"], check=True)
        yield
    finally:
        for fd in before:
            _demand(_libc.setns(fd, 0), "setns")
            os.close(fd)
        os.chdir(here)  # a change of the mount namespace goes to its root


def seen() -> Counter[str]:
    """What of the host a cluster could add to: links, tables of rules, and mounts.

    Things may go while a test runs, and none of the test's doing: a mount point that the machine removes
    goes in every mount namespace. So what counts is what has come, `seen() - before`.
    """
    if os.geteuid() != 0:
        return Counter()
    links = subprocess.run(
        [_tool("ip"), "-o", "link"], capture_output=True, text=True, check=True
    ).stdout
    rules = subprocess.run(
        [_tool("nft"), "list", "tables"], capture_output=True, text=True, check=True
    ).stdout
    mounts = Path("/proc/thread-self/mounts").read_text().splitlines()
    return Counter(
        [
            *(f"link {line.split()[1]}" for line in links.splitlines()),
            *(f"rules: {line}" for line in rules.splitlines()),
            *(f"mount at {line.split()[1]}" for line in mounts),
        ]
    )


def _tool(name: str) -> str:
    return tools.find(name, os.environ["PATH"]) or name


def _demand(answer: int, what: str) -> None:
    if answer != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
