"""What a proxy takes, and that docs/limits.md says the same."""

import asyncio
import os
import re
import resource
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.buckets import KEPT_SOURCES, Buckets
from sidecar import memory, sockets
from sidecar.dataplane.limits import Limits
from sidecar.dataplane.loop import deadlines as deadline
from sidecar.dataplane.loop import listener
from sidecar.dataplane.loop.deadlines import Deadline
from sidecar.dataplane.loop.listener import Listener
from sidecar.dataplane.loop.poller import poller_of
from sidecar.dataplane.tunnels.inbound import InboundTunnel, InboundTunnels
from sidecar.memory import MemoryWatch, limit_of_cgroup, used_bytes
from sidecar.wire.opening import BUSY, DENIED
from tests.patience import PATIENCE_S
from tests.sidecar.dataplane.conftest import WEB, StartPair, connected
from tests.sidecar.dataplane.test_faults import _patient

Serve = Any
DOC = (Path(__file__).resolve().parents[3] / "docs" / "limits.md").read_text()
ROW = re.compile(r"^\| `([a-z_]+)` \| ([^|]+) \|", re.M)


def test_the_page_lists_every_limit_with_its_default() -> None:
    rows = dict(ROW.findall(DOC.partition("\n## ")[0]))  # the injector's own are further down
    limits = Limits()
    for name in Limits.__slots__:
        value = getattr(limits, name)
        assert rows.pop(name).startswith(f"{value:,.0f}"), name
    assert set(rows) == {"memory", "descriptors"}
    assert rows["memory"].startswith(f"{memory.HIGH:.0%}".replace("%", " %"))


@given(st.integers(0, 1 << 20), st.integers(1, 8))
def test_limits_fit_what_the_kernel_gives(descriptors: int, workers: int) -> None:
    limits = Limits.for_process(descriptors, workers)
    assert limits.links >= 8 and limits.strangers >= 8 and limits.strangers_per_source >= 4
    if descriptors >= 128:
        assert 2 * limits.links + limits.strangers <= descriptors
    assert limits.links <= 20_000 and limits.strangers <= 1024
    # What one source may do to the whole proxy does not grow with the workers.
    base = Limits()
    assert workers * limits.handshakes_per_source == pytest.approx(base.handshakes_per_source)
    assert workers * limits.renewals_per_source == pytest.approx(base.renewals_per_source)
    assert workers * limits.refused_opens == pytest.approx(base.refused_opens)
    assert workers * limits.tunnels_per_peer <= base.tunnels_per_peer
    assert workers * limits.strangers_per_source <= max(base.strangers_per_source, 4 * workers)


@given(st.lists(st.floats(0, 3), max_size=200))
def test_a_bucket_gives_no_more_than_its_rate_after_its_burst(pauses: list[float]) -> None:
    buckets, now, taken = Buckets(10, 20), 0.0, 0
    for pause in pauses:
        now += pause
        taken += buckets.take("10.0.0.1", now)
    assert taken <= 20 + 10 * now + 1e-6
    if sum(pauses) * 10 + 20 >= len(pauses) and all(pause >= 0.1 for pause in pauses):
        assert taken == len(pauses)


def test_buckets_of_many_sources_are_bounded_and_apart() -> None:
    buckets = Buckets(1, 1)
    for number in range(KEPT_SOURCES * 2):
        assert buckets.take(str(number), 0.0)
        assert not buckets.take(str(number), 0.0)
    assert len(buckets._kept) == KEPT_SOURCES


class OfIp:
    def __init__(self, peer_ip: str) -> None:
        self.peer_ip = peer_ip


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5))))
def test_tunnels_are_counted_by_where_they_come_from(steps: list[tuple[bool, int]]) -> None:
    tunnels = InboundTunnels()
    made = [cast(InboundTunnel, OfIp(str(number % 2))) for number in range(6)]
    for add, number in steps:
        (tunnels.add if add else tunnels.discard)(made[number])
        for ip in ("0", "1"):
            assert tunnels.of(ip) == sum(each.peer_ip == ip for each in tunnels)


