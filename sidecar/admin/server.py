"""HTTP on the unix socket of the proxy's own volume, for the proxy's own user alone.

Three locks, one behind the other: the volume is mounted into no other container (the injector
refuses pods that try), the socket has mode 0600, and the kernel's word for who connected must be our
own UID (SO_PEERCRED, unix(7)). The last one holds even if somebody loosens the other two.
"""

import asyncio
import contextlib
import logging
import os
import socket
import struct
from pathlib import Path
from typing import Final

from sidecar.pages import Routes

_MODE: Final = 0o600
_UCRED: Final = struct.Struct("3i")  # pid, uid, gid
_log = logging.getLogger(__name__)


class AdminServer:
    """Serves `routes` on the socket at `path`, from `start` to `close`."""

    def __init__(self, path: Path) -> None:
        self.routes = Routes()
        self._path = path
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Raises OSError naming the path. A socket that a crashed proxy left behind is replaced."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
            sock.bind(str(self._path))
            self._path.chmod(_MODE)  # before anybody can connect: it does not listen yet
        except OSError as e:
            sock.close()
            raise OSError(
                e.errno, f"cannot make the admin socket {self._path}: {e.strerror}"
            ) from e
        self._server = await asyncio.start_unix_server(self._connected, sock=sock)

    async def close(self) -> None:
        if self._server is None:
            return
        self._server.close()
        await self.routes.close()
        with contextlib.suppress(OSError):
            self._path.unlink()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        uid = peer_uid(writer.get_extra_info("socket"))
        if uid != os.geteuid():
            _log.warning("a stranger at the admin socket was turned away", extra={"uid": uid})
            writer.close()
            return
        await self.routes.serve(reader, writer)


def peer_uid(sock: socket.socket) -> int:
    """The UID that the process at the other end had when it connected."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    uid: int = _UCRED.unpack(raw)[1]
    return uid
