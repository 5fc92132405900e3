"""Ports of the host's 127.0.0.1 that lead to a Service in the cluster, byte for byte."""

import asyncio
import random
import socket
from contextlib import suppress

from kit.tasks import spawn
from local.apiserver.forward import endpoints
from local.apiserver.store import Store
from local.errors import ApiError

_CHUNK_BYTES = 65536


async def publish(listener: socket.socket, target: str, store: Store) -> None:
    """Accept on `listener` and forward to `target`, "namespace/service:port", until the end."""
    namespace, _, rest = target.partition("/")
    service, _, port = rest.partition(":")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            address, number = random.choice(endpoints(store, namespace, service, port))
            far_reader, far_writer = await asyncio.open_connection(address, number)
        except (ApiError, IndexError, OSError):
            writer.transport.abort()  # nobody is there: the caller sees a reset, as with no proxy
            return
        async with asyncio.TaskGroup() as both:
            both.create_task(_copy(reader, far_writer))
            both.create_task(_copy(far_reader, writer))
        writer.close()
        far_writer.close()

    def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        spawn(serve(reader, writer), name=f"published {target}")

    await asyncio.start_server(take, sock=listener)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
