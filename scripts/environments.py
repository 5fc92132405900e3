"""Makes the virtual environments that a word of the Makefile needs, from requirements/*.lock.

    python3 scripts/environments.py WORD [STEPS DONE BEFORE]   make or mend them; silent if all is there
    python3 scripts/environments.py --count WORD               how many steps that will take
    python3 scripts/environments.py --can WORD                 status 0 if this Python can make them

Every file is checked by its hash. uv does it, from the PATH or else from PyPI; where there is none, pip.
What was begun and not finished, belongs to another place or another Python is made anew. Called by
scripts/setup.sh; the standard library only, since nothing else is there yet.
"""

import ast
import fcntl
import hashlib
import importlib.util
import io
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"
_OURS = (
    "kit",
    "certs",
    "proto",
    "policy",
    "registry",
    "sidecar",
    "injector",
    "traces",
    "cni",
    "local",
    "cli",
)
_OFFLINE = re.compile(
    r"name resolution|dns error|failed to lookup|error sending request|ConnectError|unreachable"
    r"|Connection refused|establish a new connection|timed out|ConnectTimeout|NameResolutionError",
    re.I,
)


class Failed(Exception):
    """What went wrong and what to do about it, in one line."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment and the lock file it is made from. `also`: locks that hold all of `lock`."""

    folder: str
    lock: str
    also: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return ROOT / self.folder

    @property
    def python(self) -> Path:
        return self.path / "bin/python"


DEMO = Environment(".venv", "demo.lock", ("dev.lock",))
DEV = Environment(".venv", "dev.lock")
BENCH = Environment(".venv-bench", "bench.lock")
HELM = ROOT / ".helm"
WORDS = {
    "demo": DEMO,
    "bare": DEMO,
    "venv": DEV,
    "helm": DEV,
    "test": DEV,
    "bench": BENCH,
}
_WITH_HELM = ("test", "helm")


# What is there


def _digest(lock: str) -> str:
    """Of what an environment is made from: the lock file and what says how podlink itself is built."""
    both = (LOCKS / lock).read_bytes() + (ROOT / "pyproject.toml").read_bytes()
    return hashlib.sha256(both).hexdigest()


def stamp(env: Environment) -> dict[str, object] | None:
    """What is known of a finished environment; None if it must be made (anew)."""
    try:
        found: dict[str, object] = json.loads((env.path / ".ready").read_text())
    except (OSError, ValueError):
        return None
    asked = os.environ.get("PYTHON") and ".".join(map(str, sys.version_info[:2]))
    if found.get("path") != str(env.path) or asked not in (None, "", found.get("python")):
        return None
    version = _version(env)
    return found if version and version == found.get("python") else None


