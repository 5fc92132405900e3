"""Every byte that arrives is the one that was sent, whatever happens around it.

Links of random sizes in both directions at once, some half-closed early, some reset, some read slowly,
while tunnels are broken and certificates replaced. A link may fail; it may never deliver a wrong byte,
and each has exactly one record on each side that let it in.
"""

import asyncio
import contextlib
import random
import socket
import struct
from typing import Any

import pytest

from tests.certs.forge import Forge
from tests.sidecar.dataplane.conftest import API, WEB, Pair, StartPair, trust_from

Serve = Any
RESET = struct.pack("ii", 1, 0)
ENDS = {"fin", "reset", "lost", "refused", "protocol_error"}


def stream(seed: int, size: int) -> bytes:
    """The bytes of one direction of one link: nothing in one is like another's."""
    return random.Random(seed).randbytes(size)


class Links:
    """A run of so many links; `broken` counts those that did not end well."""

    def __init__(self, pair: Pair, count: int, seed: int) -> None:
        self._pair, self._count = pair, count
        self._draw = random.Random(seed)
        self.whole = self.broken = 0

    async def run(self, at_once: int) -> None:
        gate = asyncio.Semaphore(at_once)

        async def one(number: int) -> None:
            async with gate:
                await self._link(number)

        await asyncio.gather(*(one(number) for number in range(self._count)))

    async def _link(self, number: int) -> None:
        draw = self._draw
        up, down = (draw.choice([0, 1, 1000, 65_000, 300_000]) for _ in range(2))
        what = draw.choice(["whole", "whole", "whole", "slow", "reset"])
        try:
            async with asyncio.timeout(20):
                await self._talk(number, up, down, what)
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            self.broken += 1

    async def _talk(self, number: int, up: int, down: int, what: str) -> None:
        reader, writer = await self._pair.client()
        try:
            writer.write(struct.pack("!III", number, up, down))
            sending = asyncio.ensure_future(self._send(writer, stream(2 * number, up)))
            expected, got = stream(2 * number + 1, down), b""
            while piece := await reader.read(4096 if what == "slow" else 65536):
                got += piece
                assert expected.startswith(got), f"link {number}: wrong bytes"
                if what == "slow":
                    await asyncio.sleep(0.001)
                if what == "reset" and len(got) > down // 2:
                    sock = writer.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    sending.cancel()
                    return
            await sending
            if got == expected:
                self.whole += 1
            else:
                raise ConnectionError("it ended early")
        finally:
            writer.close()

    async def _send(self, writer: asyncio.StreamWriter, body: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            for at in range(0, len(body), 50_000):
                writer.write(body[at : at + 50_000])
                await writer.drain()
            writer.write_eof()


async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends what the link's head asks for, and checks what it is sent meanwhile."""
    wrong = False
    try:
        number, up, down = struct.unpack("!III", await reader.readexactly(12))
        body = stream(2 * number + 1, down)

        async def answer() -> None:
            for at in range(0, len(body), 70_000):
                writer.write(body[at : at + 70_000])
                await writer.drain()
            writer.write_eof()

        answering = asyncio.ensure_future(answer())
        got, expected = b"", stream(2 * number, up)
        try:
            while piece := await reader.read(65536):
                got += piece
                if not expected.startswith(got):
                    wrong = True
            await answering
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        WRONG.extend([1] * wrong)
        writer.close()


WRONG: list[int] = []


async def _chaos(pair: Pair, forge: Forge, draw: random.Random) -> None:
    """Breaks an idle or busy tunnel now and then, and replaces both leaves."""
    while True:
        await asyncio.sleep(0.05)
        tunnels = list(pair.arrivals.tunnels)
        if tunnels and draw.random() < 0.5:
            sock = draw.choice(tunnels)._tunnel._sock
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        if draw.random() < 0.3:
            pair.near.plane.trust = trust_from(forge, WEB, "127.0.0.1")
            pair.far.plane.trust = trust_from(forge, API, "127.0.0.1")


async def _run(pair: Pair, forge: Forge, count: int, seed: int) -> Links:
    WRONG.clear()
    chaos = asyncio.ensure_future(_chaos(pair, forge, random.Random(seed)))
    links = Links(pair, count, seed)
    try:
        await links.run(at_once=24)
        assert not chaos.done(), "nothing was broken on the way"
    finally:
        chaos.cancel()
        await asyncio.gather(chaos, return_exceptions=True)
    async with asyncio.timeout(10):
        while pair.near.plane.live or pair.far.plane.live:
            await asyncio.sleep(0.05)
    assert not WRONG, "the app was sent wrong bytes"
    assert len(pair.near.records) == count, "one record per link"
    ids = [record.span_id for record in (*pair.near.records, *pair.far.records)]
    assert len(set(ids)) == len(ids)
    assert {record.close for record in (*pair.near.records, *pair.far.records)} <= ENDS
    for record in (*pair.near.records, *pair.far.records):
        assert record.close == "fin" or record.verdict != "denied"
    return links


@pytest.mark.timeout(60)
@pytest.mark.fault_row("soak")
async def test_no_byte_is_wrong_in_three_hundred_links_under_chaos(
    start_pair: StartPair, serve: Serve, forge: Forge
) -> None:
    links = await _run(start_pair(await serve(app)), forge, 300, 1)
    assert links.whole > 30


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.fault_row("soak")
@pytest.mark.parametrize("seed", range(5))
async def test_no_byte_is_wrong_in_two_thousand_links_under_chaos(
    start_pair: StartPair, serve: Serve, forge: Forge, seed: int
) -> None:
    links = await _run(start_pair(await serve(app)), forge, 2000, seed)
    assert links.whole > 200
