"""Holds one cluster: opens the host's sockets, makes the namespaces, cleans up in every case.

Started as `python -m local.supervisor <plan as JSON>`. Three processes, each dying with its parent:

    supervisor   in the host's namespaces; owns the state directory; its end is the cluster's end
      keeper     in new user, network, mount, UTS and IPC namespaces; waits for init, then tidies up
        init     first of a new pid namespace (`local.node.init`); the daemon, pods, all below it

The keeper survives a killed supervisor just long enough to end init and remove the state directory;
should it be killed as well, the kernel still ends init and so everything in the pid namespace.
"""

import json
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn

from local import linux, permission, userns
from local.errors import LocalError, Unusable
from local.node import init
from local.state import StateDir

SOURCE_ROOT = Path(__file__).resolve().parent.parent
RELEASE = b"r"
_READY_BYTES = 4096
_ENDINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the launcher asks for.

    `report_fd` takes one line, `{"ready": ...}` or `{"error": ...}`; `tied_fd` is the read end of a
    pipe whose end-of-file ends the cluster, unless RELEASE came before. `publish` maps a port of
    the host's 127.0.0.1 to "namespace/service:port".
    """

    name: str
    report_fd: int
    tied_fd: int
    publish: dict[str, str] = field(default_factory=dict)


def main(argv: Sequence[str]) -> int:
    plan = Plan(**json.loads(argv[1]))
    try:
        return _hold(plan)
    except LocalError as e:
        _report(plan.report_fd, {"error": str(e), "reason": e.reason})
        return 1


def _hold(plan: Plan) -> int:
    state = StateDir.of(plan.name)
    # Who is told to end while the parts are made does so when somebody can tidy up: see _watch.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDINGS)
    lock = state.claim()
    try:
        _log_to(state)
        sockets = {"api": _listen(0)}
        for port, target in plan.publish.items():
            sockets[target] = _listen(int(port))
        sockets["control"] = _control_socket(state)
        maps = userns.plan()
        said, ready = os.pipe()
        keeper, maps = _start_keeper(state, maps, sockets, ready)
        os.close(ready)
        for held in sockets.values():
            held.close()
        return _watch(plan, state, keeper, said, single_uid=maps.single)
    finally:
        state.remove()
        os.close(lock)


def _watch(plan: Plan, state: StateDir, keeper: int, said: int, *, single_uid: bool) -> int:
    """Pass on what the daemon says at start, then wait for the end of the cluster."""

    def end(*_: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(keeper, signal.SIGTERM)

    for number in _ENDINGS:
        signal.signal(number, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDINGS)
    ended = os.pidfd_open(keeper)
    poller = select.poll()
    for fd in (ended, said, plan.tied_fd):
        poller.register(fd, select.POLLIN | select.POLLHUP)
    told = False
    while True:
        for fd, _ in poller.poll():
            if fd == said:
                poller.unregister(said)
                answer = _read_answer(said)
                if "ready" in answer:
                    told = True
                    facts = {
                        "name": plan.name,
                        "supervisor_pid": os.getpid(),
                        "single_uid": single_uid,
                        **answer["ready"],
                    }
                    _write_private(state.facts_file, json.dumps(facts))
                    _report(plan.report_fd, {"ready": facts})
                elif answer:
                    told = True
                    _report(plan.report_fd, answer)
            elif fd == ended:
                _, status = os.waitpid(keeper, 0)
                if not told:
                    _report(plan.report_fd, {"error": _last_line(state.log)})
                return os.waitstatus_to_exitcode(status)
            else:
                poller.unregister(plan.tied_fd)
                if os.read(plan.tied_fd, 1) != RELEASE:  # the launcher is gone
                    end()


def _read_answer(said: int) -> dict[str, dict[str, object]]:
    data = b""
    while chunk := os.read(said, _READY_BYTES):
        data += chunk
    answer: dict[str, dict[str, object]] = json.loads(data) if data else {}
    return answer


def _start_keeper(
    state: StateDir, maps: userns.IdMaps, sockets: dict[str, socket.socket], ready: int
) -> tuple[int, userns.IdMaps]:
    """Fork the keeper and write its id maps; returns its pid and the maps. Raises Unusable."""
    told, tell = os.pipe()
    go_read, go_write = os.pipe()
    supervisor = os.getpid()
    lifeline_read, lifeline_write = os.pipe()  # write end: this process and nobody else
    keeper = os.fork()
    if keeper == 0:
        os.close(lifeline_write)
        os.close(go_write)
        try:
            _keep(state, sockets, ready, tell, go_read, lifeline_read, supervisor)
        except BaseException as e:
            os.write(tell, f"{e}".encode()[:900])
            os._exit(1)
    os.close(tell)
    os.close(go_read)
    os.close(lifeline_read)
    answer = os.read(told, 1000)
    os.close(told)
    if answer not in (b"mapped", b"unmapped"):
        os.waitpid(keeper, 0)
        raise Unusable(
            f"{permission.remedy(permission.observe())} ({answer.decode('utf-8', 'replace')[:300]})"
        )
    try:
        if answer == b"mapped":
            maps = maps.write(keeper)
        os.write(go_write, b"go")
    except LocalError:
        os.kill(keeper, signal.SIGKILL)
        os.waitpid(keeper, 0)
        raise
    finally:
        os.close(go_write)
    return keeper, maps


def _keep(
    state: StateDir,
    sockets: dict[str, socket.socket],
    ready: int,
    tell: int,
    go: int,
    lifeline: int,
    supervisor: int,
) -> NoReturn:
    linux.set_process_name("podlink-keeper")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    others = linux.CLONE_NEWNET | linux.CLONE_NEWNS | linux.CLONE_NEWUTS | linux.CLONE_NEWIPC
    mapped = _unshare(others)
    os.write(tell, b"mapped" if mapped else b"unmapped")
    os.close(tell)
    if os.read(go, 2) != b"go":
        os._exit(1)
    os.close(go)
    if mapped:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    linux.unshare(linux.CLONE_NEWPID)
    first = os.fork()
    if first == 0:
        linux.die_with_parent(signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDINGS)
        _become_init(state, sockets, ready, lifeline)

    def end(*_: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(first, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDINGS)
    linux.die_with_parent(signal.SIGTERM)
    os.close(lifeline)
    os.close(ready)
    for held in sockets.values():
        held.close()
    if os.getppid() != supervisor:
        end()
    _, status = os.waitpid(first, 0)  # returns when the last process of the pid namespace is gone
    if os.getppid() != supervisor:
        # Nobody else is left to do it. The node's tmpfs lies in this process's namespace as well.
        with suppress(OSError):
            linux.unmount(str(state.node))
        state.remove()
    code = os.waitstatus_to_exitcode(status)
    os._exit(0 if code in (0, -signal.SIGKILL) else 1)


def _unshare(others: int) -> bool:
    """Enter new namespaces; returns whether a user namespace is among them."""
    root = os.geteuid() == 0
    try:
        # Within a user namespace there is no new /proc where parts of the old one are hidden.
        if not (root and permission.observe().masked_proc):
            linux.unshare(linux.CLONE_NEWUSER | others)
            return True
    except OSError:
        if not root:
            raise
    linux.unshare(others)  # root on a machine without user namespaces
    return False


def _mount_proc(ready: int) -> None:
    try:
        linux.mount("proc", "/proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    except PermissionError as e:
        # A container that hides parts of /proc: mount_namespaces(7), "mount point restrictions".
        _report(
            ready, {"error": permission.remedy(permission.observe()), "reason": Unusable.reason}
        )
        raise SystemExit(str(e)) from e


def _become_init(
    state: StateDir, sockets: dict[str, socket.socket], ready: int, lifeline: int
) -> NoReturn:
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
    _mount_proc(ready)
    linux.mount("tmpfs", str(state.node), "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=755")
    fds = {name: held.detach() for name, held in sockets.items()}
    plan = {"state": str(state.root), "name": state.name, "sockets": fds, "ready": ready}
    # -P: the directory it was started from must not become a place to import from.
    argv = [sys.executable, "-P", "-m", "local.node.daemon", json.dumps(plan)]
    env = {
        "PYTHONPATH": str(SOURCE_ROOT),
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/",
        "LANG": "C.UTF-8",
    }
    init.main(argv, env, [*fds.values(), ready], lifeline)


def _listen(port: int) -> socket.socket:
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind(("127.0.0.1", port))
    except OSError as e:
        raise Unusable(f"cannot listen on 127.0.0.1:{port}: {e.strerror}") from e
    held.listen(128)
    return held


def _control_socket(state: StateDir) -> socket.socket:
    held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    here = Path.cwd()
    try:
        # A socket's whole path must fit into 108 bytes; its name alone always does.
        os.chdir(state.root)
        held.bind(state.control_socket.name)
    finally:
        os.chdir(here)
    state.control_socket.chmod(0o600)
    held.listen(16)
    return held


def _log_to(state: StateDir) -> None:
    fd = os.open(state.log, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for number, source in ((0, null), (1, fd), (2, fd)):
        os.dup2(source, number)


def _write_private(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text(text)
    new.replace(path)


def _report(fd: int, message: object) -> None:
    with suppress(OSError):
        os.write(fd, json.dumps(message).encode() + b"\n")
        os.close(fd)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return next((line[:500] for line in reversed(lines) if line.strip()), "it ended at once")


def launch_argument(plan: Plan) -> str:
    return json.dumps(asdict(plan))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
