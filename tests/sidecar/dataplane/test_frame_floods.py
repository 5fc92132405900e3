"""Whatever a peer may send that its apps have nothing of has a budget: a flood of it ends its tunnel.

How early: before the far proxy has looked at more than some hundred frames of it. What the links of
others feel is measured by `make soak` (test_flood.py; the figures are in docs/limits.md).
"""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kit.buckets import Buckets
from sidecar.dataplane.tunnels import tunnel
from sidecar.dataplane.tunnels.tunnel import SLICE, SPARE
from sidecar.errors import ProtocolViolation
from sidecar.wire.frames import (
    DATA,
    END_FRAME,
    GOAWAY,
    GOAWAY_FRAME,
    PING,
    PING_FRAME,
    PONG,
    PONG_FRAME,
    RENEW,
    FrameReader,
    encode,
)
from tests.certs.forge import Forge
from tests.patience import PATIENCE_S
from tests.sidecar.dataplane.conftest import Pair, StartPair
from tests.sidecar.dataplane.hostile import HostilePeer
from tests.sidecar.dataplane.test_attacks import App, honest_link_works, inbound_address
from tests.sidecar.dataplane.test_attacks_on_tunnels import hostile_peer, lawful_context, opening

ONE_BYTE = encode(DATA, b"x")
NOTHING = encode(DATA)


@pytest.fixture
async def app() -> App:
    return App()


