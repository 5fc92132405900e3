"""The daemon's end of the control socket: commands with the caller's own stdio.

One request per connection: a line of JSON, with three descriptors for an exec; one line back. When
the caller goes away, its command is killed.
"""

import array
import asyncio
import json
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from kit.tasks import spawn
from local.errors import ApiError, LocalError
from local.linux import CAPABILITIES
from local.node.container import Command
from local.node.environment import PATH, SOURCE_ROOT, interpreted
from local.node.kubelet import Kubelet
from local.node.spawner import Process, Spawner, SpawnFailed

_MAX_REQUEST = 1 << 16
_FDS = 3


class Control:
    """Serves exec and node exec."""

    def __init__(self, listener: socket.socket, spawner: Spawner, kubelet: Kubelet) -> None:
        self._listener, self._spawner, self._kubelet = listener, spawner, kubelet
        self._listener.setblocking(False)

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._listener)
            spawn(self._take(connection), name="control")

    async def _take(self, connection: socket.socket) -> None:
        with connection:
            connection.setblocking(False)
            fds: list[int] = []
            try:
                request, fds = await _receive(connection)
                answer = await self._act(request, fds, connection)
            except (LocalError, KeyError, ValueError, TypeError) as e:
                reason = e.reason if isinstance(e, LocalError) else "bad_request"
                answer = {"error": str(e), "reason": reason}
            finally:
                for fd in fds:
                    os.close(fd)
            with suppress(OSError):
                await asyncio.get_running_loop().sock_sendall(
                    connection, json.dumps(answer).encode() + b"\n"
                )

    async def _act(
        self, request: dict[str, Any], fds: list[int], connection: socket.socket
    ) -> dict[str, Any]:
        if len(fds) != _FDS:
            raise ValueError("an exec needs stdin, stdout and stderr")
        argv = [str(word) for word in request["argv"]]
        where = "the node"
        if request["do"] == "node-exec":
            start: Callable[[], Awaitable[Process]] = lambda: self._spawner.run_inside(  # noqa: E731
                _node_command(argv), fds, None
            )
        else:
            container = self._kubelet.container(
                request["namespace"], request["pod"], request.get("container", "")
            )
            process = container.process
            if process is None:
                raise ApiError(
                    409, "NotRunning", f"container {container.spec['name']!r} is not running"
                )
            pid = process.pid
            where = (
                f"container {container.spec['name']!r} of {request['namespace']}/{request['pod']}"
            )
            start = lambda: self._spawner.run_inside(container.command(argv), fds, pid)  # noqa: E731
        try:
            running = await start()
        except SpawnFailed as e:
            raise SpawnFailed(f"{where} cannot run {e}") from e
        return {"exit": await _until_done(running, connection)}


async def _until_done(process: Process, connection: socket.socket) -> int:
    """Wait for the command; a caller that hangs up takes it along."""
    loop = asyncio.get_running_loop()
    gone = spawn(loop.sock_recv(connection, 1), name="exec caller")
    ended: asyncio.Future[Any] = process.ended
    awaited: set[asyncio.Future[Any]] = {gone, ended}
    try:
        await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        if not process.ended.done():
            process.send(signal.SIGKILL)
        return await process.ended
    finally:
        gone.cancel()


def _node_command(argv: list[str]) -> Command:
    return {
        "argv": interpreted(argv),
        "env": {"PATH": PATH, "HOME": "/", "LANG": "C.UTF-8", "PYTHONPATH": str(SOURCE_ROOT)},
        "cwd": "/",
        "credentials": {
            "uid": None,
            "gid": None,
            "groups": [],
            "capabilities": list(CAPABILITIES),
            "ambient": [],
            "no_new_privileges": False,
        },
    }


async def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()

    def hear() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(connection.fileno(), hear)
    try:
        async with asyncio.timeout(10):
            await readable
    finally:
        loop.remove_reader(connection.fileno())
    fds = array.array("i")
    space = socket.CMSG_SPACE(_FDS * fds.itemsize)
    data, ancillary, _, _ = connection.recvmsg(_MAX_REQUEST, space)
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    while not data.endswith(b"\n"):
        more = await loop.sock_recv(connection, _MAX_REQUEST)
        if not more:
            raise ValueError("the request ended early")
        data += more
    return json.loads(data), list(fds)
