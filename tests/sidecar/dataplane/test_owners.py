"""Every callback has an owner: what our own code raises ends one link, alone, and is told.

Each row breaks one method, for one call, while another link is open and more are to come.
"""

import asyncio
import contextlib
import socket
from typing import Any

import pytest

from sidecar import sockets
from sidecar.dataplane.links.arrival import Arrival
from sidecar.dataplane.links.inbound import InboundLink
from sidecar.dataplane.links.outbound import OutboundLink
from sidecar.dataplane.links.phases import TRANSITIONS, Phase, advance
from sidecar.dataplane.links.splice import RawSplice, TunnelSplice, _Half
from sidecar.dataplane.loop.listener import Listener
from sidecar.dataplane.loop.poller import poller_of
from sidecar.dataplane.sweep import Sweep
from sidecar.dataplane.tunnels.acquire import Acquire
from sidecar.dataplane.tunnels.dial import Dial
from sidecar.dataplane.tunnels.handshake import Handshake
from sidecar.dataplane.tunnels.inbound import InboundTunnel
from sidecar.dataplane.tunnels.place import PlaceQuestion
from sidecar.dataplane.tunnels.pool import Pool
from sidecar.dataplane.tunnels.tunnel import Tunnel
from sidecar.directory import EXTERNAL
from sidecar.errors import Bug, PeerLost
from tests.patience import PATIENCE_S
from tests.sidecar.dataplane.conftest import Captured, Pair, Side, StartPair
from tests.sidecar.dataplane.test_link import echo

Serve = Any


class Oops(Exception):
    """What no code of ours raises."""


