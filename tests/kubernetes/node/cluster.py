"""A real one-node Kubernetes in namespaces of its own: `real_node(...)`, or `make cluster`.

Needs root, containerd, runc, the CNI plugins, and in KUBEBUILDER_ASSETS the node's programs beside the
API server's. Nothing of it is seen outside: processes, mounts, network and rules live in namespaces of
one process and end with it; its cgroups are removed after that.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.kubernetes.node.pki import Authority, kubeconfig, write_secret, write_signing_key
from tests.kubernetes.node.plan import (
    API_SERVICE_IP,
    COMPONENTS,
    NODE_IP,
    PROGRAMS,
    NodePlan,
)

ROOT = Path(__file__).parents[3]
VARIABLE = "KUBEBUILDER_ASSETS"
PROXY_MODE = "PODLINK_NODE_PROXY_MODE"
_CGROUPS = Path("/sys/fs/cgroup")
_NEEDED = {"containerd": "containerd", "runc": "runc", "buildah": "buildah", "nft": "nftables"}
_READY_S = 120.0


class NodeUnusable(Exception):
    """One line that says what is missing or what did not come up."""


def why_not(environment: Mapping[str, str]) -> str:
    """What keeps a node from running here; "" if nothing does."""
    said = environment.get(VARIABLE, "")
    if not said:
        return f"{VARIABLE} is not set: no kubelet to run"
    lacking = [name for name in PROGRAMS if not Path(said, name).is_file()]
    if lacking:
        return f"{VARIABLE}={said}: there is no {', '.join(lacking)} in it"
    if os.geteuid() != 0:
        return "a node needs root"
    packages = sorted(p for name, p in _NEEDED.items() if shutil.which(name) is None)
    if packages:
        return f"a node needs these packages: {' '.join(packages)}"
    return ""


@dataclass
class RealNode:
    plan: NodePlan
    process: subprocess.Popen[bytes]
    log: Path
    _inner: int = field(default=0)

    @property
    def kubeconfig(self) -> Path:
        return self.plan.kubeconfig("admin")

    def command(self, *argv: str) -> list[str]:
        """Runs in the node's namespaces, as root."""
        return ["nsenter", "-t", str(self._first()), "-m", "-n", "-p", "--wd=" + str(ROOT), *argv]

    def run(
        self, *argv: str, check: bool = True, timeout: float = 120, text: str | None = None
    ) -> str:
        """What it printed. Raises NodeUnusable with both outputs where it fails."""
        done = subprocess.run(
            self.command(*argv), input=text, capture_output=True, text=True, timeout=timeout,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig), "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        if check and done.returncode:
            said = f"{' '.join(argv)[:300]}: status {done.returncode}"
            raise NodeUnusable(f"{said}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return done.stdout if check else done.stdout + done.stderr

    def kubectl(
        self, *argv: str, check: bool = True, text: str | None = None, timeout: float = 120
    ) -> str:
        program = str(self.plan.assets / "kubectl")
        return self.run(program, *argv, check=check, text=text, timeout=timeout)

    def podlink(self, *argv: str, check: bool = True, timeout: float = 120) -> str:
        return self.run(sys.executable, "-m", "cli", *argv, check=check, timeout=timeout)

    def ctr(self, *argv: str) -> str:
        address = str(self.plan.containerd_socket)
        return self.run("ctr", "-a", address, "-n", "k8s.io", *argv, timeout=300)

    def load(self, images: Path) -> None:
        """Import every archive of the folder."""
        for archive in sorted(images.glob("*.tar")):
            self.ctr("images", "import", str(archive))

    def tail(self, name: str, lines: int = 15) -> str:
        path = self.plan.folder / "log" / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])

    def _first(self) -> int:
        """The first process inside, as it is called outside."""
        if not self._inner:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
            self._inner = int(children.read_text().split()[0])
        return self._inner


