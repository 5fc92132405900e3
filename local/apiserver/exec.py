"""`pods/<name>/exec` over WebSocket, as the real API server and kubelet speak it.

Each binary message begins with its channel: 0 stdin, 1 stdout, 2 stderr, 3 the final status as
JSON, 4 the terminal's size. `v5.channel.k8s.io` adds 255, by which the caller closes a channel
(KEP-4006). When the caller goes away its command is not killed: its input ends and its output breaks, as
containerd does it.
"""

import asyncio
import fcntl
import json
import os
import struct
import termios
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from aiohttp import WSMsgType, web

from kit.tasks import spawn, stop
from local.errors import ApiError, LocalError
from local.objects import Object

PROTOCOLS: Final = ("v5.channel.k8s.io", "v4.channel.k8s.io")
_STDIN, _STDOUT, _STDERR, _STATUS, _RESIZE, _CLOSE = 0, 1, 2, 3, 4, 255
_CHUNK: Final = 32768


class Running(Protocol):
    @property
    def ended(self) -> "asyncio.Future[int]": ...

    def send(self, number: int) -> None: ...


class Commands(Protocol):
    """Whoever can start a command in a container; the kubelet. Raises LocalError."""

    async def start_command(
        self, pod: Object, container: str, argv: Sequence[str], stdio: tuple[int, int, int]
    ) -> Running: ...


@dataclass(frozen=True, slots=True)
class _Asked:
    argv: list[str]
    container: str
    stdin: bool
    tty: bool


async def serve(request: web.Request, pod: Object, commands: Commands) -> web.StreamResponse:
    """One command, from upgrade to status. Raises ApiError before the upgrade only."""
    asked = _read(request)
    _check_container(pod, asked.container)
    socket = web.WebSocketResponse(protocols=PROTOCOLS, max_msg_size=1 << 20, heartbeat=30.0)
    if not socket.can_prepare(request).ok:
        raise ApiError(400, "BadRequest", "exec: a WebSocket upgrade is needed; SPDY is not spoken")
    await socket.prepare(request)
    try:
        status = await _run(socket, pod, commands, asked)
        await socket.send_bytes(bytes((_STATUS,)) + json.dumps(status).encode())
    except ConnectionError:
        pass  # the caller has gone
    await socket.close()
    return socket


def _read(request: web.Request) -> _Asked:
    query = request.query
    argv = query.getall("command", [])
    if not argv:
        raise ApiError(400, "BadRequest", "you must specify at least one command for the container")
    return _Asked(argv, query.get("container", ""), _true(query, "stdin"), _true(query, "tty"))


def _check_container(pod: Object, name: str) -> None:
    spec = pod["spec"]
    known = [c["name"] for c in (*spec["containers"], *(spec.get("initContainers") or ()))]
    if name and name not in known:
        where = pod["metadata"]["name"]
        raise ApiError(400, "BadRequest", f"container {name} is not valid for pod {where}")


def _true(query: Any, name: str) -> bool:
    return query.get(name, "") in ("true", "1")


async def _run(
    socket: web.WebSocketResponse, pod: Object, commands: Commands, asked: _Asked
) -> Object:
    pipes = _Terminal() if asked.tty else _Pipes()
    try:
        try:
            process = await commands.start_command(pod, asked.container, asked.argv, pipes.theirs)
        finally:
            pipes.close_theirs()
        if not asked.stdin:
            pipes.end_stdin()
        senders = [
            spawn(_send(socket, channel, fd), name="exec output") for channel, fd in pipes.outputs
        ]
        heard = spawn(_hear(socket, pipes), name="exec input")
        try:
            awaited: set[asyncio.Future[Any]] = {process.ended, heard}
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            if not process.ended.done():
                return {}  # nobody is there to be told
            code = await process.ended
            await asyncio.wait(senders, timeout=2.0)  # a child may hold them open
        finally:
            await stop(heard, *senders)
    except LocalError as e:
        return _failed("InternalError", f"error executing command in container: {e}")
    finally:
        pipes.close()
    return _status(code)


