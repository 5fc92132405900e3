"""The app's own user, looking for the proxy's key and token (see docs/threat-model.md, Attack 41)."""

from collections.abc import Iterator

import pytest

from kit.contract import PROXY_UID, TOKEN_PATH
from local.node.environment import DEFAULT_UID
from tests.e2e.mesh import Mesh
from tests.e2e.objects import account, pod, serving

POD = "mesh/curious"


@pytest.fixture(scope="module", autouse=True)
def curious(mesh: Mesh) -> Iterator[None]:
    made = [account("curious"), pod("curious", serving("echo", 7001), serviceAccountName="curious")]
    mesh.apply(*made)
    yield
    mesh.delete(made[-1])


def _as_app(mesh: Mesh, *argv: str) -> tuple[int, str]:
    """Run on the node, where all processes can be seen, as the app's user without capabilities."""
    user = ("--reuid", str(DEFAULT_UID), "--regid", str(DEFAULT_UID), "--clear-groups")
    done = mesh.cluster.node_exec(["setpriv", *user, "--bounding-set", "-all", *argv])
    return done.returncode, done.stdout + done.stderr


@pytest.mark.attack_row(41)
def test_the_token_is_mounted_into_the_proxy_alone(mesh: Mesh) -> None:
    spec = mesh.cluster.get("Pod", POD)["spec"]
    holders = {
        container["name"]
        for container in (*spec["initContainers"], *spec["containers"])
        for mount in container.get("volumeMounts") or ()
        if mount["name"] == "podlink-token"
    }
    assert holders == {"podlink-proxy"}
    # The control: it is where the proxy sees it.
    inside = TOKEN_PATH.replace("/var/run", "/run")  # its symlink would lead back to the node
    assert len(mesh.node("cat", f"/proc/{mesh.proxy_pid(POD)}/root{inside}")) > 100
    done = mesh.cluster.exec(POD, ["cat", TOKEN_PATH])
    assert done.returncode != 0 and "No such file" in done.stderr
    found = mesh.cluster.exec(POD, ["find", "/run", "/var/run", "-path", "*podlink*"])
    assert found.stdout == ""


@pytest.mark.attack_row(41)
def test_the_proxy_and_the_app_are_different_users(mesh: Mesh) -> None:
    users = {}
    for name, pid in (("proxy", mesh.proxy_pid(POD)), ("app", mesh.pid(POD))):
        status = dict(
            line.split(":", 1) for line in mesh.node("cat", f"/proc/{pid}/status").splitlines()
        )
        users[name] = set(map(int, status["Uid"].split()))
        assert int(status["CapEff"], 16) == 0
        assert status["NoNewPrivs"].strip() == "1"
    assert users == {"proxy": {PROXY_UID}, "app": {DEFAULT_UID}}


@pytest.mark.attack_row(41)
@pytest.mark.parametrize("file", ["mem", "maps", "environ", "fd", "root"])
def test_the_proxys_memory_and_files_are_closed_to_the_app(mesh: Mesh, file: str) -> None:
    # Even if it could see the process, as with `shareProcessNamespace`.
    read = {"fd": ("ls", "-l"), "root": ("ls",), "mem": ("dd", "bs=1", "count=1", "status=none")}
    command = read.get(file, ("cat",))

    def attempt(pid: int) -> tuple[int, str]:
        path = f"/proc/{pid}/{file}"
        if file == "mem":
            return _as_app(mesh, "python3", "-c", _READ_MEMORY, str(pid))
        return _as_app(mesh, *command, f"{path}/" if file == "root" else path)

    code, said = attempt(mesh.proxy_pid(POD))
    assert code != 0 and "Permission denied" in said, said
    # The control: its own app's is open to this very user.
    code, said = attempt(mesh.pid(POD))
    assert code == 0, said


@pytest.mark.attack_row(41)
def test_the_proxys_memory_is_closed_to_its_own_user_and_to_core_files(mesh: Mesh) -> None:
    """The kernel shows what is not dumpable as root's, whoever runs it (proc(5))."""
    owner = {
        name: mesh.node("stat", "-c", "%u", f"/proc/{pid}/mem").strip()
        for name, pid in (("proxy", mesh.proxy_pid(POD)), ("app", mesh.pid(POD)))
    }
    assert owner == {"proxy": "0", "app": str(DEFAULT_UID)}


_READ_MEMORY = """
import sys
with open(f"/proc/{sys.argv[1]}/maps") as maps:
    start = next(int(line.split("-")[0], 16) for line in maps if " r" in line)
with open(f"/proc/{sys.argv[1]}/mem", "rb") as memory:
    memory.seek(start)
    assert memory.read(4) == b"\\x7fELF"
"""


@pytest.mark.attack_row(41)
def test_the_app_cannot_see_or_trace_the_proxy(mesh: Mesh) -> None:
    seen = mesh.run(POD, "bash", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert "tests.e2e.apps" in seen and "-m sidecar" not in seen
    attach = (
        "import ctypes, os, sys; libc = ctypes.CDLL(None, use_errno=True);"
        " sys.exit(libc.ptrace(16, int(sys.argv[1]), 0, 0) and ctypes.get_errno())"
    )
    code, _ = _as_app(mesh, "python3", "-c", attach, str(mesh.proxy_pid(POD)))
    assert code == 1  # EPERM


@pytest.mark.attack_row(41)
def test_no_key_lies_in_a_file_that_the_proxy_has_open(mesh: Mesh) -> None:
    pid = mesh.proxy_pid(POD)
    targets = mesh.node("find", f"/proc/{pid}/fd", "-type", "l", "-printf", "%l\n").split("\n")
    plain = [t for t in targets if t.startswith("/") and not t.startswith(("/dev/", "/usr/"))]
    assert [t for t in plain if ".pem" in t or "key" in t or "memfd" in t] == []
    # Only the container's own file systems: podlink's code may be mounted somewhere below /tmp.
    folders = [f"/proc/{pid}/root/run", f"/proc/{pid}/root/tmp"]
    look = ["-xdev", "-type", "f", "-exec", "grep", "-lE", "PRIVATE KEY", "{}", "+"]
    found = mesh.cluster.node_exec(["find", *folders, *look])
    assert found.stdout == ""
