"""The look over all links: told once, cut at the end of a leaf, idle peers let go."""

import asyncio
from typing import Any

import pytest

from sidecar.dataplane.links.arrival import Arrivals
from sidecar.dataplane.sweep import ACCEPTOR_IDLE_S, TOLD_AFTER_NS, Sweep
from tests.sidecar.dataplane.conftest import Pair, StartPair
from tests.sidecar.dataplane.test_link import echo

Serve = Any


async def open_link(pair: Pair) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await pair.client()
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    return reader, writer


async def test_a_link_open_for_a_minute_is_told_of_once_and_again_when_it_ends(
    start_pair: StartPair, serve: Serve
) -> None:
    pair = start_pair(await serve(echo))
    watch = Sweep(pair.near.plane, Arrivals(pair.near.plane))
    _, writer = await open_link(pair)
    watch.look()
    assert not pair.near.records, "not before its minute"
    (link,) = pair.near.plane.live
    link.record.start_ns -= TOLD_AFTER_NS + 1
    watch.look()
    watch.look()
    (told,) = pair.near.records
    assert told.still_open and told.close == ""
    assert (told.bytes_sent, told.bytes_received) == (5, 5)
    writer.close()
    ended = await pair.near.record(2)
    assert (ended.still_open, ended.close, ended.span_id) == (False, "fin", told.span_id)
    watch.close()


@pytest.mark.fault_row("control-plane-down")
async def test_a_link_does_not_outlive_the_leaf_that_vouches_for_it(
    start_pair: StartPair, serve: Serve
) -> None:
    pair = start_pair(await serve(echo))
    watch = Sweep(pair.near.plane, Arrivals(pair.near.plane))
    reader, writer = await open_link(pair)
    now = pair.near.plane.now
    pair.near.plane.now = lambda: now() + 3601
    watch.look()
    with pytest.raises(ConnectionResetError):
        await reader.readexactly(1)
    writer.close()
    assert (await pair.near.record()).close == "expired"
    far = await pair.far.record()
    assert far.close in ("expired", "lost"), "the RESET, or the end of the tunnel right after it"
    assert not pair.near.plane.live and not pair.far.plane.live
    watch.close()


async def test_an_idle_tunnel_of_a_peer_is_closed_after_its_time_and_a_busy_one_is_not(
    start_pair: StartPair, serve: Serve
) -> None:
    pair = start_pair(await serve(echo))
    watch = Sweep(pair.far.plane, pair.arrivals)
    _, writer = await open_link(pair)
    now = pair.far.plane.now
    pair.far.plane.now = lambda: now() + ACCEPTOR_IDLE_S + 1
    watch.look()
    assert len(pair.arrivals.tunnels) == 1, "it carries a link"
    pair.far.plane.now = now
    writer.close()
    await pair.far.record()
    watch.look()
    assert len(pair.arrivals.tunnels) == 1, "only just idle"
    pair.far.plane.now = lambda: now() + ACCEPTOR_IDLE_S + 1
    watch.look()
    assert not pair.arrivals.tunnels
    watch.close()