# --- deadlines --------------------------------------------------------------------------------


@pytest.mark.fault_row("cpu-starvation")
async def test_a_deadline_that_fires_late_looks_again_before_it_blames(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deadline, "GRACE_S", 0.2)
    poller, late = poller_of(asyncio.get_running_loop()), []
    near, far = socket.socketpair()
    with near, far:
        stood_still = Deadline(poller, 0.05, lambda: late.append("blamed"))
        near.setblocking(False)
        heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def readable() -> None:
            near.recv(10)
            stood_still.cancel()
            poller.remove_reader(near.fileno())
            heard.set_result(None)

        poller.add_reader(near.fileno(), readable)
        time.sleep(0.8)  # noqa: ASYNC251 - the standstill
        # The other side waited for us; its answer comes once we have gone on.
        asyncio.get_running_loop().call_later(0.05, far.send, b"in time")
        await asyncio.wait_for(heard, PATIENCE_S)
        await asyncio.sleep(0.3)
        assert late == []
        Deadline(poller, 0.05, lambda: late.append("on time"))
        await asyncio.sleep(0.3)
        assert late == ["on time"]


async def test_a_loop_that_is_always_late_still_ends_what_never_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deadline, "GRACE_S", 0.01)
    monkeypatch.setattr(deadline, "SLACK_S", -1.0)
    over = asyncio.Event()
    Deadline(poller_of(asyncio.get_running_loop()), 0.01, over.set)
    await asyncio.wait_for(over.wait(), PATIENCE_S)


# --- descriptors ------------------------------------------------------------------------------


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 30, old[1]))
    yield used
    resource.setrlimit(resource.RLIMIT_NOFILE, old)


@pytest.mark.fault_row("fd-exhaustion")
async def test_without_descriptors_accepting_rests_then_turns_away_and_recovers(
    few_descriptors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "_REST_S", 0.02)
    poller = poller_of(asyncio.get_running_loop())
    taken: list[socket.socket] = []
    sock = sockets.listen("127.0.0.1", 0)
    address = sock.getsockname()
    it = Listener(poller, sock, lambda each, ip, port: taken.append(each))
    outside = socket.create_connection(address)
    hoard = []
    while True:  # everything but the listener's reserve is taken
        try:
            hoard.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            break
    os.close(hoard.pop())
    waiting = socket.socket()
    waiting.setblocking(False)
    waiting.connect_ex(address)
    began = asyncio.get_running_loop().time()
    async with asyncio.timeout(PATIENCE_S):
        while not it.shed:
            await asyncio.sleep(0.02)
    assert it.pauses >= 10
    rested_s = asyncio.get_running_loop().time() - began
    assert rested_s > 9 * 0.02 - 0.05, "it shed after ten rests and did not spin through them"
    with pytest.raises(ConnectionResetError):
        outside.recv(1) if not taken else waiting.recv(1)
    for fd in hoard:
        os.close(fd)
    again = socket.create_connection(address)
    async with asyncio.timeout(PATIENCE_S):
        while not any(each.getpeername() == again.getsockname() for each in taken):
            await asyncio.sleep(0.02)
    it.close()
    for each in (outside, waiting, again, *taken):
        each.close()


# --- memory -----------------------------------------------------------------------------------


