"""A proxy that an operator asks may be anybody's: whoever makes a pod names its containers."""

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import click
import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from cli.exec import MAX_ANSWER_BYTES, MAX_LINE_BYTES, ExecFailed, exec_json, exec_lines
from cli.tap import line
from kit.kube import Kube
from sidecar.report import LinkRecord

SUCCESS = json.dumps({"status": "Success"}).encode()
ESCAPE = "\x1b]0;owned\x07\x1b[2J\u202e"


@asynccontextmanager
async def pod_that_says(pieces: Iterable[bytes]) -> AsyncIterator[Kube]:
    """An API server whose exec call prints `pieces` on the standard output."""

    async def answer(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=("v5.channel.k8s.io",))
        await socket.prepare(request)
        try:
            for piece in pieces:
                await socket.send_bytes(b"\x01" + piece)
            await socket.send_bytes(b"\x03" + SUCCESS)
        except ConnectionError:
            pass  # who asked has had enough
        return socket

    app = web.Application()
    app.router.add_get("/api/v1/namespaces/shop/pods/evil/exec", answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        host = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with Kube(Configuration(host=host)) as kube:
            yield kube
    finally:
        await runner.cleanup()


async def read_lines(kube: Kube) -> list[object]:
    return [one async for one in exec_lines(kube, "shop", "evil", "/tap")]


async def test_an_answer_is_read_whole_and_a_stream_line_by_line() -> None:
    async with pod_that_says([b'{"a":', b" 1}"]) as kube:
        assert await exec_json(kube, "shop", "evil", "/state") == {"a": 1}
    async with pod_that_says([b'{"a": 1}\n{"b"', b": 2}\n"]) as kube:
        assert await read_lines(kube) == [{"a": 1}, {"b": 2}]


async def test_an_answer_without_end_is_given_up() -> None:
    piece, count = b" " * 65536, MAX_ANSWER_BYTES // 65536 + 2
    async with pod_that_says(piece for _ in range(count)) as kube:
        with pytest.raises(ExecFailed, match="more than"):
            await exec_json(kube, "shop", "evil", "/state")
    async with pod_that_says(piece for _ in range(MAX_LINE_BYTES // 65536 + 2)) as kube:
        with pytest.raises(ExecFailed, match="more than"):
            await read_lines(kube)


@pytest.mark.parametrize(
    "said", [b"nonsense\n", b"[]\n", b"1\n", b"\xff\n", b"[" * 100_000 + b"\n"]
)
async def test_a_line_that_is_no_record_ends_in_one_line(said: bytes) -> None:
    async with pod_that_says([said]) as kube:
        with pytest.raises(ExecFailed, match="not a JSON object"):
            await read_lines(kube)


@pytest.mark.attack_row(43)
@pytest.mark.parametrize("of", ["text", "list", "number"])
def test_no_field_of_a_record_moves_the_terminal(of: str) -> None:
    kinds: dict[str, object] = {"text": ESCAPE, "list": [ESCAPE], "number": 1 << 80}
    for field in LinkRecord.__slots__:
        shown = line({"direction": "inbound", field: kinds[of]})
        plain = click.unstyle(shown) if field != "verdict" else shown.replace("\x1b[0m", "")
        assert plain.isprintable(), field
