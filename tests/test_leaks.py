"""The guard of tests/leaks.py, shown on tests that leak on purpose and on ones that do not."""

import os
import subprocess
from pathlib import Path

import pytest

from tests import leaks

ROOT = Path(__file__).resolve().parents[1]
HEAD = """
import asyncio, os, socket, subprocess, sys, threading, time
import pytest

KEPT = []
SLEEP = [sys.executable, "-c", "import time; time.sleep(20)"]
"""

LEAKS = {
    "asyncio task": """
        async def test_it():
            KEPT.append(asyncio.get_running_loop().create_task(asyncio.sleep(60)))
            await asyncio.sleep(0)
        """,
    "descriptor": """
        def test_it():
            KEPT.append(socket.socket())
        """,
    "child process": """
        def test_it():
            KEPT.append(subprocess.Popen(SLEEP))
        """,
    "thread": """
        def test_it():
            KEPT.append(threading.Thread(target=time.sleep, args=(4,)))
            KEPT[0].start()
        """,
    "network namespace": """
        def test_it(netns_name):
            subprocess.run(["ip", "netns", "add", netns_name], check=True)
        """,
    "process in another network namespace": """
        def test_it():
            # Its parent is gone at once, so that it is nobody's child that we would know.
            subprocess.run(["sh", "-c", "unshare -n sleep 20 >/dev/null 2>&1 &"], check=True)
            time.sleep(0.3)
        """,
}

GOOD = """
    async def test_what_is_ended_is_no_leak():
        task = asyncio.get_running_loop().create_task(asyncio.sleep(60))
        task.cancel()

    async def test_what_ends_a_moment_later_is_none():
        asyncio.get_running_loop().create_task(asyncio.sleep(0.2))

    @pytest.fixture(scope="module")
    def child():
        it = subprocess.Popen(SLEEP)
        sock = socket.socket()
        yield it
        sock.close()
        it.kill()
        it.wait()

    def test_what_a_module_shares_is_none(child):
        pass

    def test_nor_is_it_in_the_next_test(child):
        pass
    """

MODULE_LEAK = """
    @pytest.fixture(scope="module")
    def kept():
        KEPT.append(socket.socket())
        yield KEPT[0]

    def test_one(kept):
        pass

    def test_two(kept):
        pass
    """


def run(pytester: pytest.Pytester, body: str, monkeypatch: pytest.MonkeyPatch) -> pytest.RunResult:
    """Run a file of tests under the guard, in a process of its own."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    lines = body.strip("\n").splitlines()
    margin = len(lines[0]) - len(lines[0].lstrip())
    pytester.makepyfile(HEAD + "\n".join(line[margin:] for line in lines))
    pytester.makeini(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )
    pytester.makeconftest(
        "import pytest\nfrom tests import leaks\nleaks.PATIENCE_S = 2.0\n"
        f"@pytest.fixture\ndef netns_name():\n    return 'leak-{os.getpid()}'\n"
    )
    return pytester.runpytest_subprocess("-p", "tests.leaks", "-p", "no:cacheprovider", timeout=120)


@pytest.mark.netns
@pytest.mark.parametrize("kind", LEAKS)
def test_a_test_that_leaves_something_behind_fails(
    kind: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "network" in kind and os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    try:
        result = run(pytester, LEAKS[kind], monkeypatch)
    finally:
        for pid in _sleepers(pytester.path):
            os.kill(pid, 9)
        subprocess.run(["ip", "netns", "del", f"leak-{os.getpid()}"], stderr=subprocess.DEVNULL)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["the * left behind:", f"  {kind}: *"])


@pytest.mark.netns
def test_a_namespace_of_another_run_is_not_blamed_on_this_one() -> None:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with subprocess.Popen(["sleep", "30"]) as other:
        name = f"leak-{other.pid}"
        subprocess.run(["ip", "netns", "add", name], check=True)
        try:
            assert ("network namespace", name) not in leaks.present()
            other.kill()
            other.wait()
            assert ("network namespace", name) not in leaks.present(), "nor when that has ended"
        finally:
            other.kill()
            subprocess.run(["ip", "netns", "del", name], check=True)


def _sleepers(folder: Path) -> list[int]:
    """What the leaking test started and left: it sleeps in the folder that pytester made."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cwd").readlink() == folder and b"sleep" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def test_what_is_ended_or_shared_is_no_leak(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(pytester, GOOD, monkeypatch).assert_outcomes(passed=4)


def test_what_a_shared_fixture_leaves_counts_once_at_the_end_of_its_module(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(pytester, MODULE_LEAK, monkeypatch)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["the module left behind:", "  descriptor: *socket*"])


def test_what_grpc_keeps_for_the_life_of_the_process_is_no_leak(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = """
    import grpc.aio

    @pytest.mark.parametrize("turn", range(2))
    async def test_a_server_and_a_channel(turn):
        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await channel.channel_ready()
        await server.stop(0)
    """
    run(pytester, body, monkeypatch).assert_outcomes(passed=2)
