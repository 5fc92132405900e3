"""Nothing is left behind, however a cluster ends; and it works for an ordinary user."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.cluster import Cluster
from local.errors import AlreadyRunning, BadManifest, NotRunning, Unusable
from local.node import tools
from local.state import StateDir
from local.supervisor import SOURCE_ROOT
from tests.local.pods import pod
from tests.local.private_host import private_host, seen
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.netns
NOBODY = 65534


@pytest.fixture
def host() -> Iterator[None]:
    """A host of the test's own; the test fails if anything of it is left there in the end."""
    with private_host():
        before = seen()
        yield
        assert not seen() - before


@pytest.fixture
def name() -> Iterator[str]:
    made = f"ends-{os.getpid()}"
    yield made
    state = StateDir.of(made)
    if state.is_running():
        Cluster.find(made).down()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes a host")
def test_a_private_host_shows_what_was_left_on_it_and_nothing_of_the_machine() -> None:
    machine = seen()
    with private_host():
        before = seen()
        assert [one for one in before if one.startswith("link")] == ["link lo:"]
        for what in (
            ["ip", "link", "add", "left", "type", "veth", "peer", "name", "other"],
            ["nft", "add", "table", "inet", "left"],
            ["mount", "-t", "tmpfs", "left", "/mnt"],
        ):
            subprocess.run(what, check=True)
        after = seen() - before
        links = {one.partition("@")[0] for one in after if one.startswith("link")}
        assert links == {"link left", "link other"}
        assert set(after) >= {"rules: table inet left", "mount at /mnt"}
    now = seen() - machine
    assert not [one for one in now if "left" in one or one == "mount at /mnt"]


def test_down_leaves_nothing(host: None, name: str) -> None:
    cluster = Cluster.up(name=name, manifests=[pod("a")])
    cluster.wait_ready("default/a")
    running = _processes_below(int(cluster.facts["supervisor_pid"]))
    assert len(running) >= 6  # supervisor, keeper, init, daemon, pause, container
    cluster.down()
    _assert_gone(running)
    assert not StateDir.of(name).root.exists()
    with pytest.raises(NotRunning):
        Cluster.find(name)


@pytest.mark.parametrize("whom", ["supervisor", "keeper", "init"])
def test_a_kill_of_any_of_its_first_processes_ends_everything(
    host: None, name: str, whom: str
) -> None:
    cluster = Cluster.up(name=name, manifests=[pod("a")])
    cluster.wait_ready("default/a")
    supervisor = int(cluster.facts["supervisor_pid"])
    running = _processes_below(supervisor)
    [keeper] = _children(supervisor)
    [init] = _children(keeper)
    os.kill({"supervisor": supervisor, "keeper": keeper, "init": init}[whom], signal.SIGKILL)
    if cluster._supervisor is not None:
        cluster._supervisor.wait(PATIENCE_S)
    _assert_gone(running)
    _until_gone(StateDir.of(name).root)
    cluster.down()


def test_ctrl_c_of_a_cluster_in_the_foreground_leaves_nothing(host: None, name: str) -> None:
    argv = [sys.executable, "-m", "cli", "local", "up", "--bare", "--foreground", "--name", name]
    env = {**os.environ, "PYTHONPATH": str(SOURCE_ROOT)}
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, text=True,
        preexec_fn=_hear_ctrl_c,
    ) as program:  # fmt: skip
        assert program.stdout is not None
        assert "is up" in program.stdout.readline()
        assert program.stdout.readline().startswith("export KUBECONFIG=")
        cluster = Cluster.find(name)
        cluster.apply(pod("a"))
        cluster.wait_ready("default/a")
        running = _processes_below(int(cluster.facts["supervisor_pid"]))
        program.send_signal(signal.SIGINT)
        assert program.wait(PATIENCE_S) == 130
        assert program.stdout.read().strip() == ""
    _assert_gone(running)
    assert not StateDir.of(name).root.exists()


@pytest.mark.parametrize("processes", [1, 2, 3, 5, 8, 11, 14])
def test_an_interrupt_while_it_starts_leaves_nothing(host: None, name: str, processes: int) -> None:
    """So many processes it has by then: each is another step of its start, on any machine."""
    argv = [sys.executable, "-m", "cli", "local", "up", "--name", name]
    env = {**os.environ, "PYTHONPATH": str(SOURCE_ROOT)}
    number = signal.SIGTERM if processes == 5 else signal.SIGINT
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, text=True,
        preexec_fn=_hear_ctrl_c,
    ) as program:  # fmt: skip
        while len(_processes_below(program.pid)) < processes:
            assert program.poll() is None, "it has started"
            time.sleep(0.002)
        program.send_signal(number)
        said, _ = program.communicate(timeout=PATIENCE_S)
    assert "is up" not in said
    assert program.returncode != 0
    _until_gone(StateDir.of(name).root)
    assert not StateDir.of(name).is_running()


