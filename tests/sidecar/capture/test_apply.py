"""Capture as it runs: the real init container's program, in network namespaces made for it.

`pod` and `world` are two namespaces joined by a veth pair. Programs run in them through `ip netns exec`.
"""

import contextlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from kit.contract import OUTBOUND_PORT, PROXY_GID, PROXY_MARK, PROXY_UID
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]


def sh(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S)


class Pod:
    """A namespace like a pod's, and one beside it that stands for the rest of the world."""

    def __init__(self, name: str) -> None:
        self.name, self.world = f"{name}-pod", f"{name}-world"

    def up(self) -> None:
        for command in f"""
            netns add {self.name}
            netns add {self.world}
            -n {self.name} link add eth0 type veth peer name eth0 netns {self.world}
            -n {self.name} link set lo up
            -n {self.world} link set lo up
            -n {self.name} link set eth0 up
            -n {self.world} link set eth0 up
            -n {self.name} addr add 10.77.0.2/24 dev eth0
            -n {self.world} addr add 10.77.0.1/24 dev eth0
            -n {self.name} addr add fd77::2/64 dev eth0 nodad
            -n {self.world} addr add fd77::1/64 dev eth0 nodad
            -n {self.name} route add default via 10.77.0.1
            -n {self.name} route add default via fd77::1
        """.strip().splitlines():
            done = sh("ip", *command.split())
            assert done.returncode == 0, f"{command}: {done.stderr}"

    def down(self) -> None:
        for name in (self.name, self.world):
            sh("ip", "netns", "del", name)

    def run(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self._run(self.name, words, env)

    def in_world(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self._run(self.world, words, {})

    def _run(
        self, where: str, words: Sequence[str], env: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ip", "netns", "exec", where, *words],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], **env},
        )

    @contextlib.contextmanager
    def talk(self, where: str, code: str, *words: str) -> Iterator[Callable[..., str]]:
        """Runs a Python program there; the call says a line to it, if any, and hears one."""
        with subprocess.Popen(
            ["ip", "netns", "exec", where, sys.executable, "-c", code, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={"PATH": os.environ["PATH"]},
        ) as program:
            assert program.stdin is not None and program.stdout is not None
            said, heard = program.stdin, program.stdout

            def talk(line: str = "") -> str:
                if line:
                    said.write(line + "\n")
                    said.flush()
                return heard.readline().rstrip("\n")

            try:
                yield talk
            finally:
                program.kill()

    def capture(self, *before: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self.run(*before, sys.executable, "-m", "sidecar.capture", **env)

    def tables(self) -> str:
        return self.run("nft", "list", "ruleset").stdout

    def lands(self, ip: str, port: int, *, uid: int = 0, mark: int = 0) -> str:
        """Where a connection of the app ends: `captured ip port`, or `through`, or `refused`.

        `world` is not asked: whether it would answer does not matter, only who does.
        """
        return self.run(
            sys.executable, "-c", _PROBE, ip, str(port), str(uid), str(mark)
        ).stdout.strip()


_PROBE = textwrap.dedent(f"""
    import os, socket, sys
    from sidecar.sockets import listen, original_dst
    ip, port, uid, mark = sys.argv[1], *map(int, sys.argv[2:])
    ours = listen("::1" if ":" in ip else "127.0.0.1", {OUTBOUND_PORT})
    ours.settimeout(0.5)
    if uid:  # before the socket is made: a socket belongs to who made it
        os.setgid({PROXY_GID})
        os.setuid(uid)
    app = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
    app.settimeout(1.0)
    if mark:
        app.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    try:
        app.connect((ip, port))
    except OSError as e:
        print("refused" if isinstance(e, ConnectionRefusedError) else type(e).__name__)
        sys.exit()
    try:
        print("captured", *original_dst(ours.accept()[0]))
    except TimeoutError:
        print("through")
""")


@pytest.fixture
def pod() -> Iterator[Pod]:
    it = Pod(f"cap{os.getpid()}")
    try:
        it.up()
        yield it
    finally:
        it.down()


def test_both_ip_versions_are_captured_and_their_destination_is_kept(pod: Pod) -> None:
    done = pod.capture()
    assert done.returncode == 0, done.stderr
    assert "IPv4 captured" in done.stderr + done.stdout
    assert "IPv6 captured" in done.stderr + done.stdout
    assert pod.lands("10.77.0.1", 80) == "captured 10.77.0.1 80"
    assert pod.lands("192.0.2.9", 443) == "captured 192.0.2.9 443"
    assert pod.lands("fd77::1", 80) == "captured fd77::1 80"


def test_the_proxy_itself_loopback_and_what_is_skipped_are_left_alone(pod: Pod) -> None:
    done = pod.capture(PODLINK_SKIP_OUTBOUND_PORTS="81", PODLINK_SKIP_SUBNETS="10.77.0.1/32")
    assert done.returncode == 0, done.stderr
    assert pod.lands("fd77::1", 80) == "captured fd77::1 80"
    assert pod.lands("fd77::1", 80, uid=PROXY_UID) == "refused", "it went out to the world"
    assert pod.lands("fd77::1", 80, uid=PROXY_UID + 1) == "captured fd77::1 80"
    assert pod.lands("fd77::1", 80, mark=PROXY_MARK) == "captured fd77::1 80", "not by mark"
    assert pod.lands("fd77::1", 81) == "refused"
    assert pod.lands("10.77.0.1", 80) == "refused"
    assert pod.lands("127.0.0.1", 80) == "refused"
    assert pod.lands("::1", 80) == "refused"
    assert pod.lands("10.77.0.2", 80) == "captured 10.77.0.2 80", "the pod's own address"


def test_exempt_by_mark_lets_marked_connections_pass_and_no_uid(pod: Pod) -> None:
    assert pod.capture(PODLINK_EXEMPT_BY="mark").returncode == 0
    assert pod.lands("fd77::1", 80, mark=PROXY_MARK) == "refused"
    assert pod.lands("fd77::1", 80, mark=PROXY_MARK + 1) == "captured fd77::1 80"
    assert pod.lands("fd77::1", 80, uid=PROXY_UID) == "captured fd77::1 80"


def test_twice_is_as_once_and_nobody_else_s_table_is_touched(pod: Pod) -> None:
    theirs = "table ip theirs { chain c { tcp dport 7 drop; }; }"
    assert pod.run("nft", theirs).returncode == 0
    assert pod.capture().returncode == 0
    once = pod.tables()
    assert "table ip theirs" in once
    assert pod.capture().returncode == 0
    assert sorted(pod.tables().split("\ntable")) == sorted(once.split("\ntable"))
    assert pod.tables().count("redirect to") == 4


@pytest.mark.fault_row("start-order")
def test_without_net_admin_it_fails_in_one_line_and_leaves_nothing(pod: Pod) -> None:
    done = pod.capture("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
    assert done.returncode == 1
    (line,) = (done.stderr + done.stdout).strip().splitlines()
    assert "NET_ADMIN" in line
    assert pod.tables() == ""


def test_without_nft_it_fails_in_one_line(pod: Pod) -> None:
    done = pod.capture("env", "PATH=/nowhere")
    assert done.returncode == 1
    (line,) = (done.stderr + done.stdout).strip().splitlines()
    assert "nft is missing" in line


@pytest.mark.fault_row("rules-vanish")
def test_rules_that_do_not_capture_are_noticed_by_the_canary_and_taken_away(pod: Pod) -> None:
    thief = (
        "table inet thief { chain c { type nat hook output priority -150; policy accept; "
        "tcp dport 9 redirect to :11; }; }"
    )
    added = pod.run("nft", thief)
    assert added.returncode == 0, added.stderr
    done = pod.capture()
    assert done.returncode == 1
    (line,) = (done.stderr + done.stdout).strip().splitlines()
    assert "not captured" in line
    assert "table inet podlink" not in pod.tables()
    assert "table inet thief" in pod.tables()
