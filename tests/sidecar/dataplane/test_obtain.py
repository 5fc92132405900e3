"""Idle tunnels whose peer may be gone: they are asked first, and left in time."""

import asyncio
import socket
from typing import Any

import pytest

from sidecar.dataplane.revocation import addresses_left, leave_the_gone
from sidecar.dataplane.tunnels import acquire as obtain
from sidecar.directory import EXTERNAL, Endpoint, Found, Gone, Service, Workload
from sidecar.wire.frames import GOAWAY_FRAME, PING, PONG_FRAME
from tests.patience import PATIENCE_S
from tests.sidecar.dataplane.conftest import API, Captured, Pair, Side, StartPair
from tests.sidecar.dataplane.test_faults import RESET, _patient
from tests.sidecar.dataplane.test_outbound import HELD, Start, near, start
from tests.sidecar.dataplane.tunnels import Peer

Serve = Any
__all__ = ["near", "start"]  # fixtures


async def link(side: Side, captured: Captured) -> None:
    """One whole link that says HELD and gets nothing but an end."""
    count = len(side.records)
    reader, writer = await captured(side, "127.96.0.9", 80, HELD)
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
    writer.close()
    await side.record(count + 1)


async def served(peer: Peer) -> None:
    await peer.accept()
    assert await peer.data(len(HELD)) == HELD
    await peer.end()


