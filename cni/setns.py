"""Enters a network namespace by its path (setns(2)); Python 3.12 has os.setns, 3.11 has not."""

import ctypes
import os

_CLONE_NEWNET = 0x40000000


def enter_network(path: str) -> None:
    """For the whole process, for good. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, _CLONE_NEWNET):
            code = ctypes.get_errno()
            raise OSError(code, f"{path}: {os.strerror(code)}")
    finally:
        os.close(descriptor)