def test_up_installs_podlink_before_the_manifests(name: str, tmp_path: Path) -> None:
    shop = tmp_path / "shop.yaml"
    shop.write_text(
        "apiVersion: v1\nkind: Namespace\n"
        "metadata: {name: shop, labels: {podlink.dev/inject: enabled}}\n---\n"
        + pod("web", namespace="shop")
    )
    argv = [sys.executable, "-m", "cli", "local", "up", "--name", name, "-f", str(shop)]
    env = {**os.environ, "PYTHONPATH": str(SOURCE_ROOT)}
    done = subprocess.run(
        argv, capture_output=True, text=True, env=env, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    state = StateDir.of(name)
    assert f"cluster {name} is up with podlink\n" in done.stdout
    assert "pod/web applied" in done.stdout
    assert f"export KUBECONFIG={state.kubeconfig}\n" in done.stdout
    cluster = Cluster.find(name)  # it outlives the command
    cluster.wait_ready("shop/web")
    spec = cluster.get("Pod", "shop/web")["spec"]
    names = [c["name"] for c in [*spec["containers"], *spec.get("initContainers", ())]]
    assert "podlink" in " ".join(names)
    cluster.down()


def test_a_cluster_ends_with_the_program_that_started_it(name: str) -> None:
    script = (
        "import os, signal; from local.cluster import Cluster\n"
        f"c = Cluster.up(name={name!r}); print(c.facts['supervisor_pid'], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    env = {**os.environ, "PYTHONPATH": str(SOURCE_ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=env, check=False
    )
    assert done.stdout.strip().isdigit(), done.stderr
    _assert_gone([int(done.stdout)])
    _until_gone(StateDir.of(name).root)


def test_a_wrong_manifest_is_named_and_leaves_no_cluster(name: str, tmp_path: Path) -> None:
    wrong = tmp_path / "shop.yaml"
    wrong.write_text("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: []}\n")
    with pytest.raises(BadManifest, match=r"shop.yaml: Pod \"a\" is invalid: spec.containers"):
        Cluster.up(name=name, manifests=[wrong])
    assert not StateDir.of(name).root.exists()


def test_a_name_is_taken_once(name: str) -> None:
    with Cluster.up(name=name), pytest.raises(AlreadyRunning, match=name):
        Cluster.up(name=name)


def test_a_missing_tool_is_named_with_its_package(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "_SYSTEM_PATH", str(tmp_path))
    (tmp_path / "ip").symlink_to(shutil.which("ip") or "/sbin/ip")
    with pytest.raises(
        Unusable, match="nft is not installed: it is in the Debian package nftables"
    ):
        tools.require(str(tmp_path))


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")
def test_an_ordinary_user_gets_a_cluster_with_one_user_id() -> None:
    home = Path(f"/tmp/podlink-user-{os.getpid()}")
    try:
        program = _for_nobody(home)
        done = subprocess.run(
            [
                *("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"),
                *(str(home / "venv/bin/python"), str(program)),
            ],
            env={"HOME": str(home), "PYTHONPATH": str(home / "src"), "PATH": os.environ["PATH"]},
            cwd=home,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["True", "0000000000000000", "200"]
        assert not Path(f"/tmp/podlink-{NOBODY}/as-nobody").exists()
    finally:
        shutil.rmtree(home)


_AS_NOBODY = """
from local.cluster import Cluster
from tests.local.pods import pod, sleeper, web
with Cluster.up(name="as-nobody") as cluster:
    cluster.apply(pod("a", sleeper(securityContext={"runAsUser": 1000})) + pod("b", web()))
    cluster.wait_ready("default/a", "default/b")
    caps = "grep CapEff /proc/self/status | cut -f2"
    print(cluster.single_uid, cluster.exec("default/a", ["sh", "-c", caps]).stdout.strip())
    ip = cluster.get("Pod", "default/b")["status"]["podIP"]
    ask = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://{ip}"]
    print(cluster.exec("default/a", ask).stdout)
"""


def _for_nobody(home: Path) -> Path:
    """A copy of the packages and an interpreter that an ordinary user can read."""
    for package in ("local", "kit", "sidecar", "policy", "certs", "tests"):
        shutil.copytree(
            SOURCE_ROOT / package,
            home / "src" / package,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    base = Path("/usr/bin/python3")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not base.exists() or version not in base.resolve().name:
        pytest.skip("the system's Python is not the one that runs these tests")
    subprocess.run([base, "-m", "venv", "--without-pip", home / "venv"], check=True)
    packages = next(p for p in map(Path, sys.path) if p.name == "site-packages")
    pth = home / "venv" / "lib" / f"python{version}" / "site-packages" / "tests.pth"
    pth.write_text(f"{packages}\n")
    program = home / "program.py"
    program.write_text(_AS_NOBODY)
    for path in (home, *home.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    return program


def _hear_ctrl_c() -> None:
    """As at a terminal: what a shell starts in the background has SIGINT ignored, this suite too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _children(pid: int) -> list[int]:
    """None of one that has ended meanwhile."""
    try:
        tasks = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(child) for child in tasks.split()]


def _processes_below(pid: int) -> list[int]:
    found = [pid]
    for child in _children(pid):
        found += _processes_below(child)
    return found


def _assert_gone(pids: list[int], timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while left := [p for p in pids if _lives(p)]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _until_gone(path: Path, timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while path.exists():
        assert time.monotonic() < deadline, f"{path} is still there: {list(path.iterdir())}"
        time.sleep(0.05)