@pytest.mark.fault_row("half-open")
async def test_a_tunnel_that_lay_idle_is_asked_before_anything_of_a_link_goes_into_it(
    near: Side, captured: Captured, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def asked(peer: Peer) -> None:
        await served(peer)
        await served(peer)  # at once: nobody asks
        monkeypatch.setattr(obtain, "FRESH_S", 0.0)
        await peer.frame(PING)
        peer.send(PONG_FRAME)
        await served(peer)

    peer = Peer(asked)
    await start(peer)
    for _ in range(3):
        await link(near, captured)
    assert [(r.pooled, r.attempts, r.verdict) for r in near.records] == [
        (False, 1, "allowed"),
        (True, 1, "allowed"),
        (True, 1, "allowed"),
    ]


@pytest.mark.fault_row("half-open")
@pytest.mark.parametrize("what", ["mute", "goes away", "hangs up"])
async def test_a_link_leaves_an_idle_tunnel_that_does_not_answer_with_all_its_bytes(
    what: str, near: Side, captured: Captured, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    tunnels = 0

    async def behave(peer: Peer) -> None:
        nonlocal tunnels
        tunnels += 1
        await served(peer)
        if tunnels == 1:
            await peer.frame(PING)
            if what == "goes away":
                peer.send(GOAWAY_FRAME + PONG_FRAME)
            if what != "hangs up":
                await peer.until_closed()
                assert peer.unread == b"", "the link's bytes went to somebody who says nothing"

    monkeypatch.setattr(obtain, "FRESH_S", 0.0)
    monkeypatch.setattr(obtain, "PONG_WITHIN_S", 0.2)
    peer = Peer(behave)
    await start(peer)
    for _ in range(2):
        await link(near, captured)
    assert tunnels == 2
    record = near.records[1]
    assert (record.pooled, record.attempts, record.verdict) == (False, 1, "allowed")


@pytest.mark.fault_row("half-open")
async def test_an_app_that_ends_while_a_tunnel_is_asked_leaves_nothing_behind(
    near: Side, captured: Captured, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def mute(peer: Peer) -> None:
        await served(peer)
        await peer.frame(PING)
        await peer.until_closed()

    monkeypatch.setattr(obtain, "FRESH_S", 0.0)
    peer = Peer(mute)
    await start(peer)
    await link(near, captured)
    await captured(near, "127.96.0.9", 80, HELD)
    async with asyncio.timeout(PATIENCE_S):
        while not near.plane.live:
            await asyncio.sleep(0.01)
    (waiting,) = near.plane.live
    waiting.cut(4, "drain")
    assert not near.plane.live and not len(near.plane.pool)
    assert (await near.record(2)).close == "drain"


# --- what the registry says -----------------------------------------------------------------------


def pod(uid: str, *ips: str) -> Workload:
    return Workload(uid, "shop", "api-0", API, ips)


def behind(*ips: str, ready: bool = True) -> Service:
    endpoints = tuple(Endpoint(ip, {80: 80}, pod(ip, ip), ready=ready) for ip in ips)
    return Service("shop", "api", ("10.96.0.9",), frozenset({80}), endpoints)


@pytest.mark.fault_row("endpoint-churn")
@pytest.mark.parametrize(
    ("old", "new", "left"),
    [
        (None, behind("10.0.0.1"), set()),
        (behind("10.0.0.1", "10.0.0.2"), behind("10.0.0.2"), {"10.0.0.1"}),
        (behind("10.0.0.1"), behind("10.0.0.1", ready=False), set()),
        (behind("10.0.0.1"), behind(), {"10.0.0.1"}),
        (pod("one", "10.0.0.1", "fd00::1"), pod("one", "10.0.0.1", "fd00::1"), set()),
        (pod("one", "10.0.0.1", "fd00::1"), pod("two", "10.0.0.1"), {"10.0.0.1", "fd00::1"}),
        (pod("one", "10.0.0.1"), Gone("shop/api-0"), {"10.0.0.1"}),
        (pod("one", "10.0.0.1"), EXTERNAL, {"10.0.0.1"}),
        (EXTERNAL, pod("one", "10.0.0.1"), set()),
    ],
)
def test_who_has_gone_follows_from_the_old_word_and_the_new(
    old: Found | None, new: Found, left: set[str]
) -> None:
    assert addresses_left("10.0.0.1", old, new) == left


@pytest.mark.fault_row("endpoint-churn")
async def test_no_idle_tunnel_is_kept_to_a_pod_that_the_registry_says_has_gone(
    near: Side, captured: Captured, start: Start
) -> None:
    async def behave(peer: Peer) -> None:
        await served(peer)
        await peer.until_closed()

    peer = Peer(behave)
    await start(peer)
    await link(near, captured)
    old = near.directory.entries["127.96.0.9"]
    assert isinstance(old, Service)
    assert leave_the_gone(near.plane, "127.96.0.9", old) == 0
    assert len(near.plane.pool) == 1
    gone = Service("shop", "api", ("10.96.0.9",), frozenset({80}), ())
    assert leave_the_gone(near.plane, "127.96.0.9", gone) == 1
    assert len(near.plane.pool) == 0


# --- peers that vanish ----------------------------------------------------------------------------


@pytest.mark.fault_row("half-open")
async def test_a_plaintext_link_outward_notices_a_server_that_vanished(
    near: Side, captured: Captured, serve: Serve
) -> None:
    near.directory.entries["127.0.0.1"] = EXTERNAL
    _, writer = await captured(near, "127.0.0.1", await serve(_patient))
    async with asyncio.timeout(PATIENCE_S):
        while not any(one._splice for one in near.plane.live):  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)
    (one,) = near.plane.live
    other = one._splice._other  # type: ignore[attr-defined]
    assert other.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert other.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 10
    writer.close()


@pytest.mark.fault_row("half-open")
async def test_whoever_gives_up_a_tunnel_for_dead_resets_it(
    start_pair: StartPair, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Perhaps one direction only is cut: then the peer hears our repetitions, and would take them for
    life until they end, half a minute later."""
    pair: Pair = start_pair(await serve(_patient))
    reader, writer = await pair.client()
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    monkeypatch.setattr("sidecar.dataplane.tunnels.tunnel.is_unanswered", lambda *_: True)
    (theirs,) = pair.arrivals.tunnels
    sock = theirs._tunnel._sock
    lingers: list[bytes] = []

    class Closing(socket.socket):
        def close(self) -> None:
            lingers.append(self.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
            super().close()

    theirs._tunnel._sock = Closing(fileno=sock.detach())
    theirs.look()
    assert lingers == [RESET], "its close is a reset, whatever lies unsent"
    assert (await pair.far.record()).error == "the peer answers nothing any more"
    with pytest.raises(ConnectionResetError):
        await reader.readexactly(1)
    writer.close()
