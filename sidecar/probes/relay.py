"""Lets gRPC's library speak over a connection that we have made: with our mark, and the source that the
app is to see. The library offers neither, but connects to any socket.

The socket has no place on disk (unix(7), abstract) and a name that nobody can guess, takes one
connection, and that of our own process only.
"""

import asyncio
import contextlib
import os
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from kit.tasks import spawn, stop

_CHUNK: Final = 4096
_CREDENTIALS: Final = struct.Struct("=iII")
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def relay(connect: Callable[[], Awaitable[Streams]]) -> AsyncIterator[str]:
    """A gRPC target that leads to where `connect` leads, until the end of the block.

    If `connect` raises OSError the caller's connection ends at once.
    """
    name = f"podlink-probe-{secrets.token_hex(16)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
        listener.bind(f"\0{name}")
        listener.listen(1)
        task = spawn(_carry(listener, connect), name="gRPC probe's relay")
        try:
            yield f"unix-abstract:{name}"
        finally:
            await stop(task)


async def _carry(listener: socket.socket, connect: Callable[[], Awaitable[Streams]]) -> None:
    while True:
        sock, _ = await asyncio.get_running_loop().sock_accept(listener)
        if _pid_of(sock) == os.getpid():
            break
        sock.close()
    near_reader, near = await asyncio.open_unix_connection(sock=sock)
    with contextlib.closing(near), contextlib.suppress(OSError):
        far_reader, far = await connect()
        with contextlib.closing(far):
            back = spawn(_pump(far_reader, near), name="gRPC probe's answer")
            try:
                await _pump(near_reader, far)
                await back
            finally:
                await stop(back)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        if writer.can_write_eof():
            writer.write_eof()


def _pid_of(sock: socket.socket) -> int:
    """(SO_PEERCRED, unix(7).)"""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid: int = _CREDENTIALS.unpack(raw)[0]
    return pid
