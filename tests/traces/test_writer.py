"""The writer thread: back-pressure and retention."""

import asyncio
import base64
import contextlib
import random
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sidecar.report import LinkRecord
from tests.patience import PATIENCE_S
from tests.sidecar.telemetry.records import API, DB, denied, outbound
from tests.traces.page import shop
from tests.traces.spans import request_of
from traces.config import TracesConfig
from traces.query import LinkFilter, QueryTooSlow, Reader
from traces.retention import fair_cuts
from traces.schema import StoreUnusable, open_for_writing
from traces.writer import StoreBusy, StoreFailed, Writer, _Job, _Queue


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
    async with asyncio.timeout(PATIENCE_S):
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


@pytest.mark.attack_row(44)
@pytest.mark.parametrize("noise", ["denials of another", "refused certificates", "requests"])
async def test_noise_that_is_not_ordinary_pushes_out_no_denial_either(
    config: TracesConfig, noise: str
) -> None:
    """Whoever reaches a port can be denied there, or refused by the CA, as often as he likes, and an app
    decides how many requests its links carry."""
    made: dict[str, Callable[[], ExportTraceServiceRequest]] = {
        "denials of another": lambda: request_of(*(stranger("10.9.9.9") for _ in range(500))),
        "refused certificates": lambda: many(
            lambda: shop.certificate("certificate refused", Hand().ns, "shop/api"), 500
        ),
        "requests": lambda: many(request_span, 500),
    }
    limit = 600 << 10
    async with writing(replace(config, max_bytes=limit), Hand()) as writer:
        await writer.write(request_of(stranger("10.1.1.1")))
        for _ in range(12):
            await writer.write(made[noise]())
        await until(lambda: used_bytes(config) <= limit)
        assert sources_denied(config)["10.1.1.1"] == 1
        # And the store still keeps what comes now.
        await writer.write(request_of(stranger("10.2.2.2")))
        await until(lambda: sources_denied(config).get("10.2.2.2") == 1)


def stranger(source_ip: str) -> LinkRecord:
    return denied(source_ip=source_ip, source_identity="", source_pod="")


def many(make: Callable[[], ExportTraceServiceRequest], count: int) -> ExportTraceServiceRequest:
    found = ExportTraceServiceRequest()
    for _ in range(count):
        found.MergeFrom(make())
    return found


def request_span() -> ExportTraceServiceRequest:
    asked = request_of(outbound())
    span = asked.resource_spans[0].scope_spans[0].spans[0]
    span.name, span.span_id = "GET", random.randbytes(8)
    return asked


