"""Which ports the pod's processes listen for on loopback only, by the kernel's own tables.

Asked only to say why a link found no app. /proc shows the network namespace of whoever reads it, and
that is the pod's; which process listens is not told, and not asked.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from kit.clock import monotonic

_TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTEN: Final = "0A"
"""TCP_LISTEN, as proc(5) writes it."""
_LOOPBACK: Final = ("0100007F", "00000000000000000000000001000000")
"""127.0.0.1 and ::1, in the byte order of a little-endian machine."""
_KEPT_S: Final = 1.0
"""A table of many thousand sockets takes milliseconds to read: once a second, whoever asks."""


class LoopbackListeners:
    """Call it for the ports."""

    def __init__(
        self, tables: Iterable[Path] = _TABLES, now: Callable[[], float] = monotonic
    ) -> None:
        self._tables, self._now = tuple(tables), now
        self._read_at = float("-inf")
        self._ports = frozenset[int]()

    def __call__(self) -> frozenset[int]:
        if self._now() - self._read_at > _KEPT_S:
            self._read_at = self._now()
            self._ports = frozenset(
                port for table in self._tables for port in on_loopback(_text(table))
            )
        return self._ports


def on_loopback(table: str) -> Iterable[int]:
    """The ports of a table in the form of /proc/net/tcp that are listened for on loopback (proc(5))."""
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 3 and fields[3] == _LISTEN:
            ip, _, port = fields[1].partition(":")
            if ip in _LOOPBACK:
                yield int(port, 16)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # no IPv6 on this node
        return ""
