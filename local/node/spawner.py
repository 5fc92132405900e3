"""The daemon's wire to `init`: start pods, containers and commands, and learn how they ended."""

import asyncio
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from local.errors import LocalError
from local.node.container import Command, ContainerSpec
from local.node.init import MAX_PACKET

_MAX_ERROR = 1024


class SpawnFailed(LocalError):
    """A container could not be started; the message is what its first process had to say."""

    reason = "container_start_failed"


@dataclass(frozen=True, slots=True)
class Process:
    """A running process: `ended` resolves to its exit status (128 + signal for a violent end)."""

    pid: int
    ended: "asyncio.Future[int]"

    def send(self, number: int) -> None:
        """Send a signal; nothing happens if it has ended."""
        if not self.ended.done():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return


class Spawner:
    """Asks `init` to fork. Use from the loop that made it."""

    def __init__(self, fd: int) -> None:
        self._wire = socket.socket(fileno=fd)
        self._wire.setblocking(False)
        self._next_id = 0
        self._asked: dict[int, asyncio.Future[Process]] = {}
        self._running: dict[int, asyncio.Future[int]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._wire.fileno(), self._hear)

    def close(self) -> None:
        self._loop.remove_reader(self._wire.fileno())
        self._wire.close()

    async def pause(self, hostname: str, on_host: bool) -> Process:
        """Make a pod's namespaces, held by the process that is returned. `on_host`: its network is the
        node's own."""
        return await self._ask({"do": "pause", "hostname": hostname, "on_host": on_host}, [])

    async def run(self, spec: ContainerSpec, stdio: Sequence[int]) -> Process:
        """Start a container; returns once its program runs. Raises SpawnFailed."""
        return await self._start({"do": "run"}, spec, stdio)

    async def run_inside(
        self, command: Command, stdio: Sequence[int], inside: int | None
    ) -> Process:
        """Start a command in the container whose first pid is `inside`, or on the node."""
        return await self._start({"do": "exec", "inside": inside}, command, stdio)

    async def _start(self, request: dict[str, Any], spec: Command, stdio: Sequence[int]) -> Process:
        described = os.memfd_create("spec", os.MFD_CLOEXEC)
        said, error = os.pipe()
        try:
            with os.fdopen(os.dup(described), "wb") as f:
                f.write(json.dumps(spec).encode())
            process = await self._ask(request, [described, *stdio, error])
        finally:
            os.close(described)
            os.close(error)
        complaint = await self._read_all(said)
        if complaint:
            await process.ended
            raise SpawnFailed(complaint.decode("utf-8", "replace"))
        return process

    async def _read_all(self, fd: int) -> bytes:
        """What is said until every holder of the other end has exec'ed or ended."""
        os.set_blocking(fd, False)
        said, done = bytearray(), self._loop.create_future()

        def hear() -> None:
            try:
                chunk = os.read(fd, _MAX_ERROR)
            except BlockingIOError:
                return
            said.extend(chunk)
            if not chunk and not done.done():
                done.set_result(None)

        self._loop.add_reader(fd, hear)
        try:
            await done
        finally:
            self._loop.remove_reader(fd)
            os.close(fd)
        return bytes(said)

    async def _ask(self, request: dict[str, Any], fds: Sequence[int]) -> Process:
        self._next_id += 1
        answered: asyncio.Future[Process] = self._loop.create_future()
        self._asked[self._next_id] = answered
        packet = json.dumps({"id": self._next_id, **request}).encode()
        while True:
            try:
                socket.send_fds(self._wire, [packet], list(fds))
                break
            except BlockingIOError:
                await asyncio.sleep(0.002)  # init is busy forking
        return await answered

    def _hear(self) -> None:
        while True:
            try:
                data = self._wire.recv(MAX_PACKET)
            except BlockingIOError:
                return
            if not data:
                return
            self._take(json.loads(data))

    def _take(self, message: dict[str, Any]) -> None:
        if "exit" in message:
            ended = self._running.pop(message["exit"], None)
            if ended is not None and not ended.done():
                ended.set_result(message["code"])
            return
        answered = self._asked.pop(message["id"])
        if "error" in message:
            answered.set_exception(SpawnFailed(message["error"]))
        else:
            # Made here, not by the one who asked: the end may come in the very next packet.
            process = Process(message["pid"], self._loop.create_future())
            self._running[process.pid] = process.ended
            answered.set_result(process)
