"""The first process of the cluster: starts the daemon, forks pods and containers, reaps everything.

When it ends, the kernel ends every process of the cluster and with them its namespaces, mounts,
links and rules. So it is small, has one thread and imports little: a fork of it costs a millisecond
and little memory, where starting an interpreter per container would cost fifty.

The daemon talks to it over a SOCK_SEQPACKET pair (`spawner`): a request is one packet of JSON, its
descriptors by SCM_RIGHTS; an answer is {"id", "pid"} or {"id", "error"}; an end of a process is
{"exit": pid, "code": n}.
"""

import array
import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from local import linux
from local.node import container

MAX_PACKET = 65536
_MAX_FDS = 8


class Init:
    """Serves the daemon behind `wire` until that daemon, `daemon_pid`, ends."""

    def __init__(self, wire: socket.socket, daemon_pid: int, lifeline: int) -> None:
        self._wire, self._daemon, self._lifeline = wire, daemon_pid, lifeline
        self._own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._woken, waker = socket.socketpair()
        self._woken.setblocking(False)
        waker.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._ask_daemon_to_end())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        self._waker = waker

    def serve(self) -> int:
        """Run until the daemon ends; returns its exit status."""
        poller = select.poll()
        for fd in (self._wire.fileno(), self._woken.fileno(), self._lifeline):
            poller.register(fd, select.POLLIN)
        while True:
            for fd, _ in poller.poll():
                if fd == self._woken.fileno():
                    with suppress(BlockingIOError):
                        self._woken.recv(4096)
                elif fd == self._wire.fileno():
                    self._answer()
                elif fd == self._lifeline:
                    return 1  # the supervisor is gone
            if (ended := self._reap()) is not None:
                return ended

    def _ask_daemon_to_end(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._daemon, signal.SIGTERM)

    def _reap(self) -> int | None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return 1
            if pid == 0:
                return None
            if pid == self._daemon:
                return container.exit_code(status)
            self._send({"exit": pid, "code": container.exit_code(status)})

    def _answer(self) -> None:
        data, fds = _receive(self._wire)
        if not data:
            return
        asked = json.loads(data)
        try:
            pid = self._act(asked, fds)
            self._send({"id": asked["id"], "pid": pid})
        except OSError as e:
            self._send({"id": asked["id"], "error": str(e)})
        finally:
            for fd in fds:
                os.close(fd)

    def _act(self, asked: dict[str, Any], fds: list[int]) -> int:
        if asked["do"] == "pause":
            return self._pause(asked["hostname"], asked["on_host"])
        with os.fdopen(os.dup(fds[0]), "rb") as f:
            f.seek(0)
            spec = json.load(f)
        stdio, error = (fds[1], fds[2], fds[3]), fds[4]
        if asked["do"] == "run":
            linux.unshare(linux.CLONE_NEWPID)
        elif asked["inside"] is not None:
            linux.enter(f"/proc/{asked['inside']}/ns/pid", linux.CLONE_NEWPID)
        pid = os.fork()
        if pid == 0:
            _become(asked, spec, stdio, error)
        linux.setns(self._own_pids, linux.CLONE_NEWPID)  # what is forked next is the node's
        return pid

    def _pause(self, hostname: str, on_host: bool) -> int:
        """Fork the process that holds a pod's network, host name and shared memory."""
        ready, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            _hold_pod(hostname, on_host, tell)
        os.close(tell)
        said = os.read(ready, 1000)
        os.close(ready)
        if said != b"ok":
            raise OSError(f"cannot make a pod's namespaces: {said.decode()}")
        return pid

    def _send(self, message: dict[str, Any]) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            self._wire.send(json.dumps(message).encode())


def _become(asked: dict[str, Any], spec: Any, stdio: tuple[int, int, int], error: int) -> NoReturn:
    """Be the container or the command that was asked for; `spec` is the daemon's own."""
    signal.set_wakeup_fd(-1)
    if asked["do"] == "run":
        container.run(spec, stdio, error)
    try:
        if asked["inside"] is not None:
            container.join(asked["inside"])
    except OSError as e:
        os.write(error, str(e).encode())
        os._exit(container.START_FAILED)
    container.become(spec, stdio, error)


def _hold_pod(hostname: str, on_host: bool, tell: int) -> NoReturn:
    try:
        signal.set_wakeup_fd(-1)
        container.reset_signals()
        linux.set_process_name("pause")
        network = 0 if on_host else linux.CLONE_NEWNET
        linux.unshare(network | linux.CLONE_NEWUTS | linux.CLONE_NEWIPC)
        socket.sethostname(hostname)
        for name, value in () if on_host else _POD_SYSCTLS.items():
            with suppress(FileNotFoundError):
                Path(f"/proc/sys/net/{name}").write_text(value)
        os.write(tell, b"ok")
        os.closerange(3, 65536)
    except OSError as e:
        os.write(tell, str(e).encode()[:900])
        os._exit(1)
    while True:
        signal.pause()


_POD_SYSCTLS = {
    "ipv4/ip_unprivileged_port_start": "0",
    "ipv4/conf/all/accept_redirects": "0",
    "ipv4/conf/default/accept_redirects": "0",
    "ipv6/conf/all/accept_redirects": "0",
    "ipv6/conf/default/accept_redirects": "0",
    "ipv6/conf/default/accept_ra": "0",
    "ipv6/conf/default/accept_dad": "0",
}


def _receive(wire: socket.socket) -> tuple[bytes, list[int]]:
    fds = array.array("i")
    data, ancillary, _, _ = wire.recvmsg(MAX_PACKET, socket.CMSG_SPACE(_MAX_FDS * fds.itemsize))
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    for fd in fds:
        os.set_inheritable(fd, False)
    return data, list(fds)


def main(daemon_argv: list[str], env: dict[str, str], keep: list[int], lifeline: int) -> NoReturn:
    """Start the daemon with one end of the wire as its last argument, then serve it for good."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        for fd in (*keep, theirs.fileno()):
            os.set_inheritable(fd, True)
        container.reset_signals()
        argv = [*daemon_argv, str(theirs.fileno())]
        os.execve(sys.executable, argv, env)
    theirs.close()
    for fd in keep:
        os.close(fd)
    linux.set_process_name("podlink-init")
    os._exit(Init(ours, pid, lifeline).serve())