def prepare(plan: NodePlan) -> None:
    """Write keys, kubeconfigs and configuration files."""
    pki = plan.folder / "pki"
    pki.mkdir(parents=True)
    authority = Authority.new()
    (pki / "ca.crt").write_bytes(authority.pem())
    names = [NODE_IP, API_SERVICE_IP, "127.0.0.1", "localhost", "kubernetes", "kubernetes.default",
             "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]  # fmt: skip
    authority.issue(pki, "kube-apiserver", hosts=names)
    authority.issue(pki, "kubelet-client", groups=["system:masters"])
    write_signing_key(pki / "service-accounts.key")
    rows = []
    for who, (user, groups) in COMPONENTS.items():
        token = secrets.token_hex(16)
        said = f',"{",".join(groups)}"' if groups else ""
        rows.append(f"{token},{user},{user}{said}\n")
        text = kubeconfig(plan.server, pki / "ca.crt", token)
        write_secret(plan.kubeconfig(who), text.encode())
    write_secret(pki / "tokens.csv", "".join(rows).encode())
    for name, text in plan.files().items():
        (plan.folder / name).write_text(text)
    (plan.folder / "log").mkdir()


@contextlib.contextmanager
def real_node(assets: Path, folder: Path) -> Iterator[RealNode]:
    """A node that is Ready, until the block ends. Raises NodeUnusable."""
    mode = os.environ.get(PROXY_MODE, "nftables")
    plan = NodePlan(folder, assets, f"podlink-{os.getpid()}", proxy_mode=mode)
    prepare(plan)
    _make_cgroups(plan.cgroup)
    log = folder / "log" / "inside.log"
    argv = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
            "--propagation", "private", sys.executable, "-m", "tests.kubernetes.node.inside",
            str(folder), str(assets), plan.cgroup]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=ROOT,
            env=_environment(), start_new_session=True,
        )  # fmt: skip
    node = RealNode(plan, process, log)
    try:
        _wait_ready(node)
        yield node
    finally:
        _stop(process)
        _remove_cgroups(plan.cgroup)


def _environment() -> dict[str, str]:
    """Pods come and go with what the tests ask, so the suite's mark is not on them: `left_behind` says
    what of the node outlived it."""
    made = {name: value for name, value in os.environ.items() if name != "PODLINK_TEST_RUN"}
    return {**made, "PYTHONPATH": str(ROOT)}


def left_behind(plan: NodePlan) -> list[str]:
    """Processes, mounts and cgroups of this node on the machine."""
    found = [str(one / plan.cgroup) for one in _controllers() if (one / plan.cgroup).exists()]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(plan.folder).encode() in (process / "cmdline").read_bytes():
                found.append(str(process))
    mounts = Path("/proc/self/mounts").read_text()
    return found + [line for line in mounts.splitlines() if str(plan.folder) in line]


def _wait_ready(node: RealNode) -> None:
    deadline = time.monotonic() + _READY_S
    said = ""
    while time.monotonic() < deadline:
        if node.process.poll() is not None:
            raise NodeUnusable(f"the node ended: {node.log.read_text()[-2000:]}")
        with contextlib.suppress(NodeUnusable, IndexError, FileNotFoundError):
            said = node.kubectl(
                "get", "nodes", "-o",
                "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}",
            )  # fmt: skip
            # Pods are refused until the controller manager has made this.
            if said == "True" and node.kubectl("get", "serviceaccount", "default"):
                return
        time.sleep(0.5)
    raise NodeUnusable(
        f"the node was not ready within {_READY_S:g} s: Ready={said!r}\n{node.tail('kubelet')}\n"
        f"{node.log.read_text()[-500:]}"
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    # unshare passes no signal on; killed, it takes the first process inside with it, and that the rest.
    process.send_signal(signal.SIGKILL)
    process.wait(20)


def _controllers() -> list[Path]:
    """v1: a hierarchy for each controller; v2: one."""
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS]
    return [one for one in sorted(_CGROUPS.iterdir()) if one.is_dir() and not one.is_symlink()]


def _make_cgroups(name: str) -> None:
    for one in _controllers():
        made = one / name
        made.mkdir(exist_ok=True)
        if one.name == "cpuset":
            for setting in ("cpuset.cpus", "cpuset.mems"):
                (made / setting).write_text((one / setting).read_text())


def _remove_cgroups(name: str) -> None:
    deadline = time.monotonic() + 20
    for one in _controllers():
        while (one / name).exists() and time.monotonic() < deadline:
            for path, _, _ in os.walk(one / name, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(path)
            time.sleep(0.1)


def main() -> None:
    said = why_not(os.environ)
    if said:
        sys.exit(said)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that what was made is taken away
    folder = Path(sys.argv[1]).absolute()
    with real_node(Path(os.environ[VARIABLE]), folder) as node:
        if len(sys.argv) > 2:
            node.load(Path(sys.argv[2]).absolute())
        print(f"export KUBECONFIG={node.kubeconfig}")
        print(f"nsenter -t {node._first()} -m -n -p bash")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            while node.process.poll() is None:
                time.sleep(1)


if __name__ == "__main__":
    main()
