"""The writer thread: back-pressure and retention."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.sidecar.telemetry.records import denied, outbound
from tests.traces.spans import request_of
from traces.config import TracesConfig
from traces.query import LinkFilter, QueryTooSlow, Reader
from traces.schema import StoreUnusable, open_for_writing
from traces.writer import StoreBusy, StoreFailed, Writer


class Hand:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.ns = 1_000_000_000_000_000_000

    def __call__(self) -> int:
        return self.ns


@asynccontextmanager
async def writing(config: TracesConfig, clock: Callable[[], int]) -> AsyncIterator[Writer]:
    writer = Writer(config, clock_ns=clock, sweep_every_s=0.05)
    writer.start()
    try:
        yield writer
    finally:
        await writer.stop()


@pytest.fixture
def config(tmp_path: Path) -> TracesConfig:
    return TracesConfig(db_path=tmp_path / "t.db", token_path=tmp_path / "token")


def kept(config: TracesConfig) -> dict[str | None, int]:
    with contextlib.closing(sqlite3.connect(config.db_path)) as db:
        return dict(
            db.execute("SELECT verdict, count(*) FROM link_spans GROUP BY verdict").fetchall()
        )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.05)


async def test_spans_are_deleted_when_they_are_too_old(config: TracesConfig) -> None:
    hand = Hand()
    async with writing(replace(config, keep_s=3600), hand) as writer:
        await writer.write(request_of(denied()))
        hand.ns += 1800 * 10**9
        await writer.write(request_of(outbound()))
        hand.ns += 2000 * 10**9
        await until(lambda: kept(config) == {"allowed": 1})


@pytest.mark.attack_row(44)
async def test_what_is_too_much_goes_oldest_first_and_denials_last(config: TracesConfig) -> None:
    async with writing(replace(config, max_bytes=600 << 10), Hand()) as writer:
        await writer.write(request_of(denied()))
        for _ in range(12):
            await writer.write(request_of(*(outbound() for _ in range(250))))
        await until(lambda: kept(config).get("allowed", 0) < 2000)
        assert kept(config)["denied"] == 1


async def test_a_writer_that_is_behind_says_so_instead_of_growing(config: TracesConfig) -> None:
    request = request_of(*(outbound() for _ in range(100)))
    writer = Writer(replace(config, max_waiting_bytes=request.ByteSize() * 2))
    first = [asyncio.ensure_future(writer.write(request)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(StoreBusy):
        await writer.write(request)
    writer.start()  # only now does anything get written
    assert await asyncio.gather(*first) == [0, 0]
    assert await writer.write(request) == 0
    await writer.stop()


async def test_a_disk_that_refuses_is_told_to_the_sender_and_not_fatal(
    config: TracesConfig,
) -> None:
    async with writing(config, Hand()) as writer:
        with contextlib.closing(sqlite3.connect(config.db_path)) as other:
            other.execute("ALTER TABLE spans RENAME TO away")
            with pytest.raises(StoreFailed):
                await writer.write(request_of(outbound()))
            other.execute("ALTER TABLE away RENAME TO spans")
        await writer.write(request_of(outbound()))
    assert kept(config) == {"allowed": 1}


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "not.db"
    path.write_bytes(b"hello" * 1000)
    with pytest.raises(StoreUnusable):
        open_for_writing(path)
    with contextlib.closing(sqlite3.connect(tmp_path / "newer.db")) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreUnusable, match="another version"):
        open_for_writing(tmp_path / "newer.db")


async def test_a_question_that_takes_too_long_is_cut_off(config: TracesConfig) -> None:
    async with writing(config, Hand()) as writer:
        await writer.write(request_of(*(outbound() for _ in range(2500))))
        itself = outbound(security="self", source_pod="x/y", destination_pod="x/y")
        itself.source_identity = itself.destination_identity = ""
        await writer.write(request_of(itself))
        wanted = LinkFilter(namespace="shop", security="self")
        assert await Reader(config.db_path).links(wanted) == []
        with pytest.raises(QueryTooSlow):
            await Reader(config.db_path, deadline_s=-1.0).links(wanted)
