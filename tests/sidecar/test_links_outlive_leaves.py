"""200 links of mixed traffic live through many leaves and a root rotation: no reset, no wrong byte.

The short form has leaves of five seconds, more on a slow machine; the long one (`make soak`) leaves of a
minute, for an hour.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kit.clock import monotonic
from kit.tasks import spawn, stop
from tests.certs.running_ca import running_ca
from tests.patience import PATIENCE_S, slowness
from tests.sidecar.mesh_of_two import Two, two_sidecars
from tests.sidecar.test_rotation_under_load import rotate

LINKS = 200
KINDS = ("chat", "quiet", "down", "up", "slow", "stall", "deaf", "chat")
PATTERN = bytes(range(251)) * 300
PIECE = 251 * 20
"""A whole number of patterns: each piece is known without a counter."""


DEAF_UNTIL: dict[int, asyncio.Event] = {}
"""By the app's port: when the deaf connections hear again."""


def pattern(size: int) -> bytes:
    return PATTERN[:size]


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The app: what it does with a connection stands in its first four bytes."""
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        kind = (await reader.readexactly(5)).strip().decode()
        if kind in ("down", "slow", "stall"):
            while not reader.at_eof():
                writer.write(pattern(PIECE))
                await writer.drain()  # what is read slowly, or not at all, fills all there is
                await asyncio.sleep(0.1 if kind == "down" else 0.0)
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.001):
                        await reader.read(1)
        elif kind in ("up", "deaf"):
            if kind == "deaf":
                await reader.readexactly(1)
                over = DEAF_UNTIL[writer.get_extra_info("sockname")[1]]
                await over.wait()
            right = 0
            while got := await reader.read(PIECE):
                at = right % 251
                if got != PATTERN[at : at + len(got)]:
                    break
                right += len(got)
            writer.write(b"%d" % right)
        else:
            while got := await reader.read(65536):
                writer.write(got)
                await writer.drain()
    writer.close()


class Mix:
    """`LINKS` links that are opened once and live until `over` is set; what went wrong is counted."""

    def __init__(self, two: Two, pause_s: float) -> None:
        self._address, self._pause_s = two.upstream, pause_s
        self.over = DEAF_UNTIL[two.app_port] = asyncio.Event()
        self.wrong: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.open = 0
        self.moved = 0

    async def run(self) -> None:
        await asyncio.gather(*(self._one(KINDS[n % len(KINDS)], n) for n in range(LINKS)))

    async def _one(self, kind: str, number: int) -> None:
        await asyncio.sleep(number * 0.005)
        try:
            reader, writer = await asyncio.open_connection(*self._address)
            writer.write(kind.ljust(5).encode())
            self.open += 1
            run: Callable[..., Any] = getattr(self, f"_{kind}")
            await run(reader, writer)
            self.done[kind] += 1
            writer.close()
        except (OSError, EOFError) as e:
            self.wrong[f"{kind}: {type(e).__name__}"] += 1
        except AssertionError:
            self.wrong[f"{kind}: a wrong byte"] += 1

    async def _chat(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = 0
        while not self.over.is_set():
            said += 1
            word = b"word %d" % said
            writer.write(word)
            assert await reader.readexactly(len(word)) == word
            self.moved += len(word)
            await asyncio.sleep(self._pause_s)

    async def _quiet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.over.wait()
        writer.write(b"at last")
        assert await reader.readexactly(7) == b"at last"

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        at = 0
        while not self.over.is_set():
            got = await reader.readexactly(251)
            assert got == pattern(251)
            at += 251
        self.moved += at

    async def _slow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The far app writes as fast as it may and we read slowly: the tunnel is full all the time."""
        while not self.over.is_set():
            for _ in range(200):
                assert await reader.readexactly(251) == pattern(251)
            self.moved += 200 * 251
            await asyncio.sleep(0.2)

    async def _stall(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """We read nothing until it is over: no frame of the far side reaches our proxy."""
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await self.over.wait()
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(40):
            assert await reader.readexactly(PIECE) == pattern(PIECE)

    async def _deaf(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The far app reads nothing until it is over: no frame of ours reaches its proxy."""
        writer.write(b"!")
        sent = 0
        while not self.over.is_set():
            writer.write(pattern(PIECE))
            sent += PIECE
            with suppress(TimeoutError):
                async with asyncio.timeout(0.9):
                    await writer.drain()
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b"%d" % sent

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent = 0
        while not self.over.is_set():
            writer.write(pattern(251 * 4))
            await writer.drain()
            sent += 251 * 4
            await asyncio.sleep(self._pause_s)
        writer.write_eof()
        assert await reader.read() == b"%d" % sent
        self.moved += sent


def check(two: Two, mix: Mix, least: int) -> None:
    """Nothing went wrong, and each link was renewed at least so often on each side."""
    assert not mix.wrong, (dict(mix.wrong), two.why())
    assert mix.done.total() == LINKS
    for records in (two.records, two.far_records):
        ended = [r for r in records if not r.still_open]
        assert len(ended) == LINKS
        assert Counter(r.close for r in ended) <= Counter(fin=LINKS, reset=LINKS)
        assert all(r.security == "mtls" for r in ended)
        assert min(r.renewed for r in ended) >= least, sorted(r.renewed for r in ended)
        assert all(len(set(r.renewals)) == len(r.renewals) for r in ended)


async def outlive(two: Two, mix: Mix, during: Any) -> None:
    running = spawn(mix.run(), name="the links")
    try:
        await during
        mix.over.set()
        await asyncio.wait_for(running, PATIENCE_S)
    finally:
        await stop(running)


@pytest.mark.cpu_limit(60)  # both sidecars, the CA and 200 apps are in this process
@pytest.mark.fault_row("root-rotation")
async def test_links_live_through_leaves_of_five_seconds_and_a_root_rotation(
    tmp_path: Path,
) -> None:
    second = slowness()
    short: Any = {"leaf_ttl_s": 5.0 * second, "stale_s": 1.0 * second, "reread_s": 0.2}
    async with running_ca(tmp_path, **short) as ca, two_sidecars(ca, serve) as two:
        mix = Mix(two, pause_s=0.2)

        async def during() -> None:
            began = monotonic()
            await asyncio.sleep(4 * second)
            await rotate(ca, 1, wait_for_clocks=False)
            await asyncio.sleep(max(0.0, began + 20 * second - monotonic()))

        await outlive(two, mix, during())
        await asyncio.sleep(0.5)
        check(two, mix, least=4)


@pytest.mark.soak
@pytest.mark.timeout(4200)
@pytest.mark.fault_row("soak")
async def test_links_live_for_an_hour_with_leaves_of_a_minute_and_a_root_rotation(
    tmp_path: Path,
) -> None:
    long: Any = {"leaf_ttl_s": 60.0, "stale_s": 5.0, "reread_s": 1.0}
    async with running_ca(tmp_path, **long) as ca, two_sidecars(ca, serve) as two:
        mix = Mix(two, pause_s=1.0)

        async def during() -> None:
            began = monotonic()
            await asyncio.sleep(600)
            await rotate(ca, 1, wait_for_clocks=True)
            await asyncio.sleep(max(0.0, began + 3600 - monotonic()))

        await outlive(two, mix, during())
        await asyncio.sleep(1.0)
        check(two, mix, least=100)
        print(f"{LINKS} links, {mix.moved} bytes, an hour: {two.records[0].renewed} renewals each")
