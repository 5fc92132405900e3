"""`make bare`: a bare Debian or Ubuntu, made by debootstrap, and the README's commands in it.

    python -m scripts.bare [--suite trixie] [--user] [--run 'make demo'] [--with PACKAGE] [--keep FOLDER]

The root has `make`, `git` and what is essential, and nothing else. It sees this tree as a fresh copy,
and the package archives as this machine's settings of apt and pip name them, which travel into the root
and never into the tree. Needs root and debootstrap; everything runs in mount and pid namespaces of its
own and is gone afterwards. Status 0 if each command succeeded.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEBIAN, UBUNTU = "debian", "ubuntu"
SUITES = {
    "bookworm": (DEBIAN, "main"),
    "trixie": (DEBIAN, "main"),
    "forky": (DEBIAN, "main"),
    "sid": (DEBIAN, "main"),
    "noble": (UBUNTU, "main,universe"),
}
_USER = 1000
_HOME = {True: "/home/somebody/podlink", False: "/root/podlink"}
_CA = "/usr/local/share/this-machine.pem"
_PASSED = ("_PROXY", "_INDEX_URL", "PIP_", "UV_")

_ENTER = """
set -eu
mount --make-rprivate /
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount --rbind /dev dev
mount --rbind /sys sys
mount -t tmpfs tmpfs run
mkdir -p .before
PATH=/usr/sbin:/sbin:$PATH pivot_root . .before
umount -l /.before
rmdir /.before || :
cd /
shift
exec "$@"
"""
"""pivot_root, not chroot: the kernel lets nobody make a user namespace from within a chroot."""


def mirror_of(system: str) -> str:
    """The archive of Debian or Ubuntu: PODLINK_DEBIAN_MIRROR or PODLINK_UBUNTU_MIRROR, else the one that
    debootstrap itself takes on a usual machine. Raises SystemExit if it names none."""
    if named := os.environ.get(f"PODLINK_{system.upper()}_MIRROR"):
        return named
    if system == DEBIAN:
        text = Path(shutil.which("debootstrap") or "/usr/sbin/debootstrap").read_text()
        found = re.findall(r"^DEF_MIRROR=\"(http[^\"]+)\"", text, re.M)
    else:
        text = Path("/usr/share/debootstrap/scripts/gutsy").read_text()
        found = re.findall(r"^\s*default_mirror\s+(http://(?!old|ports)\S+)", text, re.M)
    if not found:
        raise SystemExit(f"name an archive: PODLINK_{system.upper()}_MIRROR=http://...")
    return found[0]


def build(suite: str, folder: Path, more: Sequence[str] = ()) -> None:
    """Make a bare root of `suite` in `folder`."""
    system, components = SUITES[suite]
    mirror = mirror_of(system)
    scripts = Path("/usr/share/debootstrap/scripts")
    own = scripts / suite
    script = [] if own.exists() else [str(scripts / ("gutsy" if system == UBUNTU else "sid"))]
    include = ",".join(("make", "git", *more))
    options = ["--variant=minbase", f"--include={include}", f"--components={components}"]
    argv = ["debootstrap", *options, suite, str(folder), mirror, *script]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


def furnish(folder: Path, *, user: bool, fresh: bool = True) -> None:
    """A fresh copy of this tree in it, a user, and how this machine reaches the archives."""
    home = folder / _HOME[user].lstrip("/")
    if fresh:
        shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True, exist_ok=True)
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout
    packed = subprocess.run(
        ["tar", "-c", "--null", "--ignore-failed-read", "-T", "-"],
        cwd=ROOT,
        input=files,
        capture_output=True,
        check=True,
    ).stdout
    subprocess.run(["tar", "-x", "--no-same-owner"], cwd=home, input=packed, check=True)
    if user:
        passwd = folder / "etc/passwd"
        if "somebody" not in passwd.read_text():
            with passwd.open("a") as users:
                users.write(f"somebody:x:{_USER}:{_USER}::/home/somebody:/bin/sh\n")
            with (folder / "etc/group").open("a") as groups:
                groups.write(f"somebody:x:{_USER}:\n")
            with (folder / "etc/shadow").open("a") as passwords:
                passwords.write("somebody:*:20000:0:99999:7:::\n")
        subprocess.run(["chown", "-R", f"{_USER}:{_USER}", str(home.parent)], check=True)
    shutil.copy("/etc/resolv.conf", folder / "etc/resolv.conf")
    (folder / "etc/hosts").write_text(f"127.0.0.1 localhost {os.uname().nodename}\n")
    bundle = os.environ.get("SSL_CERT_FILE") or os.environ.get("PIP_CERT")
    if bundle and Path(bundle).exists():
        shutil.copy(bundle, folder / _CA.lstrip("/"))
    for one in Path("/etc/apt/apt.conf.d").glob("*"):
        if re.search(r"Acquire::(Check|http|https|Retries)", one.read_text()):
            shutil.copy(one, folder / "etc/apt/apt.conf.d")
    (folder / "etc/pip.conf").write_text(_pip_conf())


def _allow_sudo(folder: Path) -> None:
    allowed = folder / "etc/sudoers.d/somebody"
    allowed.write_text("somebody ALL=(ALL) NOPASSWD: ALL\n")
    allowed.chmod(0o440)


def _pip_conf() -> str:
    said = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True
    ).stdout
    lines = ["[global]"]
    for key, value in re.findall(r"^global\.([\w-]+)='(.*)'$", said, re.M):
        if key in ("index-url", "extra-index-url", "find-links", "trusted-host"):
            lines.append(f"{key} = {value}")
    return "\n".join(lines) + "\n"


def environment(folder: Path, *, user: bool) -> dict[str, str]:
    """What a new login has, and how this machine reaches the archives."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if any(part in name.upper() for part in _PASSED)
    }
    if (folder / _CA.lstrip("/")).exists():
        kept |= {"SSL_CERT_FILE": _CA, "PIP_CERT": _CA}
    home = "/home/somebody" if user else "/root"
    return {**kept, "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": home, "TERM": "xterm"}


