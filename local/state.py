"""Where a running cluster keeps its few files on the host, one directory per cluster, mode 0700.

kubeconfig      for kubectl and for `local.client`
control.sock    for what the Kubernetes API has no call for: exec with the caller's own stdio
cluster.json    name, pid of the supervisor, whether one UID only is mapped
lock            held while the supervisor lives, so that a stale directory is known as such
cluster.log     what the daemon had to say
node/           an empty directory; inside the cluster's mount namespace a tmpfs lies on it
"""

import fcntl
import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.settings import Settings
from local.errors import AlreadyRunning, BadManifest, NotRunning, Unusable

DEFAULT_NAME = "podlink"
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class StateDir:
    """The files of one cluster. `of(name)` says where they are, whether or not it runs."""

    name: str
    root: Path

    @classmethod
    def of(cls, name: str) -> "StateDir":
        if _NAME.fullmatch(name) is None:
            raise BadManifest(
                f"--name must be 1 to 40 lower-case letters, digits or dashes, not {name[:60]!r}"
            )
        return cls(name, _base() / name)

    @property
    def kubeconfig(self) -> Path:
        return self.root / "kubeconfig"

    @property
    def control_socket(self) -> Path:
        return self.root / "control.sock"

    @property
    def facts_file(self) -> Path:
        return self.root / "cluster.json"

    @property
    def log(self) -> Path:
        return self.root / "cluster.log"

    @property
    def node(self) -> Path:
        return self.root / "node"

    def claim(self) -> int:
        """Make the directory and lock it; returns the descriptor that holds the lock.

        Raises AlreadyRunning while another supervisor holds it. A directory that a killed cluster
        left behind is emptied first.
        """
        _make_private(self.root.parent)
        _make_private(self.root)
        fd = os.open(self.root / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            os.close(fd)
            raise AlreadyRunning(
                f"cluster {self.name!r} is already running (podlink local down --name {self.name})"
            ) from e
        for leftover in self.root.iterdir():
            if leftover.name != "lock":
                _remove(leftover)
        self.node.mkdir(mode=0o700)
        return fd

    def is_running(self) -> bool:
        """True while a supervisor holds the lock."""
        try:
            fd = os.open(self.root / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(fd)
        return False

    def facts(self) -> dict[str, Any]:
        """What cluster.json says; raises NotRunning when there is none."""
        try:
            if self.is_running():
                found: dict[str, Any] = json.loads(self.facts_file.read_text())
                return found
        except (OSError, ValueError):
            pass
        others = running()
        hint = (
            f"running: {', '.join(others)}; pass --name {others[0]}"
            if others
            else "podlink local up starts one"
        )
        raise NotRunning(f"no cluster {self.name!r} is running ({hint})")

    def remove(self) -> None:
        """Take every file away. Safe to call twice, and while another process does the same."""
        shutil.rmtree(self.root, ignore_errors=True)


def running() -> list[str]:
    """The names of this user's clusters that run."""
    base = _base()
    names = sorted(path.name for path in base.iterdir()) if base.is_dir() else []
    return [name for name in names if StateDir(name, base / name).is_running()]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _base() -> Path:
    """$XDG_RUNTIME_DIR/podlink, else a directory of this user's own in the temporary directory."""
    runtime = Settings().optional("XDG_RUNTIME_DIR")
    if runtime is not None and os.access(runtime, os.W_OK):
        return Path(runtime) / "podlink"
    return Path(tempfile.gettempdir()) / f"podlink-{os.getuid()}"


def _make_private(path: Path) -> None:
    """Make `path` 0700 and ours; refuse a directory that somebody else put there first."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as e:
        raise Unusable(f"cannot make the state directory {path}: {e.strerror}") from e
    found = path.lstat()
    if path.is_symlink() or found.st_uid != os.getuid():
        raise Unusable(f"the state directory {path} belongs to somebody else")
    if found.st_mode & 0o077:
        path.chmod(0o700)
