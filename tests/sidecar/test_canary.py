"""When the canary says that capture is gone, and when only that we were late."""

import asyncio
import socket

import pytest

from kit.contract import canary_answer
from sidecar import canary
from sidecar.canary import Canary, CaptureWatch, dial
from tests.patience import PATIENCE_S

ANSWER = canary_answer("uid")


async def serve(says: bytes | None) -> asyncio.Server:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if says is not None:
            writer.write(says)
        else:
            await reader.read()
        writer.close()

    return await asyncio.start_server(handle, "127.0.0.1", 0)


@pytest.mark.parametrize(
    ("says", "found"),
    [
        (ANSWER, Canary.LANDED),
        (None, Canary.LATE),
        (b"", Canary.MISSED),
        (canary_answer("another"), Canary.MISSED),
        (b"HTTP/1.1 400 Bad Request", Canary.MISSED),
    ],
)
async def test_only_our_own_answer_proves_that_capture_is_there(
    says: bytes | None, found: Canary
) -> None:
    server = await serve(says)
    ip, port = server.sockets[0].getsockname()
    assert await dial(ip, port, ANSWER, timeout_s=0.3) is found
    server.close()


async def test_a_port_where_nobody_listens_is_a_miss() -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    ip, port = sock.getsockname()
    sock.close()
    assert await dial(ip, port, ANSWER, timeout_s=0.3) is Canary.MISSED


async def test_a_proxy_that_stands_still_is_late_and_never_says_that_the_rules_are_gone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel connects the canary to a socket that nobody accepts from: so the rules are there."""
    listening = socket.create_server(("127.0.0.1", 0))
    ip, port = listening.getsockname()
    monkeypatch.setattr(canary, "CANARIES", {4: (ip, port)})
    monkeypatch.setattr(canary, "EVERY_S", 0.01)
    monkeypatch.setattr(canary.dial, "__defaults__", (0.05,))
    watch = CaptureWatch("uid")
    running = asyncio.ensure_future(watch.run())
    async with asyncio.timeout(PATIENCE_S):
        while watch.late < 3:
            await asyncio.sleep(0.01)
    assert watch.in_place is None
    listening.close()  # now nobody is there: that is the kernel's own word
    async with asyncio.timeout(PATIENCE_S):
        while watch.in_place is not False:
            await asyncio.sleep(0.01)
    running.cancel()
    assert sum("capture is gone" in record.message for record in caplog.records) == 1