def run(folder: Path, command: str, *, user: bool, wrap: str = "", **env: str) -> int:
    """Run a shell command in the root, in the tree; its output is this program's own."""
    inner = ["sh", "-c", f"cd {_HOME[user]} && {command}"]
    if user:
        inner = ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups", *inner]
    argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", *shlex.split(wrap)]
    argv += ["sh", "-c", _ENTER, "enter", str(folder), *inner]
    return subprocess.run(argv, env={**environment(folder, user=user), **env}).returncode


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="podlink-bare-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="make bare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--suite", choices=sorted(SUITES), default="trixie")
    parser.add_argument("--user", action="store_true", help="as an ordinary user without sudo")
    parser.add_argument("--sudo", action="store_true", help="a user whom sudo asks for no password")
    parser.add_argument("--run", action="append", metavar="COMMAND")
    parser.add_argument("--with", dest="more", action="append", default=[], metavar="PACKAGE")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="make or use the root there")
    parser.add_argument("--again", action="store_true", help="with --keep: mend the tree there")
    parser.add_argument("--wrap", default="", help="put in front: 'capsh --drop=cap_sys_admin --'")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    asked = parser.parse_args(argv)
    if asked.sudo:
        asked.user, asked.more = True, [*asked.more, "sudo"]
    if os.geteuid() != 0:
        parser.error("it needs root, to make a root of its own")
    # The second command is a part of the suite: the whole of it runs wherever `make test` does.
    commands = asked.run or ["make demo", 'make test ARGS="tests/kit tests/local/test_pods.py"']
    env = dict(one.split("=", 1) for one in asked.env)
    with _folder(asked.keep) as folder:
        if not (folder / "etc/passwd").exists():
            print(f"making a bare {asked.suite} in {folder}", file=sys.stderr, flush=True)
            build(asked.suite, folder, asked.more)
        furnish(folder, user=asked.user, fresh=not asked.again)
        if asked.sudo:
            _allow_sudo(folder)
        for command in commands:
            print(f"\n$ {command}", file=sys.stderr, flush=True)
            status = run(folder, command, user=asked.user, wrap=asked.wrap, **env)
            if status:
                print(f"{command}: status {status}", file=sys.stderr)
                return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
