"""Images of the pods, built by buildah: `python -m tests.kubernetes.node.images FOLDER`.

podlink's own from the Dockerfile as it is, a small one for apps, and the pause container. All stand on
one base image of Python: PODLINK_NODE_BASE, its name in the storage of buildah or in a registry.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from kit.contract import VERSION

ROOT = Path(__file__).parents[3]
VARIABLE = "PODLINK_NODE_BASE"
DEFAULT_BASE = "docker.io/library/python:3.13-slim-bookworm"
BUILDAH = "PODLINK_NODE_BUILDAH"
"""How to run buildah, such as "buildah --root /somewhere --runroot /somewhere/run"."""
PODLINK = f"docker.io/podlink/podlink:{VERSION}"
NEXT = "docker.io/podlink/podlink:next"
"""The same files under another tag, for what an upgrade does."""
PYTHON = "docker.io/library/python:3.13-slim"
CURL = "docker.io/curlimages/curl:8.11.1"
PAUSE = "localhost/pause:1"
ALL = {"podlink": PODLINK, "next": NEXT, "python": PYTHON, "curl": CURL, "pause": PAUSE}
_PAUSE = """\
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void end(int number) { _exit(0); }
static void reap(int number) { while (waitpid(-1, 0, WNOHANG) > 0) {} }
int main(void) {
  signal(SIGTERM, end); signal(SIGINT, end); signal(SIGCHLD, reap);
  for (;;) pause();
}
"""


def buildah(*argv: str, cwd: Path | None = None) -> str:
    program = shlex.split(os.environ.get(BUILDAH, "buildah"))
    return subprocess.run(
        [*program, *argv], check=True, stdout=subprocess.PIPE, text=True, cwd=cwd
    ).stdout.strip()


def build(folder: Path) -> None:
    """Write one archive for each of `ALL`. Raises CalledProcessError."""
    base = os.environ.get(VARIABLE, DEFAULT_BASE)
    repository, digest = _pinned(base)
    arguments = ["--build-arg", f"BASE={repository}", "--build-arg", f"BASE_DIGEST={digest}"]
    _bud(folder, PODLINK, ROOT, arguments)
    buildah("tag", PODLINK, NEXT)
    buildah("tag", base, PYTHON)
    work = folder / "build"
    work.mkdir(exist_ok=True)
    (work / "Dockerfile").write_text(
        f"FROM {repository}@{digest}\n"
        "RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends curl"
        " && rm -rf /var/lib/apt/lists/* /var/cache/*\n"
        "USER 100:101\n"  # as the image of that name has it
    )
    _bud(folder, CURL, work, [])
    (work / "pause.c").write_text(_PAUSE)
    subprocess.run(["gcc", "-static", "-Os", "-o", "pause", "pause.c"], cwd=work, check=True)
    (work / "Dockerfile").write_text('FROM scratch\nCOPY pause /pause\nENTRYPOINT ["/pause"]\n')
    _bud(folder, PAUSE, work, [])
    for name, image in ALL.items():
        archive = folder / f"{name}.tar"
        archive.unlink(missing_ok=True)
        buildah("push", "-q", image, f"docker-archive:{archive}:{image}")


def _pinned(base: str) -> tuple[str, str]:
    """Repository and digest of the base, which is pulled if it is not there."""
    container = buildah("from", base)
    try:
        digest = buildah("inspect", "--format", "{{.FromImageDigest}}", container)
    finally:
        buildah("rm", container)
    return base.partition("@")[0].rpartition(":")[0], digest


def _bud(folder: Path, tag: str, context: Path, more: Sequence[str]) -> None:
    # Without `--timestamp` the image carries the hour of its building, and no two are the same.
    buildah(
        "bud",
        "-q",
        "--layers",
        "--timestamp",
        "0",
        "--isolation",
        "chroot",
        *more,
        "-t",
        tag,
        str(context),
    )


if __name__ == "__main__":
    where = Path(sys.argv[1]).absolute()
    where.mkdir(parents=True, exist_ok=True)
    build(where)