@pytest.mark.fault_row("memory-limit")
async def test_new_links_are_shed_while_memory_is_short_and_open_ones_live_on(
    start_pair: StartPair, serve: Serve
) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while got := await reader.read(1000):
            writer.write(got)
        writer.close()

    pair = start_pair(await serve(echo))
    reader, writer = await connected(pair.upstream, b"before")
    assert await asyncio.wait_for(reader.readexactly(6), PATIENCE_S) == b"before"
    told: list[bool] = []
    used = [50]
    watch = MemoryWatch(asyncio.get_running_loop(), 100, told.append, lambda: used[0])
    for used[0], shedding in ((84, False), (86, True), (80, True), (74, False), (86, True)):
        watch.look()
        assert watch.shedding is shedding
    assert told == [True, False, True]
    watch.close()
    pair.far.plane.shedding = True
    late, refused = await connected(pair.upstream, b"during")
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(late.readexactly(6), PATIENCE_S)
    assert pair.far.plane.turned_away == {"memory": 1}
    assert pair.far.plane.handshakes._results == {("destination", "ok"): 1}, "none was paid for it"
    writer.write(b"still")
    assert await asyncio.wait_for(reader.readexactly(5), PATIENCE_S) == b"still"
    pair.far.plane.shedding = False
    pair.near.plane.ejections.worked("127.0.0.1", pair.inbound_port)
    after, last = await connected(pair.upstream, b"after!")
    assert await asyncio.wait_for(after.readexactly(6), PATIENCE_S) == b"after!"
    for each in (writer, refused, last):
        each.close()


def test_without_a_cgroup_our_own_memory_counts_against_no_limit(tmp_path: Path) -> None:
    assert limit_of_cgroup(tmp_path, tmp_path / "none") == 0
    assert used_bytes(tmp_path, tmp_path / "none") > 1 << 20


@pytest.mark.parametrize("below", ["", "kubepods/pod1/proxy"])
@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_is_found_on_both_versions_of_cgroup_in_a_container_and_outside(
    version: int, below: str, tmp_path: Path
) -> None:
    own = tmp_path / "cgroup"
    own.write_text("9:name=systemd:/x\n4:memory:/kubepods/pod1/proxy\n0::/kubepods/pod1/proxy\n")
    folder = tmp_path / ("memory" if version == 1 else "") / below
    folder.mkdir(parents=True, exist_ok=True)
    assert limit_of_cgroup(tmp_path, own) == 0
    limit, current, inactive = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        if version == 1
        else ("memory.max", "memory.current", "inactive_file")
    )
    (folder / limit).write_text("9223372036854771712\n" if version == 1 else "max\n")
    assert limit_of_cgroup(tmp_path, own) == 0
    (folder / limit).write_text("100663296\n")
    assert limit_of_cgroup(tmp_path, own) == 100663296
    (folder / current).write_text("5000002000\n")
    (folder / "memory.stat").write_text(f"{inactive} 2000\n")
    assert used_bytes(tmp_path, own) == 5_000_000_000
    (folder / limit).write_text("9223372036854771712\n" if version == 1 else "max\n")
    assert used_bytes(tmp_path, own) < 5_000_000_000, "a cgroup without a limit is not ours alone"


# --- peers ------------------------------------------------------------------------------------


@pytest.mark.attack_row(23)
async def test_a_peer_that_floods_handshakes_is_slowed_and_others_are_not(
    start_pair: StartPair, serve: Serve
) -> None:
    async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    pair = start_pair(await serve(hello))
    plane = pair.far.plane
    plane.handshake_rate = Buckets(0.0, 1.0)
    assert plane.handshake_rate.take("127.0.0.1", plane.now()), "the burst is used up"
    reader, refused = await connected(pair.upstream)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(5), PATIENCE_S)
    refused.close()
    assert plane.turned_away["handshakes_per_source"] >= 1
    assert plane.handshake_rate.take("127.0.0.2", plane.now())
    plane.handshake_rate = Buckets(0.0, 1.0)  # as after a while
    pair.near.plane.ejections.worked("127.0.0.1", pair.inbound_port)
    reader, writer = await connected(pair.upstream)
    assert await asyncio.wait_for(reader.readexactly(5), PATIENCE_S) == b"hello"
    writer.close()


async def test_over_the_limit_of_links_the_far_side_says_busy(
    start_pair: StartPair, serve: Serve
) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    pair = start_pair(await serve(silent))
    pair.far.plane.limits = Limits(links=1)
    _, first = await connected(pair.upstream)
    async with asyncio.timeout(PATIENCE_S):
        while not pair.far.plane.live:
            await asyncio.sleep(0.01)
    reader, second = await connected(pair.upstream)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(1), PATIENCE_S)
    record = await pair.far.record()
    assert (record.verdict, record.reason) == ("failed", "overloaded")
    assert BUSY != DENIED
    first.close()
    second.close()


