"""What the first process of a container does, from fork to exec; and what `exec` does in one.

Runs in a child of `init`, single-threaded, so namespaces and credentials may be changed freely. The
first process stays as the container's init: it passes signals on to the app and ends with the app's
status, at which the kernel ends whatever else the app had started.
"""

import os
import resource
import signal
from pathlib import Path
from typing import NoReturn, TypedDict

from local import linux
from local.node import rootfs

START_FAILED = 128
"""The exit status of a container that could not be started, as containerd reports it."""
_FORWARDED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


class Credentials(TypedDict):
    """`uid` and `gid` are None where the user namespace maps a single one: nothing to change to."""

    uid: int | None
    gid: int | None
    groups: list[int]
    capabilities: list[str]
    ambient: list[str]
    no_new_privileges: bool


class Command(TypedDict):
    """One program to run: exec's part of a container."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    credentials: Credentials


class ContainerSpec(Command):
    """One container: a Command with the pod it joins and the files it sees."""

    pause_pid: int
    staging: str
    needed: list[str]
    mounts: list[rootfs.Mount]
    read_only_root: bool


def run(spec: ContainerSpec, stdio: tuple[int, int, int], error: int) -> NoReturn:
    """Become the container. `error` takes one line if it cannot start; it is closed when it has."""
    try:
        linux.set_process_name("container")
        for kind in (("net", linux.CLONE_NEWNET), ("uts", linux.CLONE_NEWUTS), _IPC):
            linux.enter(f"/proc/{spec['pause_pid']}/ns/{kind[0]}", kind[1])
        linux.unshare(linux.CLONE_NEWNS)
        rootfs.build(
            spec["staging"],
            spec["needed"],
            spec["mounts"],
            read_only_root=spec["read_only_root"],
        )
        app = os.fork()
    except BaseException as e:
        _give_up(error, e)
    if app == 0:
        become(spec, stdio, error)
    os.close(error)
    _stay_as_init(app)


_IPC = ("ipc", linux.CLONE_NEWIPC)


def join(first_pid: int) -> None:
    """Enter the namespaces, but for the pids, of the container that began with `first_pid`."""
    kinds = (
        _IPC,
        ("uts", linux.CLONE_NEWUTS),
        ("net", linux.CLONE_NEWNET),
        ("mnt", linux.CLONE_NEWNS),
    )
    opened = [(os.open(f"/proc/{first_pid}/ns/{n}", os.O_RDONLY), kind) for n, kind in kinds]
    for fd, kind in opened:  # opened first: after joining mnt, /proc is another one
        linux.setns(fd, kind)
        os.close(fd)


def become(command: Command, stdio: tuple[int, int, int], error: int) -> NoReturn:
    """Turn this process into the command, with its own stdio, credentials and directory."""
    try:
        os.setsid()
        for number, fd in enumerate(_above_stdio(stdio)):
            os.dup2(fd, number)
        reset_signals()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _take_on(command["credentials"])
        os.umask(0o022)
        os.chdir(command["cwd"])
        argv = command["argv"]
        try:
            os.execvpe(argv[0], argv, command["env"])
        except FileNotFoundError as e:
            raise OSError(f"{argv[0]}: {e.strerror}") from e
    except BaseException as e:
        _give_up(error, e)


def _above_stdio(stdio: tuple[int, int, int]) -> list[int]:
    """Copies of the three that cannot be overwritten while they are put in place."""
    import fcntl

    return [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in stdio]


def reset_signals() -> None:
    """Undo what Python changes at start (SIGPIPE) and what `init` handles."""
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError):
                continue  # the C library keeps two real-time signals for itself
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _take_on(credentials: Credentials) -> None:
    kept = set(credentials["capabilities"])
    linux.drop_from_bounding_set(c for c in _known() if c not in kept)
    uid, gid = credentials["uid"], credentials["gid"]
    if uid is not None and gid is not None:
        linux.keep_capabilities_over_setuid()
        os.setgroups(credentials["groups"])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    linux.set_capabilities(kept, ambient=credentials["ambient"])
    if credentials["no_new_privileges"]:
        linux.forbid_new_privileges()


def _known() -> list[str]:
    """The capabilities this kernel has; dropping a newer one would be an error."""
    try:
        last = Path("/proc/sys/kernel/cap_last_cap").read_text()
        return linux.CAPABILITIES[: int(last) + 1]
    except OSError:
        return linux.CAPABILITIES


def _stay_as_init(app: int) -> NoReturn:
    for number in _FORWARDED:
        signal.signal(number, lambda received, _: _pass_on(app, received))
    os.closerange(3, 65536)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    # It shares its pids with the app: all it may do is to signal it, whatever user that is.
    linux.drop_from_bounding_set(_known())
    linux.set_capabilities(["KILL"])
    linux.forbid_new_privileges()
    while True:
        pid, status = os.wait()
        if pid == app:
            os._exit(exit_code(status))


def _pass_on(app: int, number: int) -> None:
    try:
        os.kill(app, number)
    except ProcessLookupError:
        return


def exit_code(status: int) -> int:
    """A wait status as the shell and the kubelet count it: 128 + signal for a violent end."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _give_up(error: int, cause: BaseException) -> NoReturn:
    text = f"{type(cause).__name__}: {cause}" if not isinstance(cause, OSError) else str(cause)
    try:
        os.write(error, text.splitlines()[0].encode()[:1000])
    finally:
        os._exit(START_FAILED)