def _version(env: Environment) -> str:
    """Of the environment's Python, "3.12"; "" if it does not run (any more)."""
    told = [env.python, "-Ic", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        return subprocess.run(told, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def is_ready(env: Environment, found: dict[str, object] | None) -> bool:
    locks = (found or {}).get("locks")
    return isinstance(locks, dict) and any(
        locks.get(lock) == _digest(lock) for lock in (env.lock, *env.also)
    )


def helm_is_ready() -> bool:
    try:
        return (HELM / ".ready").read_bytes() == (LOCKS / "helm.lock").read_bytes()
    except OSError:
        return False


def can_make() -> bool:
    return shutil.which("uv") is not None or importlib.util.find_spec("ensurepip") is not None


# What is to be done


Step = tuple[str, Callable[["Line"], None]]
"""What to call it, and the doing."""


def steps(word: str) -> list[Step]:
    """What lacks for `word`, in order."""
    env = WORDS[word]
    found = stamp(env)
    todo: list[Step] = []
    if found is None:
        version = ".".join(map(str, sys.version_info[:2]))
        todo.append((f"making {env.folder} with Python {version}", lambda line: _make(env, line)))
    if not is_ready(env, found):
        text = f"fetching {_size(env.lock)} Python packages into {env.folder}"
        todo.append((text, lambda line: _fill(env, line)))
    if word in _WITH_HELM and not helm_is_ready():
        todo.append(("fetching Helm into .helm", _fill_helm))
    return todo


def _size(lock: str) -> int:
    return len(re.findall(r"^[\w.-]+==", (LOCKS / lock).read_text(), re.M))


class Line:
    """One step's line on standard error; on a terminal it is rewritten as the step goes on."""

    def __init__(self, text: str) -> None:
        self._text, self._live, self._last = text, sys.stderr.isatty(), ""
        print(text, end="" if self._live else "\n", file=sys.stderr, flush=True)

    def say(self, how_far: str) -> None:
        if self._live and how_far != self._last:
            self._last = how_far
            print(f"\r\x1b[2K{self._text}: {how_far}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._live:
            print(f"\r\x1b[2K{self._text}", file=sys.stderr, flush=True)


def main(argv: Sequence[str]) -> int:
    if argv[0] == "--can":
        return 0 if can_make() or not steps(argv[1]) else 1
    if argv[0] == "--count":
        print(len(steps(argv[1])))
        return 0
    word, before = argv[0], int(argv[1]) if len(argv) > 1 else 0
    try:
        with _alone():
            todo = steps(word)
            for number, (text, do) in enumerate(todo, before + 1):
                line = Line(f"[{number}/{before + len(todo)}] {text}")
                try:
                    do(line)
                finally:
                    line.end()
    except Failed as e:
        print(f"make {word}: {e}", file=sys.stderr)
        return 1
    except OSError as e:
        print(f"make {word}: {e.filename or ROOT}: {e.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


@contextmanager
def _alone() -> Iterator[None]:
    """Wait for another `make` that does the same."""
    with (LOCKS / "dev.lock").open("rb") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another make to finish", file=sys.stderr)
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


# The doing


def _make(env: Environment, line: Line) -> None:
    """An empty environment with uv in it, or with pip alone where PyPI has no uv for this machine."""
    if env.path.exists():
        shutil.rmtree(env.path)
    uv = shutil.which("uv")
    if uv is not None:
        _run([uv, "venv", "--quiet", "--seed", "--python", sys.executable, env.path], line)
        return
    line.say("fetching uv")
    if importlib.util.find_spec("ensurepip") is None:
        _run([sys.executable, "-m", "venv", "--without-pip", env.path], line)
        _fetch_uv(env)
        return
    _run([sys.executable, "-m", "venv", env.path], line)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as wanted:
        wanted.write(_only("uv", (LOCKS / env.lock).read_text()))
        wanted.flush()
        try:
            _run(
                [*_pip(env), "--require-hashes", "--only-binary", ":all:", "-r", wanted.name], line
            )
        except Failed as e:
            if "cannot be reached" in str(e):
                raise


def _fetch_uv(env: Environment) -> None:
    """uv alone, without pip: for a Debian that lacks python3-venv and a user who may not install it.

    The index is named as pip's environment names it. What it gives is taken if its hash is in the lock.
    """
    index = _index().rstrip("/")
    form = {"Accept": "application/vnd.pypi.simple.v1+json"}
    try:
        with _opened(urllib.request.Request(f"{index}/uv/", headers=form)) as answer:
            files = json.load(answer)["files"]
        known = set(
            re.findall(r"sha256:([0-9a-f]{64})", _only("uv", (LOCKS / env.lock).read_text()))
        )
        url = wheel_for(os.uname().machine, known, files)
        with _opened(urllib.request.Request(urllib.parse.urljoin(f"{index}/uv/", url))) as answer:
            wheel = answer.read()
    except (OSError, ValueError, KeyError, StopIteration) as e:
        raise Failed(
            f"cannot fetch uv from the Python package index ({e}): go online, or name a mirror by "
            "PIP_INDEX_URL, or have python3-venv installed"
        ) from e
    if hashlib.sha256(wheel).hexdigest() not in known:
        raise Failed("the Python package index gave a uv that is not the one of the lock file")
    with zipfile.ZipFile(io.BytesIO(wheel)) as packed:
        name = next(name for name in packed.namelist() if name.endswith(".data/scripts/uv"))
        (env.path / "bin/uv").write_bytes(packed.read(name))
    (env.path / "bin/uv").chmod(0o755)


def _index() -> str:
    """The index of Python packages: as pip's environment names it, else pip's own. Raises Failed."""
    if named := os.environ.get("PIP_INDEX_URL"):
        return named
    try:
        from pip._internal.models.index import PyPI
    except ImportError:
        raise Failed(
            "Python's venv module and pip are missing: have python3-venv installed, or name an index of "
            "Python packages by PIP_INDEX_URL"
        ) from None
    return str(PyPI.simple_url)


def wheel_for(machine: str, known: set[str], files: Sequence[dict[str, Any]]) -> str:
    """Where the file for glibc on this machine is whose hash is known. Raises StopIteration."""
    return next(
        str(file["url"])
        for file in files
        if file["hashes"].get("sha256") in known
        and "manylinux" in file["filename"]
        and file["filename"].endswith(f"_{machine}.whl")
    )


def _opened(request: urllib.request.Request) -> Any:
    if not request.full_url.startswith(("https://", "http://")):
        raise ValueError(f"{request.full_url} is no address of an index")
    return urllib.request.urlopen(request, timeout=60)


def _only(name: str, lock: str) -> str:
    """The lines of one package in a lock file."""
    found = re.search(rf"^{name}==.*?(?=^\S|\Z)", lock, re.M | re.S)
    return found[0] if found else ""


def _fill(env: Environment, line: Line) -> None:
    (env.path / ".ready").unlink(missing_ok=True)
    lock = str(LOCKS / env.lock)
    total = _size(env.lock)
    try:
        uv, options = _uv(env)
        into = ["--python", env.python]
        hashed = ["--require-hashes", "--compile-bytecode", *options, "-r", lock]
        _run([*uv, *into, *hashed], line, total=total)
        _run([*uv, *into, "--no-deps", "--no-build-isolation", "-e", ROOT], line)
    except (Failed, FileNotFoundError):
        # uv knows not all that a pip.conf may say of indexes: pip itself has the last word.
        if not (env.path / "bin/pip").exists():
            raise
        line.say("by pip")
        _run([*_pip(env), "--require-hashes", "-r", lock], line, total=total)
        _run([*_pip(env), "--no-deps", "--no-build-isolation", "-e", ROOT], line)
    # Start-up time counts in every pod of a local cluster.
    _run([env.python, "-m", "compileall", "-q", *(ROOT / name for name in _OURS)], line)
    said = {
        "path": str(env.path),
        "python": _version(env),
        "locks": {env.lock: _digest(env.lock)},
    }
    (env.path / ".ready").write_text(json.dumps(said))


def _fill_helm(line: Line) -> None:
    shutil.rmtree(HELM, ignore_errors=True)
    lock = ["--require-hashes", "-r", str(LOCKS / "helm.lock")]
    target = ["--target", HELM, "--python-version", "3.13", "--no-deps", "--only-binary", ":all:"]
    try:
        uv, options = _uv(DEV)
        _run([*uv, *options, *target, *lock], line)
    except (Failed, FileNotFoundError):
        if not (DEV.path / "bin/pip").exists():
            raise
        _run([*_pip(DEV), *target, *lock], line)
    shutil.copyfile(LOCKS / "helm.lock", HELM / ".ready")


def _pip(env: Environment) -> list[object]:
    quiet = ["--disable-pip-version-check", "--no-input", "--retries", "2", "--progress-bar", "off"]
    return [env.python, "-m", "pip", "install", *quiet]


def _uv(env: Environment) -> tuple[list[object], list[object]]:
    """How to call uv's `pip install`, and the options that say where packages are, as pip is told."""
    own = env.path / "bin/uv"
    uv = own if own.exists() else shutil.which("uv")
    if uv is None:
        raise FileNotFoundError("uv")
    told = subprocess.run(
        [env.python, "-m", "pip", "config", "list"], capture_output=True, text=True
    )
    options, settings = as_uv(told.stdout)
    os.environ.update({k: v for k, v in settings.items() if k not in os.environ})
    return [uv, "pip", "install"], list(options)


def as_uv(pip_config: str) -> tuple[list[str], dict[str, str]]:
    """What `pip config list` says of where packages are, for uv: options and environment.

    An address may hold a password, so addresses travel in the environment. As the files are checked
    by their hashes, every index may give every file, as with pip.
    """
    found: dict[str, str] = {}
    for section in ("global", "install", ":env:"):
        for line in pip_config.splitlines():
            name, _, value = line.partition("=")
            if name.startswith(f"{section}."):
                found[name.removeprefix(f"{section}.").replace("_", "-")] = str(
                    ast.literal_eval(value)
                )
    names = {
        "index-url": "UV_DEFAULT_INDEX",
        "extra-index-url": "UV_INDEX",
        "cert": "SSL_CERT_FILE",
        "client-cert": "SSL_CLIENT_CERT",
        "trusted-host": "UV_INSECURE_HOST",
        "default-timeout": "UV_HTTP_TIMEOUT",
        "timeout": "UV_HTTP_TIMEOUT",
        "proxy": "ALL_PROXY",
    }
    there = {k: " ".join(filter(_is_there, v.split())) for k, v in found.items()}
    settings = {names[k]: v for k, v in there.items() if k in names and v}
    options = ["--index-strategy", "unsafe-best-match"]
    for where in there.get("find-links", "").split():
        options += ["--find-links", where]
    if found.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        options.append("--no-index")
    return options, settings


def _is_there(where: str) -> bool:
    """False for a place on this machine that does not exist: pip passes over it, uv stops."""
    path = where.removeprefix("file://")
    return not path.startswith("/") or Path(path).exists()


def _run(argv: Sequence[object], line: Line, *, total: int = 0) -> None:
    """Run a program; its own words are kept for when it fails, and tell how far it is."""
    command = [str(word) for word in argv]
    shown, ours = pty.openpty()  # uv tells how far it is to terminals only
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    said = bytearray()
    env = {**os.environ, "TERM": "xterm", "NO_COLOR": "1", "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=ours, stderr=ours, cwd=ROOT, env=env
    ) as program:
        os.close(ours)
        reader = threading.Thread(target=_follow, args=(shown, said, line, total), daemon=True)
        reader.start()
        program.wait()
        reader.join(5)
    os.close(shown)
    if program.returncode != 0:
        raise Failed(_why(command, said.decode("utf-8", "replace")))


def _follow(shown: int, said: bytearray, line: Line, total: int) -> None:
    while True:
        try:
            chunk = os.read(shown, 65536)
        except OSError:  # EIO: the program has closed its end
            return
        if not chunk:
            return
        said += chunk
        if total and (far := how_far(bytes(said[-4000:]), bytes(said), total)):
            line.say(far)


def how_far(newest: bytes, said: bytes, total: int) -> str:
    """How many packages uv or pip has got, by its own words; "" while they say nothing of it."""
    counts = re.findall(rb"\((\d+)/(\d+)\)", newest)
    if counts:
        return f"{counts[-1][0].decode()} of {counts[-1][1].decode()}"
    collected = len(re.findall(rb"^(?:Collecting|Ignoring) ", said, re.M))
    return f"{min(collected, total)} of {total}" if collected else ""


_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


def _why(command: Sequence[str], said: str) -> str:
    """One line: what failed, and what to do."""
    lines = [line.strip(" │├╰─▶\u00d7") for line in _ANSI.sub("", said).splitlines()]
    lines = [line for line in lines if line]
    if any(_OFFLINE.search(line) for line in lines) and "HASHES" not in said:
        return (
            "the Python package index cannot be reached: go online, or name a mirror by PIP_INDEX_URL, "
            "and run it again"
        )
    errors = [line for line in lines if re.match(r"error|ERROR|OSError|.*[Nn]o space", line)]
    log = Path(tempfile.gettempdir()) / f"podlink-setup-{os.getuid()}.log"
    log.write_text(said)
    last = (errors or lines or ["it said nothing"])[-1][:300]
    return f"{Path(command[0]).name} failed: {last} (all it said: {log})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