@pytest.fixture
async def pair(start_pair: StartPair, serve: Any, app: App) -> Pair:
    return start_pair(await serve(app))


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many frames the data plane has looked at."""
    count = [0]
    of_class = tunnel.Tunnel

    def control(self: Any, kind: int, payload: bytes, do: Any = of_class.control) -> None:
        count[0] += 1
        do(self, kind, payload)

    def data(self: Any, piece: memoryview, do: Any = of_class.data) -> None:
        count[0] += 1
        do(self, piece)

    monkeypatch.setattr(of_class, "control", control)
    monkeypatch.setattr(of_class, "data", data)
    return count


def send(peer: HostilePeer, records: list[bytes]) -> None:
    with contextlib.suppress(OSError):  # cut off in the middle
        peer.sock.sendall(b"".join(records))


async def ended(pair: Pair) -> None:
    """Every tunnel that the far side had is gone."""
    async with asyncio.timeout(PATIENCE_S):
        while pair.arrivals.tunnels:
            await asyncio.sleep(0.01)


FLOODS: dict[str, Callable[[HostilePeer], list[bytes]]] = {
    "PING, thousands in a record": lambda p: [p.record(PING_FRAME * 4000) for _ in range(20)],
    "PING, one in a record": lambda p: [p.record(PING_FRAME) for _ in range(5000)],
    "PONG": lambda p: [p.record(PONG_FRAME) for _ in range(5000)],
    "PONG, thousands in a record": lambda p: [p.record(PONG_FRAME * 4000) for _ in range(20)],
    "nothing in DATA": lambda p: [p.record(NOTHING * 4000) for _ in range(20)],
    "RENEW": lambda p: [p.record(encode(RENEW, b"n" * 32)) for _ in range(2000)],
    "KeyUpdate": lambda p: [p.key_update() for _ in range(3000)],
    "OPEN": lambda p: [p.record(opening(9)) for _ in range(3000)],
    "OPEN, hundreds in a record": lambda p: [p.record(opening(9) * 300) for _ in range(20)],
}
WITHIN_A_LINK = {
    "GOAWAY": lambda p: [p.record(GOAWAY_FRAME) for _ in range(5000)],
    "DATA of a byte, thousands in a record": lambda p: [p.record(ONE_BYTE * 3000)] * 1,
    **{name: FLOODS[name] for name in FLOODS if name not in ("OPEN", "OPEN, hundreds in a record")},
}


@pytest.mark.attack_row(55)
@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_on_an_idle_tunnel_ends_it_early(
    name: str, pair: Pair, forge: Forge, tmp_path: Path, work: list[int]
) -> None:
    pair.far.plane.draining = "OPEN" in name  # each is refused at once, and no other budget holds
    peer = await hostile_peer(pair, forge, tmp_path)
    async with asyncio.timeout(PATIENCE_S):
        while not pair.arrivals.tunnels:
            await asyncio.sleep(0.01)
    await asyncio.to_thread(send, peer, FLOODS[name](peer))
    await ended(pair)
    assert work[0] <= 2 * SPARE, name
    pair.far.plane.draining = False
    peer.sock.close()
    await honest_link_works(pair)


@pytest.mark.attack_row(55)
@pytest.mark.parametrize("name", WITHIN_A_LINK)
async def test_a_flood_within_a_link_ends_the_link_early(
    name: str, pair: Pair, forge: Forge, tmp_path: Path, work: list[int]
) -> None:
    peer = await hostile_peer(pair, forge, tmp_path)
    peer.sock.sendall(peer.record(opening(pair.app_port)))
    async with asyncio.timeout(PATIENCE_S):
        while not pair.far.plane.live:
            await asyncio.sleep(0.01)
    await asyncio.to_thread(send, peer, WITHIN_A_LINK[name](peer))
    record = await pair.far.record()
    assert (record.reason, record.close) == ("protocol_error", "protocol_error")
    assert work[0] <= 2 * SPARE, name
    peer.sock.close()
    await honest_link_works(pair)


@pytest.mark.attack_row(55)
@pytest.mark.parametrize("kind", [PING, PONG, GOAWAY, RENEW])
async def test_a_tunnel_affords_its_peer_so_many_and_no_more(
    kind: int, pair: Pair, forge: Forge, tmp_path: Path
) -> None:
    peer = await hostile_peer(pair, forge, tmp_path)
    peer.sock.sendall(peer.record(opening(pair.app_port)))
    async with asyncio.timeout(PATIENCE_S):
        while not pair.far.plane.live:
            await asyncio.sleep(0.01)
    (kept,) = pair.arrivals.tunnels
    far: Any = pair.far.plane.renewals
    for _ in range(SPARE):
        far.forget(kept._tunnel)  # as if each renewal had ended
        kept._tunnel.control(kind, b"n" * 32 if kind == RENEW else b"")
    far.forget(kept._tunnel)
    with pytest.raises(ProtocolViolation, match="flood"):
        kept._tunnel.control(kind, b"n" * 32)
    kept._tunnel.look()
    kept._tunnel.control(PING, b"")
    peer.sock.close()


@pytest.mark.attack_row(55)
async def test_a_flood_is_no_cheaper_for_being_spread_over_many_tunnels(
    pair: Pair, forge: Forge, tmp_path: Path
) -> None:
    """Each tunnel that ends so costs its source as much as fifty handshakes."""
    plane = pair.far.plane
    plane.handshake_rate = Buckets(0.0, 120.0)
    for _ in range(3):
        peer = await hostile_peer(pair, forge, tmp_path)
        await asyncio.to_thread(send, peer, [peer.record(PING_FRAME * 4000)])
        await ended(pair)
        peer.sock.close()
    with pytest.raises(OSError):
        await asyncio.open_connection(*inbound_address(pair), ssl=lawful_context(forge))
    assert plane.turned_away["handshakes_per_source"] >= 1


async def test_a_lawful_peer_is_never_near_its_budget(pair: Pair) -> None:
    """Thousands of small links and their PINGs, over a tunnel that is looked at as ever."""
    lost: list[object] = []
    for number in range(300):
        reader, writer = await pair.client()
        writer.write(b"x" * (number % 7))
        writer.write_eof()
        await reader.read()
        writer.close()
    lost += [r for side in (pair.near, pair.far) for r in side.records if r.reason]
    assert not lost
    (kept,) = pair.arrivals.tunnels
    assert kept._tunnel._spare == SPARE


async def test_many_records_of_a_few_bytes_take_turns_with_the_others(
    pair: Pair, forge: Forge, tmp_path: Path, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are lawful, so all arrive; in between the loop has had its turn."""
    peer = await hostile_peer(pair, forge, tmp_path)
    peer.sock.sendall(peer.record(opening(pair.app_port)))
    async with asyncio.timeout(PATIENCE_S):
        while not pair.far.plane.live:
            await asyncio.sleep(0.01)
    (kept,) = pair.arrivals.tunnels
    rounds: list[int] = []
    of_class: Any = type(kept._tunnel)
    go_on = of_class._go_on

    def counted(self: Any) -> None:
        rounds.append(1)
        go_on(self)

    monkeypatch.setattr(of_class, "_go_on", counted)
    size = 40 * SLICE
    await asyncio.to_thread(send, peer, [peer.record(ONE_BYTE) for _ in range(size)])
    async with asyncio.timeout(PATIENCE_S):
        while len(app.got) < size:
            await asyncio.sleep(0.01)
    assert app.got == b"x" * size
    assert len(rounds) >= 5
    peer.sock.close()


def test_frames_are_counted_by_the_records_they_came_in() -> None:
    class Sink:
        def data(self, piece: memoryview) -> None: ...
        def control(self, kind: int, payload: bytes) -> None: ...

    FrameReader().feed(memoryview(END_FRAME * 4), Sink(), 4)
    with pytest.raises(ProtocolViolation):
        FrameReader().feed(memoryview(END_FRAME * 5), Sink(), 4)