# --- dead peers -------------------------------------------------------------------------------


@pytest.mark.fault_row("slow-reader")
async def test_a_reader_that_stopped_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "DEAD_AFTER_MS", 1)
    server = sockets.listen("127.0.0.1", 0)
    near = socket.create_connection(server.getsockname())
    far, _ = server.accept() if not server.setblocking(True) else (None, None)  # type: ignore[func-returns-value]
    assert far is not None
    assert far.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
    near.setblocking(False)
    try:
        while True:
            near.send(bytes(65536))
    except BlockingIOError:
        pass
    for _ in range(20):  # a closed window, probed and answered
        assert not sockets.is_unanswered(near)
        await asyncio.sleep(0.05)
    for each in (server, near, far):
        each.close()


class FakeSocket:
    """The kernel's answer for a peer that has gone takes twenty seconds: here it is written down."""

    def __init__(self, retransmits: int, probes: int, silent_ms: int) -> None:
        head = bytes((1, 0, retransmits, probes, 0, 0, 0, 0))
        self._info = head + struct.pack("=13I", *([0] * 12), silent_ms)

    def getsockopt(self, *_: object) -> bytes:
        return self._info


@pytest.mark.fault_row("half-open")
@pytest.mark.parametrize(
    ("retransmits", "probes", "silent_ms", "dead"),
    [
        (0, 0, 99_000, False),
        (7, 0, 20_001, True),
        (7, 0, 19_999, False),
        (0, 1, 99_000, False),
        (0, 2, 99_000, True),
        (2, 0, 99_000, False),
    ],
)
def test_dead_is_who_answers_nothing_though_asked_again(
    retransmits: int, probes: int, silent_ms: int, dead: bool
) -> None:
    fake = FakeSocket(retransmits, probes, silent_ms)
    assert sockets.is_unanswered(fake) is dead  # type: ignore[arg-type]


async def test_a_peer_over_its_share_of_tunnels_is_told_so_on_both_sides(
    start_pair: StartPair, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    pair = start_pair(await serve(_patient))
    pair.far.plane.limits = replace(pair.far.plane.limits, tunnels_per_peer=2)
    held = []
    for _ in range(2):
        reader, writer = await pair.client()
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        held.append(writer)
    for _ in range(2):
        reader, writer = await pair.client()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), PATIENCE_S)
        writer.close()
    near, far = await pair.near.record(2), await pair.far.record(2)
    assert (near.verdict, near.reason) == ("failed", "peer_overloaded")
    assert near.error == ("this pod has as many connections to the peer as the peer allows one pod")
    assert (far.verdict, far.reason) == ("failed", "overloaded")
    assert far.error == "limit reached by the peer: tunnels_per_peer"
    assert far.source_identity == str(WEB)
    assert pair.far.plane.turned_away["tunnels_per_peer"] == 2
    told = [r for r in caplog.records if r.message.startswith("a limit is reached")]
    assert len(told) == 1, "once a minute"
    held.pop().close()
    await pair.far.record(3)
    reader, writer = await pair.client()
    writer.write(b"hello")
    assert await asyncio.wait_for(reader.readexactly(5), PATIENCE_S) == b"hello"
    for each in (writer, *held):
        each.close()


async def test_a_deadline_whose_work_fails_ends_who_has_set_it() -> None:
    ended: list[Exception] = []

    class Sets:
        def late(self) -> None:
            raise ValueError("ours")

        def broken(self, error: Exception) -> None:
            ended.append(error)

    deadline = Deadline(poller_of(asyncio.get_running_loop()), 0.0, Sets().late)
    async with asyncio.timeout(PATIENCE_S):
        while not ended:
            await asyncio.sleep(0.005)
    assert isinstance(ended[0], ValueError)
    deadline.cancel()