async def _send(socket: web.WebSocketResponse, channel: int, fd: int) -> None:
    loop = asyncio.get_running_loop()
    os.set_blocking(fd, False)
    with suppress(ConnectionError, OSError):  # a terminal's end is EIO
        while True:
            await _until(loop.add_reader, loop.remove_reader, fd)
            with suppress(BlockingIOError):
                chunk = os.read(fd, _CHUNK)
                if not chunk:
                    return
                await socket.send_bytes(bytes((channel,)) + chunk)


async def _until(
    add: Callable[[int, Callable[[], None]], None], remove: Callable[[int], bool], fd: int
) -> None:
    """Until the loop says that `fd` may be read or written."""
    ready = asyncio.Event()
    add(fd, ready.set)
    try:
        await ready.wait()
    finally:
        remove(fd)


async def _hear(socket: web.WebSocketResponse, pipes: "_Pipes | _Terminal") -> None:
    """Until the caller goes away."""
    async for message in socket:
        if message.type is not WSMsgType.BINARY or not message.data:
            continue
        channel, data = message.data[0], message.data[1:]
        if channel == _STDIN:
            await pipes.write(data)
        elif channel == _RESIZE:
            pipes.resize(data)
        elif channel == _CLOSE and data == bytes((_STDIN,)):
            pipes.end_stdin()


class _Pipes:
    """Three pipes; ours are the far ends of the command's stdin, stdout and stderr."""

    def __init__(self) -> None:
        stdin, self._stdin = os.pipe2(os.O_CLOEXEC)
        self._stdout, stdout = os.pipe2(os.O_CLOEXEC)
        self._stderr, stderr = os.pipe2(os.O_CLOEXEC)
        self.theirs = (stdin, stdout, stderr)
        self.outputs = ((_STDOUT, self._stdout), (_STDERR, self._stderr))

    def close_theirs(self) -> None:
        for fd in self.theirs:
            os.close(fd)

    async def write(self, data: bytes) -> None:
        if self._stdin >= 0:
            await _write_all(self._stdin, data)

    def end_stdin(self) -> None:
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1

    def resize(self, size: bytes) -> None:
        """Pipes have none."""

    def close(self) -> None:
        self.end_stdin()
        for fd in (self._stdout, self._stderr):
            os.close(fd)


class _Terminal:
    """One pseudo-terminal for all three, without job control."""

    def __init__(self) -> None:
        self._ours, theirs = os.openpty()
        self.theirs = (theirs, theirs, theirs)
        self.outputs = ((_STDOUT, self._ours),)

    def close_theirs(self) -> None:
        os.close(self.theirs[0])

    async def write(self, data: bytes) -> None:
        await _write_all(self._ours, data)

    def end_stdin(self) -> None:
        """A terminal's input ends with ^D, which the caller sends itself."""

    def resize(self, size: bytes) -> None:
        with suppress(ValueError, KeyError, TypeError, struct.error, OSError):
            asked = json.loads(size)
            packed = struct.pack("HHHH", asked["Height"], asked["Width"], 0, 0)
            fcntl.ioctl(self._ours, termios.TIOCSWINSZ, packed)

    def close(self) -> None:
        os.close(self._ours)


async def _write_all(fd: int, data: bytes) -> None:
    loop = asyncio.get_running_loop()
    own = os.dup(fd)  # the loop watches a descriptor for one purpose, and a terminal has two
    os.set_blocking(own, False)
    try:
        while data:
            try:
                data = data[os.write(own, data) :]
            except BlockingIOError:
                await _until(loop.add_writer, loop.remove_writer, own)
    except OSError:
        pass  # the command has ended, or closed its stdin
    finally:
        os.close(own)


def _status(code: int) -> Object:
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    failed = _failed("NonZeroExitCode", f"command terminated with non-zero exit code: {code}")
    causes = [{"reason": "ExitCode", "message": str(code)}]
    return {**failed, "details": {"causes": causes}}


def _failed(reason: str, message: str) -> Object:
    return {"metadata": {}, "status": "Failure", "reason": reason, "message": message}
