"""The admin socket, asked over the real socket, by its own user and by strangers."""

import asyncio
import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.admin import server as admin
from sidecar.admin import views
from sidecar.admin.__main__ import main
from sidecar.admin.server import AdminServer
from sidecar.admin.tap import _WAITING, Tap
from sidecar.pages import Answer, Request, as_json
from sidecar.report import LinkRecord
from tests.patience import PATIENCE_S


@pytest.fixture
async def tap() -> Tap:
    return Tap(lambda record: None)


@pytest.fixture
async def server(tmp_path: Path, tap: Tap) -> AsyncIterator[AdminServer]:
    running = AdminServer(tmp_path / "admin.sock")

    async def state(request: Request) -> Answer:
        return as_json({"asked": request.path, "query": dict(request.query)})

    async def lines(_: Request) -> Answer:
        return Answer(tap.lines())

    async def broken(_: Request) -> Answer:
        raise RuntimeError("a bug")

    for path, handler in (("/state", state), ("/tap", lines), ("/broken", broken)):
        running.routes.add(path, handler)
    await running.start()
    yield running
    await running.close()


async def ask(path: Path, request: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    got = b""
    with contextlib.suppress(ConnectionError):
        writer.write(request)
        got = await asyncio.wait_for(reader.read(), PATIENCE_S)
    writer.close()
    return got


async def client(path: Path, *argv: str) -> "subprocess.CompletedProcess[str]":
    """The client as `kubectl exec` runs it."""
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "sidecar.admin", *argv],
        env={"PODLINK_ADMIN_SOCKET": str(path), "PYTHONPATH": os.getcwd(), "PATH": os.defpath},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


async def test_a_page_is_json_and_the_socket_is_for_its_user_alone(
    server: AdminServer, tmp_path: Path
) -> None:
    where = tmp_path / "admin.sock"
    assert stat.S_IMODE(where.stat().st_mode) == 0o600
    got = await ask(where, b"GET /state?a=b HTTP/1.1\r\n\r\n")
    head, _, body = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert json.loads(body) == {"asked": "/state", "query": {"a": "b"}}


async def test_the_client_prints_the_page_and_says_in_one_line_what_is_wrong(
    server: AdminServer, tmp_path: Path
) -> None:
    where = tmp_path / "admin.sock"
    good = await client(where, "state")
    assert good.returncode == 0
    assert json.loads(good.stdout)["asked"] == "/state"
    unknown = await client(where, "/nothing")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr == "/nothing: not here\n"
    absent = await client(tmp_path / "none", "/state")
    assert absent.returncode == 1
    assert absent.stderr.startswith("the proxy does not answer at ")
    assert absent.stderr.count("\n") == 1
    assert main(["admin"]) == 2


@pytest.mark.attack_row(32)
async def test_another_user_is_turned_away_though_the_mode_would_let_it_in(
    server: AdminServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = tmp_path / "admin.sock"
    where.chmod(0o666)  # the second lock is open: the kernel's word for the peer must do
    monkeypatch.setattr(os, "geteuid", lambda: 24100)
    assert await ask(where, b"GET /state HTTP/1.1\r\n\r\n") == b""
    monkeypatch.undo()
    assert b"200 OK" in await ask(where, b"GET /state HTTP/1.1\r\n\r\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.attack_row(32)
async def test_the_kernel_keeps_another_user_from_connecting(
    server: AdminServer, tmp_path: Path
) -> None:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    code = (
        "import os, socket, sys; os.setresgid(1, 1, 1); os.setresuid(1, 1, 1)\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        f"try: s.connect({str(tmp_path / 'admin.sock')!r})\n"
        "except PermissionError: sys.exit(7)"
    )
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], timeout=PATIENCE_S)
    assert done.returncode == 7


async def test_a_socket_left_by_a_crash_is_replaced_and_ours_goes_with_us(tmp_path: Path) -> None:
    where = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(where))
    again = AdminServer(where)
    await again.start()
    assert (await ask(where, b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404")
    await again.close()
    assert not where.exists()


async def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot make the admin socket .*/no/admin.sock"):
        await AdminServer(tmp_path / "no" / "admin.sock").start()


async def test_a_page_that_fails_is_answered_and_the_next_one_works(
    server: AdminServer, tmp_path: Path
) -> None:
    where = tmp_path / "admin.sock"
    assert b" 500 " in await ask(where, b"GET /broken HTTP/1.1\r\n\r\n")
    assert b" 200 " in await ask(where, b"GET /state HTTP/1.1\r\n\r\n")


async def test_the_tap_says_each_link_as_it_ends_and_what_was_missed(
    server: AdminServer, tmp_path: Path, tap: Tap
) -> None:
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "admin.sock"))
    writer.write(b"GET /tap HTTP/1.1\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    while not tap._listeners:
        await asyncio.sleep(0)
    for number in range(1500):  # more than a listener may lag behind
        record = LinkRecord("inbound")
        record.source_port, record.error = number, "a\nb"
        tap.report(record)
    lines = []
    while True:
        lines.append(json.loads(await asyncio.wait_for(reader.readline(), PATIENCE_S)))
        if "missed" in lines[-1]:
            break
    assert [line["source_port"] for line in lines[:2]] == [0, 1]
    assert lines[0]["error"] == "a\nb"
    assert lines[-1]["missed"] == 1500 - _WAITING
    writer.close()
    while tap._listeners:  # else every later link would cost a line that nobody reads
        await asyncio.sleep(0.01)


async def test_who_connected_is_the_kernels_word(tmp_path: Path) -> None:
    near, far = socket.socketpair()
    with near, far:
        assert admin.peer_uid(near) == os.geteuid()


async def test_a_stream_ends_with_its_input_though_no_link_ends_meanwhile(
    server: AdminServer, tap: Tap, tmp_path: Path
) -> None:
    """Whoever ran `podlink tap` was killed: its runtime closes the input, and kills nothing."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sidecar.admin", "/tap?until=eof",
        env={"PODLINK_ADMIN_SOCKET": str(tmp_path / "admin.sock"), "PYTHONPATH": os.getcwd()},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    while not tap._listeners:
        await asyncio.sleep(0.01)
    process.stdin.close()
    assert await asyncio.wait_for(process.stdout.read(), PATIENCE_S) == b""
    assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0
    while tap._listeners:
        await asyncio.sleep(0.01)


def test_of_several_workers_source_addresses_are_proven_that_all_have_proven() -> None:
    one: views.Json = {"wanted": True, "proven": [4, 6], "why_not": {}, "counts": {"shown": 2}}
    other: views.Json = {**one, "proven": [6], "why_not": {"4": "x"}}
    other["counts"] = {"shown": 1, "b": 1}
    assert views.merge("sources", [one, other]) == {
        "wanted": True,
        "proven": [6],
        "why_not": {"4": "x"},
        "counts": {"shown": 3, "b": 1},
    }
