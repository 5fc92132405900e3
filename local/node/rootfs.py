"""Builds the file system that a container sees: a tmpfs with the host's programs, read-only.

Nothing of the host can be written to, root or not, and home directories are not there at all,
except for the interpreter and podlink's own packages, which may well lie below one. A mount path
that does not exist is made, without touching the host: the nearest read-only directory is replaced
by a tmpfs that binds each of its entries (`_mirror`).
"""

import os
from contextlib import suppress
from typing import TypedDict

from local import linux

_OLD = "/.old"
_SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "opt", "nix", "gnu")
_WRITABLE = {"/run": "755", "/tmp": "1777", "/var": "755"}
"""Directories of the container's own, with their modes."""
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


class Mount(TypedDict):
    """One thing to bind: `source` as the node sees it, `target` as the container does."""

    source: str
    target: str
    read_only: bool


def build(staging: str, needed: list[str], mounts: list[Mount], *, read_only_root: bool) -> None:
    """Make this process's root a container's. Needs a mount namespace of its own.

    `staging` is any empty directory; `needed` are paths shown read-only at the same place; a target
    ending in a file shows a file.
    """
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
    flags = linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("tmpfs", staging, "tmpfs", flags, "mode=755,size=256m")
    os.umask(0o022)
    os.mkdir(staging + _OLD)
    linux.pivot_root(staging, staging + _OLD)
    os.chdir("/")
    for name in _SYSTEM:
        _show_system(name)
    for directory, mode in _WRITABLE.items():
        os.mkdir(directory)
        linux.mount("tmpfs", directory, "tmpfs", flags, f"mode={mode},size=256m")
    _fill_var()
    for path in needed:
        if not os.path.exists(path):
            _place({"source": path, "target": path, "read_only": True})
    _mount_devices()
    _mount_kernel("proc", "/proc", 0)
    _mount_kernel("sysfs", "/sys", linux.MS_RDONLY)
    for wanted in sorted(mounts, key=lambda m: m["target"].count("/")):
        _place(wanted)
    linux.unmount(_OLD)
    os.rmdir(_OLD)
    if read_only_root:
        remount = linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | flags
        volumes = {os.path.realpath(m["target"]) for m in mounts}
        for directory in {"/", *_WRITABLE} - volumes:
            linux.mount(None, directory, None, remount)


def _show_system(name: str) -> None:
    old, new = f"{_OLD}/{name}", f"/{name}"
    if os.path.islink(old):
        os.symlink(os.readlink(old), new)
    elif os.path.isdir(old):
        os.mkdir(new)
        linux.bind(old, new)
        linux.make_read_only(new)


def _fill_var() -> None:
    os.symlink("/run", "/var/run")
    os.symlink("/run/lock", "/var/lock")
    for name, mode in (("tmp", 0o1777), ("log", 0o777), ("lib", 0o755), ("cache", 0o777)):
        os.mkdir(f"/var/{name}")
        os.chmod(f"/var/{name}", mode)


def _mount_devices() -> None:
    os.mkdir("/dev")
    linux.mount("tmpfs", "/dev", "tmpfs", linux.MS_NOSUID, "mode=755,size=64k")
    for name in _DEVICES:
        if os.path.exists(f"{_OLD}/dev/{name}"):
            _touch(f"/dev/{name}")
            linux.bind(f"{_OLD}/dev/{name}", f"/dev/{name}")
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{target}", f"/dev/{name}")
    os.mkdir("/dev/shm")
    linux.mount("tmpfs", "/dev/shm", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=1777")
    os.mkdir("/dev/pts")
    with suppress(OSError):  # without it there is merely no new terminal to be had
        linux.mount("devpts", "/dev/pts", "devpts", linux.MS_NOSUID, "newinstance,ptmxmode=0666")
        os.symlink("pts/ptmx", "/dev/ptmx")


def _mount_kernel(kind: str, target: str, flags: int) -> None:
    """A fresh proc or sysfs; where the kernel refuses (parts are masked), the node's own."""
    os.mkdir(target)
    safe = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    try:
        linux.mount(kind, target, kind, flags | safe)
    except OSError:
        linux.bind(_OLD + target, target)


def _place(wanted: Mount) -> None:
    source = _OLD + wanted["source"]
    target = os.path.realpath(wanted["target"])
    if not os.path.exists(source):
        raise OSError(f"mount {wanted['target']}: {wanted['source']} does not exist")
    if not os.path.exists(target):
        _make_target(target, directory=os.path.isdir(source))
    linux.bind(source, target)
    if wanted["read_only"]:
        linux.make_read_only(target)


def _make_target(target: str, *, directory: bool) -> None:
    existing = os.path.dirname(target)
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    for _ in range(2):
        try:
            os.makedirs(target if directory else os.path.dirname(target), exist_ok=True)
            if not directory:
                _touch(target)
            return
        except OSError:
            _mirror(existing)
    raise OSError(f"cannot make the mount point {target}")


def _mirror(directory: str) -> None:
    """Put a tmpfs on `directory` that shows each of its entries, and can take more."""
    fd = os.open(directory, os.O_PATH | os.O_CLOEXEC)
    try:
        old = f"/proc/self/fd/{fd}"
        linux.mount("tmpfs", directory, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=755")
        for entry in os.scandir(old):
            new = os.path.join(directory, entry.name)
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), new)
                continue
            if entry.is_dir():
                os.mkdir(new)
            else:
                _touch(new)
            linux.bind(entry.path, new)
    finally:
        os.close(fd)


def _touch(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
