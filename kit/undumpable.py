"""Keeps the memory of a process that holds a key to itself.

Without it the kernel writes that memory into a core file when the process crashes, or hands it to the
node's crash collector, and any process of the same user may read it (prctl(2) PR_SET_DUMPABLE,
ptrace(2), core(5)). Said once at the start; a program that is executed later must say it again.
"""

import ctypes
import os

_PR_SET_DUMPABLE = 4


def forbid_dumps() -> None:
    """For this process, from now on: no core file, and no other process of its user reads its memory.

    Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, f"prctl PR_SET_DUMPABLE: {os.strerror(code)}")
