"""Bounds how many TCP connections one address may keep with a gRPC server of this process.

gRPC has no such bound: a caller that shakes hands and says nothing costs some 50 KiB for as long as it
stays, and one pod can hold thousands. So the process looks at its own descriptors now and then, and
shuts down the newest connections of whoever keeps too many. gRPC then sees their end as any other.
"""

import asyncio
import ipaddress
import os
import socket
import stat
from collections import defaultdict
from typing import Final

from kit.limited_log import LimitedLog

EVERY_S: Final = 0.5
_FOLDER: Final = "/proc/self/fd"


class Connections:
    """`run` keeps the bound until it is cancelled. `closed` counts what it has shut down."""

    def __init__(self, port: int, per_source: int, log: LimitedLog) -> None:
        self._port, self._per_source, self._log = port, per_source, log
        self.closed = 0

    async def run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            # A thousand descriptors take a millisecond; many thousand must not hold up the loop.
            for source, number in (await asyncio.to_thread(self.sweep)).items():
                self._log.warning("too many connections", source=source, closed=number)

    def sweep(self) -> dict[str, int]:
        """Shut down what is over the bound now; returns how many of each source."""
        found: defaultdict[str, list[int]] = defaultdict(list)
        closed: dict[str, int] = {}
        for number in sorted(_descriptors()):
            if source := _peer_of(number, self._port):
                found[source].append(number)
        for source, numbers in found.items():
            over = numbers[self._per_source :]
            done = sum(_shut(number, self._port, source) for number in over)
            if done:
                closed[source] = done
                self.closed += done
        return closed


def _descriptors() -> list[int]:
    return [int(name) for name in os.listdir(_FOLDER) if name.isdigit()]  # noqa: PTH208 - no Path each


def _peer_of(number: int, port: int) -> str:
    """Whose connection to our `port` the descriptor is; "" for anything else."""
    own = _duplicate(number)
    if own is None:
        return ""
    with own:
        return _peer(own, port)


def _shut(number: int, port: int, source: str) -> bool:
    """Shut it down, if it is what it was a moment ago: gRPC's threads open and close meanwhile."""
    own = _duplicate(number)
    if own is None:
        return False
    with own:
        if _peer(own, port) != source:
            return False
        try:
            own.shutdown(socket.SHUT_RDWR)
        except OSError:
            return False
        return True


def _duplicate(number: int) -> socket.socket | None:
    """A descriptor of our own for the same socket: whoever closes the other one, ours stays it."""
    try:
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            return None
        return socket.socket(fileno=os.dup(number))
    except OSError:
        return None


def _peer(own: socket.socket, port: int) -> str:
    try:
        if own.family not in (socket.AF_INET, socket.AF_INET6) or own.getsockname()[1] != port:
            return ""
        address = ipaddress.ip_address(own.getpeername()[0].partition("%")[0])
    except (OSError, ValueError):
        return ""
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)