class Breaks:
    """Breaks `method` of `kind` for the next call, once `armed`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: type, method: str) -> None:
        self.armed = self.fired = False
        whole = getattr(kind, method)

        def broken(*args: Any, **kwargs: Any) -> Any:
            if self.armed:
                self.armed, self.fired = False, True
                raise Oops(method)
            return whole(*args, **kwargs)

        monkeypatch.setattr(kind, method, broken)


METHODS: list[tuple[type, str]] = [
    (OutboundLink, "start_upstream"),
    (OutboundLink, "_go"),
    (OutboundLink, "_take"),
    (OutboundLink, "_acquired"),
    (OutboundLink, "_open"),
    (OutboundLink, "tunnel_control"),
    (OutboundLink, "_accepted"),
    (OutboundLink, "_tunnel_ended"),
    (Acquire, "start"),
    (Acquire, "dial"),
    (Dial, "_connected"),
    (Dial, "_shook_hands"),
    (Handshake, "_feed"),
    (Handshake, "_finished"),
    (Tunnel, "start"),
    (Tunnel, "_readable"),
    (Tunnel, "_drain"),
    (Arrival, "start"),
    (Arrival, "_readable"),
    (Arrival, "_shake_hands"),
    (Arrival, "_shook_hands"),
    (InboundTunnel, "start"),
    (InboundTunnel, "tunnel_control"),
    (InboundLink, "open"),
    (PlaceQuestion, "start"),
    (PlaceQuestion, "_look"),
    (InboundLink, "_placed"),
    (InboundLink, "_judge"),
    (InboundLink, "_app_answered"),
    (InboundLink, "_accept"),
    (InboundLink, "_ended"),
    (TunnelSplice, "start"),
    (TunnelSplice, "_near_readable"),
    (TunnelSplice, "tunnel_data"),
    (TunnelSplice, "tunnel_control"),
    (TunnelSplice, "_finish"),
]


async def whole_link(pair: Pair) -> None:
    reader, writer = await pair.client()
    writer.write(b"hello")
    assert await asyncio.wait_for(reader.readexactly(5), PATIENCE_S) == b"hello"
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
    writer.close()


async def is_over(sides: list[Side], most: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while any(len(side.plane.live) > most for side in sides):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("kind", "method"), METHODS, ids=[f"{kind.__name__}.{method}" for kind, method in METHODS]
)
async def test_what_a_callback_raises_ends_its_link_and_no_other(
    kind: type,
    method: str,
    start_pair: StartPair,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    breaks = Breaks(monkeypatch, kind, method)
    pair = start_pair(await serve(echo))
    reader, bystander = await pair.client()
    bystander.write(b"before")
    assert await reader.readexactly(6) == b"before"

    breaks.armed = True
    its_reader, its_writer = await pair.client()
    its_writer.write(b"hello")
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
        await asyncio.wait_for(its_reader.readexactly(5), 0.9)
    its_writer.close()
    await is_over([pair.near, pair.far], 1)
    assert breaks.fired, "the row breaks nothing"
    assert not breaks.armed

    bystander.write(b"after")
    assert await asyncio.wait_for(reader.readexactly(5), PATIENCE_S) == b"after"
    bystander.close()
    await whole_link(pair)
    await is_over([pair.near, pair.far], 0)
    assert pair.near.plane.poller.bugs >= 1
    told = [r for r in caplog.records if r.message.startswith("a callback failed")]
    assert told and told[0].exc_info is not None and told[0].exc_info[0] is Oops
    assert pair.arrivals.strangers == 0
    reasons = {r.reason for side in (pair.near, pair.far) for r in side.records}
    assert reasons & {"bug", "peer_lost", "handshake_failed"}, reasons


async def test_a_listener_goes_on_when_one_connection_has_failed() -> None:
    poller = poller_of(asyncio.get_running_loop())
    taken: list[socket.socket] = []

    def accepted(sock: socket.socket, ip: str, port: int) -> None:
        if not taken:
            taken.append(sock)
            raise Oops
        taken.append(sock)

    sock = sockets.listen("127.0.0.1", 0)
    listener = Listener(poller, sock, accepted)
    clients = [socket.create_connection(sock.getsockname()) for _ in range(3)]
    async with asyncio.timeout(PATIENCE_S):
        while len(taken) < 3:
            await asyncio.sleep(0.01)
    clients[0].settimeout(1.0)
    with pytest.raises(ConnectionResetError):
        clients[0].recv(1)
    listener.close()
    for each in (*clients, *taken):
        each.close()


@pytest.mark.parametrize("kind", [_Half, RawSplice])
async def test_a_plaintext_link_ends_alone_too(
    kind: type,
    near: Side,
    captured: Captured,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    near.directory.entries["127.0.0.1"] = EXTERNAL
    breaks = Breaks(monkeypatch, kind, "_readable" if kind is _Half else "start")
    port = await serve(echo)
    breaks.armed = True
    reader, _ = await captured(near, "127.0.0.1", port, b"hello")
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(5), PATIENCE_S)
    record = await near.record()
    assert (record.close, record.error) == ("bug", str(Bug.of(Oops())))
    assert not near.plane.live
    reader, writer = await captured(near, "127.0.0.1", port, b"hello")
    assert await asyncio.wait_for(reader.readexactly(5), PATIENCE_S) == b"hello"
    writer.close()


@pytest.fixture
async def near(make_side: Any) -> Side:
    from tests.sidecar.dataplane.conftest import WEB

    side: Side = make_side(WEB, "127.0.0.1")
    return side


async def test_a_sweep_that_fails_at_one_link_goes_on_with_the_next_and_comes_again(
    start_pair: StartPair, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.dataplane.sweep.EVERY_S", 0.05)
    monkeypatch.setattr("sidecar.dataplane.tunnels.pool.SWEEP_EVERY_S", 0.05)
    pair = start_pair(await serve(echo))
    sweep = Sweep(pair.near.plane, pair.arrivals)
    try:
        reader, writer = await pair.client()
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        looks = 0
        whole = OutboundLink.look

        def look(link: OutboundLink, now: float) -> None:
            nonlocal looks
            looks += 1
            if looks == 1:
                raise Oops
            whole(link, now)

        monkeypatch.setattr(OutboundLink, "look", look)
        swept = Breaks(monkeypatch, Pool, "_answers")
        record = await pair.near.record()
        assert (record.reason, record.close) == ("bug", "bug")
        await whole_link(pair)  # leaves a tunnel in the pool
        swept.armed = True
        async with asyncio.timeout(PATIENCE_S):
            while not swept.fired or pair.near.plane.poller.bugs < 2:
                await asyncio.sleep(0.01)
        reader, writer = await pair.client()
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        before = looks
        async with asyncio.timeout(PATIENCE_S):
            while looks <= before:
                await asyncio.sleep(0.01)
        writer.close()
        await is_over([pair.near, pair.far], 0)
    finally:
        sweep.close()


def test_a_link_goes_through_its_phases_as_the_table_says() -> None:
    for before in Phase:
        for after in Phase:
            if after in TRANSITIONS[before]:
                assert advance(before, after) is after
            else:
                with pytest.raises(Bug):
                    advance(before, after)
    assert not TRANSITIONS[Phase.ENDED], "nothing leaves the end"


def test_an_error_of_a_peer_is_no_bug_of_ours() -> None:
    lost = PeerLost("x")
    assert Bug.of(lost) is lost
    assert Bug.of(KeyError("k")).reason == "bug"
