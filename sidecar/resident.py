"""Gives memory back to the system once the start is over.

Most of what an idle sidecar keeps resident is code that ran once: module bodies, protobuf's and
gRPC's start-up, OpenSSL's tables. The kernel maps a file's pages around each that is touched, and lets
go of them only when the node is short of memory. Here they are let go of at once: code that is needed
again is mapped again from the page cache, with a minor fault.
"""

import ctypes
import gc
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_MAPPING: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \S+ *(.*)")
_READ_ONLY: Final = ("r-xp", "r--p")


def let_go_of_the_start() -> int:
    """Collect garbage, return free heap, drop pages of files that are mapped and unchanged; returns
    how many KiB of those mappings were resident.

    Call it once, when nothing more is imported. Never raises: a kernel that refuses costs memory only.
    """
    gc.collect()
    gc.freeze()  # what lives now lives on: keep the collector from walking it each time
    return_free_heap()
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    dropped = 0
    try:
        smaps = Path("/proc/self/smaps").read_text()
    except OSError:
        return 0
    for start, size, resident in unchanged_files(smaps):
        if madvise(start, size, mmap.MADV_DONTNEED) == 0:
            dropped += resident
    return dropped


def return_free_heap() -> None:
    """Give the system what has been freed: malloc keeps it otherwise, and it counts as ours."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc only
        libc.malloc_trim(ctypes.c_size_t(0))


def unchanged_files(smaps: str) -> Iterator[tuple[int, int, int]]:
    """Start, size in bytes and resident KiB of each mapping of a file that nobody can write and that
    has no page of its own (proc(5)).

    A page that the loader changed (relocations) counts as `Anonymous`: dropping it would lose it.
    """
    start = end = resident = 0
    candidate = False
    for line in smaps.splitlines():
        if (found := _MAPPING.fullmatch(line)) is not None:
            start, end = int(found[1], 16), int(found[2], 16)
            candidate = found[3] in _READ_ONLY and found[4].startswith("/")
        elif line.startswith("Rss:"):
            resident = int(line.split()[1])
        elif line.startswith("Anonymous:") and candidate and resident and int(line.split()[1]) == 0:
            yield start, end - start, resident