def used_bytes(config: TracesConfig) -> int:
    with contextlib.closing(sqlite3.connect(config.db_path)) as db:
        pages, free, size = (
            db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
    return int((pages - free) * size)


def sources_denied(config: TracesConfig) -> dict[str, int]:
    with contextlib.closing(sqlite3.connect(config.db_path)) as db:
        return dict(
            db.execute(
                "SELECT source, count(*) FROM link_spans WHERE verdict = 'denied' GROUP BY source"
            ).fetchall()
        )


@given(
    st.lists(st.integers(0, 5000), max_size=30).map(lambda found: list(enumerate(found))),
    st.integers(1, 3000),
)
def test_the_largest_are_cut_to_one_height_and_no_smaller_one_is_touched(
    counts: list[tuple[int | None, int]], wanted: int
) -> None:
    cuts, before = dict(fair_cuts(counts, wanted)), dict(counts)
    left = {group: count - cuts.get(group, 0) for group, count in before.items()}
    assert sum(cuts.values()) >= min(wanted, sum(before.values()))
    assert sum(cuts.values()) < wanted + max(1, len(counts))
    assert all(0 < cut <= before[group] for group, cut in cuts.items())
    height = max((left[group] for group in cuts), default=0)
    assert all(left[group] == height for group in cuts)
    assert all(count <= height for group, count in before.items() if group not in cuts)


async def test_a_writer_that_is_behind_says_so_instead_of_growing(config: TracesConfig) -> None:
    request = request_of(*(outbound() for _ in range(100)))
    writer = Writer(replace(config, max_waiting_bytes=request.ByteSize() * 2))
    first = [asyncio.ensure_future(writer.write(request)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(StoreBusy):
        await writer.write(request)
    writer.start()  # only now does anything get written
    assert await asyncio.gather(*first) == [{}, {}]
    assert await writer.write(request) == {}
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


OTHERS = "spiffe://cluster.local/ns/evil/sa/x"


def heavy(verdict: str) -> LinkRecord:
    """A span as large as one may be, of noise that nothing squeezes."""
    text = base64.b64encode(random.randbytes(2200)).decode()
    made = denied(source_identity=OTHERS, error=text[:1000]) if verdict == "denied" else outbound()
    made.source_identity, made.endpoint_choice, made.nearest_rule = OTHERS, text[:1000], text[1000:]
    return made


@pytest.mark.attack_row(58)
@pytest.mark.parametrize("noise", ["denied", "allowed", "resources", "edges", "chains"])
async def test_one_sender_pushes_out_nobody_elses_spans(config: TracesConfig, noise: str) -> None:
    limit = 6 << 20
    async with writing(replace(config, max_bytes=limit), Hand()) as writer:
        await writer.write(request_of(outbound(), outbound(), denied()), API)
        for number in range(40):
            made = [heavy("denied" if noise == "denied" else "allowed") for _ in range(60)]
            if noise == "edges":
                for n, one in enumerate(made):
                    one.destination_identity = f"spiffe://cluster.local/ns/n{number}/sa/x{n}"
            request = request_of(*made)
            if noise == "resources":
                request = ExportTraceServiceRequest()
                for one in made:
                    part = request_of(one).resource_spans[0]
                    part.resource.attributes.add(key="x").value.bytes_value = random.randbytes(4000)
                    request.resource_spans.append(part)
            if noise == "chains":
                for span in request.resource_spans[0].scope_spans[0].spans:
                    span.attributes.add(
                        key="podlink.chain.id"
                    ).value.string_value = random.randbytes(16).hex()
            await writer.write(request, OTHERS)
        await until(lambda: used_bytes(config) <= limit)
        await writer.write(request_of(outbound()), DB)
        await asyncio.sleep(0.2)
        with contextlib.closing(sqlite3.connect(config.db_path)) as db:
            told = dict(
                db.execute(
                    "SELECT senders.name, count(*) FROM spans JOIN senders ON senders.id = sender "
                    "GROUP BY 1"
                ).fetchall()
            )
            assert (told[API], told[DB]) == (3, 1)
            assert told.get(OTHERS, 0) < 2400
            for name, said, found in db.execute(
                "SELECT name, bytes, (SELECT coalesce(sum(size), 0) FROM spans WHERE sender = "
                "senders.id) + (SELECT coalesce(sum(length(resource) + 300), 0) FROM resources "
                "WHERE resources.sender = senders.name) FROM senders"
            ):
                assert said == found, name


@pytest.mark.attack_row(58)
async def test_a_span_may_not_be_as_large_as_a_hundred(config: TracesConfig) -> None:
    async with writing(config, Hand()) as writer:
        request = request_of(denied())
        span = request.resource_spans[0].scope_spans[0].spans[0]
        span.attributes.add(key="error.message").value.bytes_value = random.randbytes(60_000)
        await writer.write(request, API)
        with contextlib.closing(sqlite3.connect(config.db_path)) as db:
            [(size, verdict)] = db.execute(
                "SELECT length(span), verdict FROM link_spans"
            ).fetchall()
    assert size < 16_000 and verdict == "denied"


@pytest.mark.attack_row(58)
async def test_one_sender_takes_no_more_than_its_share_of_the_queue(config: TracesConfig) -> None:
    request = request_of(*(outbound() for _ in range(100)))
    writer = Writer(replace(config, max_waiting_bytes=request.ByteSize() * 16))
    waiting = [asyncio.ensure_future(writer.write(request, OTHERS)) for _ in range(2)]
    await asyncio.sleep(0)
    room = writer.has_room(OTHERS, request.ByteSize()), writer.has_room(API, request.ByteSize())
    waiting.append(asyncio.ensure_future(writer.write(request, OTHERS)))
    waiting.append(asyncio.ensure_future(writer.write(request, API)))
    await asyncio.sleep(0)
    writer.start()
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert room == (False, True)
    assert [type(one) for one in done] == [Counter, Counter, StoreBusy, Counter]
    assert await writer.write(request, OTHERS) == {}
    await writer.stop()


@pytest.mark.attack_row(58)
async def test_whoever_waits_has_a_turn_before_the_second_of_another(config: TracesConfig) -> None:
    """However much one sender has waiting, the next group holds a request of each."""
    line = _Queue()
    loop = asyncio.get_running_loop()
    for sender in (OTHERS, OTHERS, OTHERS, API, DB):
        line.put(_Job(request_of(), 100, loop, loop.create_future(), sender))
    _, group, _ = line.take(0, 300)
    assert [job.sender for job in group] == [OTHERS, API, DB]
    _, group, over = line.take(0, 300)
    assert ([job.sender for job in group], over) == ([OTHERS, OTHERS], False)
    line.end()
    assert line.take(0, 300) == ([], [], True)


async def test_a_file_of_the_version_before_is_taken_over(tmp_path: Path) -> None:
    """With all that is in it, and what each sender holds."""
    path = tmp_path / "t.db"
    config = TracesConfig(db_path=path, token_path=tmp_path / "token")
    async with writing(config, Hand()) as writer:
        await writer.write(request_of(outbound(), denied()), API)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(BACK_TO_3)
    async with writing(config, Hand()) as writer:
        await writer.write(request_of(outbound()), API)
    assert kept(config) == {"allowed": 2, "denied": 1}
    with contextlib.closing(sqlite3.connect(path)) as db:
        [(name, size)] = db.execute("SELECT name, bytes FROM senders").fetchall()
        assert name == API
        assert size >= db.execute("SELECT sum(size) FROM spans").fetchone()[0] > 1000
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


BACK_TO_3 = """
DROP VIEW link_spans;
DROP INDEX spans_by_ids; DROP INDEX ordinary_by_sender; DROP INDEX notable_by_sender;
DROP INDEX links_unchained; DROP INDEX resources_by_sender;
ALTER TABLE spans DROP COLUMN sender; ALTER TABLE spans DROP COLUMN size;
ALTER TABLE edges DROP COLUMN sender; ALTER TABLE ways DROP COLUMN sender;
DROP TABLE senders;
CREATE UNIQUE INDEX spans_by_trace ON spans (trace_id, digest);
CREATE INDEX ordinary_by_id ON spans (id) WHERE is_ordinary;
PRAGMA user_version = 3;
"""
