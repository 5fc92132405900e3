"""A proxy that has just started: nothing is let through and nothing is refused that can wait."""

import asyncio
from typing import Any

import pytest

from kit.buckets import Buckets
from sidecar.dataplane.links import inbound
from sidecar.dataplane.tunnels import pool
from tests.patience import PATIENCE_S
from tests.sidecar.dataplane.conftest import StartPair, connected

Serve = Any


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while got := await reader.read(1000):
        writer.write(got)
    writer.close()


@pytest.mark.fault_row("start-order")
async def test_a_peer_that_comes_before_our_certificate_is_held_until_it_is_there(
    start_pair: StartPair, serve: Serve
) -> None:
    pair = start_pair(await serve(echo))
    trust, pair.far.plane.trust = pair.far.plane.trust, None
    reader, writer = await connected(pair.upstream, b"early")
    waiting = asyncio.ensure_future(reader.readexactly(5))
    await asyncio.wait({waiting}, timeout=0.3)
    assert not waiting.done() and not pair.far.records
    pair.far.plane.trust = trust
    assert await asyncio.wait_for(waiting, PATIENCE_S) == b"early"
    writer.close()


@pytest.mark.fault_row("start-order")
async def test_a_link_that_comes_before_the_registrys_word_waits_for_it(
    start_pair: StartPair, serve: Serve
) -> None:
    seen: list[bytes] = []

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while got := await reader.read(1000):
            seen.append(got)
            writer.write(got)
        writer.close()

    pair = start_pair(await serve(app))
    pair.far.plane.unsettled = True
    reader, writer = await connected(pair.upstream, b"early")
    writer.write(b" bird")
    await asyncio.sleep(0.3)
    assert not seen and not pair.far.records
    pair.far.plane.unsettled = False
    assert await asyncio.wait_for(reader.readexactly(10), PATIENCE_S) == b"early bird"
    writer.close()


@pytest.mark.fault_row("start-order")
async def test_without_that_word_the_link_is_refused_and_the_app_sees_nothing(
    start_pair: StartPair, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append("connected")
        writer.close()

    monkeypatch.setattr(inbound, "SETTLE_S", 0.2)
    pair = start_pair(await serve(app))
    pair.far.plane.unsettled = True
    reader, writer = await connected(pair.upstream, b"early")
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(1), PATIENCE_S)
    record = await pair.far.record()
    assert (record.verdict, record.reason, seen) == ("failed", "no_certificate", [])
    writer.close()


async def test_an_idle_tunnel_whose_far_proxy_hangs_is_dropped_and_a_living_one_is_kept(
    start_pair: StartPair, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "PING_AFTER_S", 0.0)
    monkeypatch.setattr(pool, "PONG_WITHIN_S", 0.0)
    monkeypatch.setattr(pool, "SWEEP_EVERY_S", 60.0)  # rounds are made by hand
    pair = start_pair(await serve(echo))
    reader, writer = await connected(pair.upstream, b"x")
    assert await asyncio.wait_for(reader.readexactly(1), PATIENCE_S) == b"x"
    writer.close()
    near, far = pair.near.plane.pool, pair.arrivals
    async with asyncio.timeout(PATIENCE_S):
        while not len(near):
            await asyncio.sleep(0.01)
    near._due = near._now() + 60
    near._sweep()
    (tunnel,) = near._by_age
    assert tunnel.pinged
    async with asyncio.timeout(PATIENCE_S):
        while tunnel.pinged:
            await asyncio.sleep(0.01)
    near._due = near._now() + 60
    near._sweep()
    assert len(near) == 1, "it answered"
    async with asyncio.timeout(PATIENCE_S):
        while tunnel.pinged:  # asked once more
            await asyncio.sleep(0.01)
    (theirs,) = far.tunnels
    theirs._tunnel.pause()  # as a proxy that hangs: its kernel still takes what comes
    near._due = near._now() + 60
    near._sweep()
    near._due = 0.0  # a sweep that is late blames nobody
    near._sweep()
    assert len(near) == 1
    near._due = near._now() + 60
    near._sweep()
    assert len(near) == 0


@pytest.mark.attack_row(16)
async def test_a_peer_whose_opens_are_refused_again_and_again_loses_its_tunnel(
    start_pair: StartPair, serve: Serve
) -> None:
    pair = start_pair(await serve(echo))
    far = pair.far.plane
    far.own_ports = frozenset({*far.own_ports, pair.app_port})  # every OPEN is for a wrong port
    far.refused_opens = Buckets(0.0, 3)
    for count in range(1, 4):
        reader, writer = await connected(pair.upstream, b"x")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), PATIENCE_S)
        writer.close()
        await pair.far.record(count)
        pair.near.plane.ejections.worked("127.0.0.1", pair.app_port)
    assert "refused_opens" not in far.turned_away and len(pair.arrivals.tunnels) == 1
    reader, writer = await connected(pair.upstream, b"x")
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(1), PATIENCE_S)
    writer.close()
    async with asyncio.timeout(PATIENCE_S):
        while pair.arrivals.tunnels:
            await asyncio.sleep(0.01)
    assert far.turned_away["refused_opens"] >= 1
