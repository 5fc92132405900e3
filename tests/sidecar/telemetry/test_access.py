"""The access log: what a line says, what nobody can make it say, and what a full pipe costs."""

import asyncio
import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.report import LinkRecord
from sidecar.telemetry.access import KEYS, AccessLines, AccessLog
from tests.patience import PATIENCE_S
from tests.sidecar.telemetry.records import API, DB, denied, outbound

F_SETPIPE_SZ = 1031
TEXTS = [
    "source_pod",
    "source_ip",
    "source_identity",
    "service",
    "destination_pod",
    "destination_ip",
    "destination_identity",
    "reason",
    "error",
    "policy",
    "rule",
    "close",
]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    for fd in (read, write):
        os.close(fd)


def ignore(record: LinkRecord) -> None:
    """Whoever would come next."""


def lines_in(fd: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in os.read(fd, 1 << 20).splitlines()]


def test_a_line_has_all_its_keys_in_order_and_says_what_the_record_knows() -> None:
    record = outbound(end_ns=1_800_000_000_250_000_000, start_ns=1_800_000_000_000_000_000)
    lines = AccessLines()
    for line in (lines.line(record), lines.line(record)):  # made, and from memory
        said = json.loads(line)
        assert tuple(said) == KEYS
        assert said == {
            "time": "2027-01-15T08:00:00.250Z",
            "level": "info",
            "scope": "access",
            "message": "link ended",
            "direction": "outbound",
            "src.addr": "10.1.0.7:43122",
            "src.workload": "api-1",
            "src.namespace": "shop",
            "src.identity": API,
            "dst.addr": "10.1.0.9:5433",
            "dst.service": "db.prod",
            "dst.workload": "db-0",
            "dst.namespace": "prod",
            "dst.identity": DB,
            "bytes_sent": 350,
            "bytes_recv": 81_920,
            "duration": "250ms",
            "security": "mtls",
            "verdict": "allowed",
            "reason": "",
            "error": "",
            "policy": "prod/db",
            "rule": "allow[0]",
            "close": "fin",
            "trace_id": record.trace_id.hex(),
            "span_id": record.span_id.hex(),
        }


@pytest.mark.attack_row(43)
@given(st.sampled_from(TEXTS), st.text(max_size=40), st.integers(0, 200))
def test_no_value_makes_a_second_line_or_another_key(name: str, text: str, more: int) -> None:
    hostile = f'{text}\r\n\x1b[2J\u2028","verdict":"allowed","x":"' * more + text
    [line] = AccessLines().line(denied(**{name: hostile})).splitlines()
    said = json.loads(line, object_pairs_hook=_once)
    assert tuple(said) == KEYS
    assert said["verdict"] == "denied"
    assert line.isascii()
    assert line.isprintable()
    assert len(line) < 10_000


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    assert len({key for key, _ in pairs}) == len(pairs)
    return dict(pairs)


async def test_links_leave_one_line_each_when_they_have_ended(pipe: tuple[int, int]) -> None:
    read, write = pipe
    then: list[LinkRecord] = []
    log = AccessLog(then.append, "all", write)
    log.start()
    for record in (outbound(), denied(), outbound(still_open=True)):
        log.report(record)
    await log.close()
    assert [line["verdict"] for line in lines_in(read)] == ["allowed", "denied"]
    assert len(then) == 3


@pytest.mark.parametrize(("which", "expected"), [("notable", ["denied", "allowed"]), ("off", [])])
async def test_it_can_be_held_to_what_is_notable_or_switched_off(
    pipe: tuple[int, int], which: Any, expected: list[str]
) -> None:
    read, write = pipe
    log = AccessLog(ignore, which, write)
    log.start()
    for record in (outbound(), denied(), outbound(security="plaintext"), outbound(security="self")):
        log.report(record)
    await log.close()
    os.write(write, b"{}\n")
    assert [line["verdict"] for line in lines_in(read)[:-1]] == expected


async def test_a_pipe_that_nobody_reads_costs_lines_and_is_told_of(pipe: tuple[int, int]) -> None:
    read, write = pipe
    fcntl.fcntl(write, F_SETPIPE_SZ, 4096)
    log = AccessLog(ignore, "all", write, room=32)
    log.start()
    for _ in range(200):
        log.report(outbound())
        await asyncio.sleep(0)
    await asyncio.sleep(0.3)  # the thread sits in write() now
    for _ in range(200):
        log.report(outbound())
    assert log.dropped > 200
    reading = asyncio.ensure_future(asyncio.to_thread(read_until_end, read))
    await log.close()
    os.write(write, b"END\n")
    *said, _ = (await reading).splitlines()
    dropped = [line["dropped"] for line in map(json.loads, said) if "dropped" in line]
    assert sum(dropped) == log.dropped
    assert len(said) - len(dropped) == 400 - log.dropped


def read_until_end(fd: int) -> bytes:
    said = b""
    while not said.endswith(b"END\n"):
        said += os.read(fd, 65536)
    return said


async def test_a_standard_output_that_is_gone_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    log = AccessLog(ignore, "all", write)
    log.start()
    log.report(outbound())
    await log.close()
    os.close(write)
    assert (log.written, log.dropped) == (0, 1)


async def test_on_a_non_blocking_pipe_every_line_arrives_and_is_counted_once() -> None:
    """Whoever shares standard output with us may have made it non-blocking (open(2), O_NONBLOCK)."""
    read, write = os.pipe()
    fcntl.fcntl(write, F_SETPIPE_SZ, 4096)
    os.set_blocking(write, False)
    os.set_blocking(read, False)
    log = AccessLog(ignore, "all", fd=write)
    log.start()
    count = 400
    for _ in range(count):
        log.report(outbound())
    got = b""
    async with asyncio.timeout(PATIENCE_S):
        while got.count(b"\n") < count:
            await asyncio.sleep(0.001)
            with contextlib.suppress(BlockingIOError):
                got += os.read(read, 1024)  # a part of what a slice has
    await log.close()
    assert [json.loads(line)["message"] for line in got.splitlines()] == ["link ended"] * count
    assert (log.written, log.dropped) == (count, 0)
    os.close(read)
    os.close(write)
