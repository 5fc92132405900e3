"""Where the app's own connections go: through a tunnel, in plaintext, or nowhere."""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_network
from typing import Any

import pytest

from certs.trust.identity import WorkloadIdentity
from kit.contract import OWN_PORTS
from kit.ports import PortSet
from sidecar.dataplane.links import outbound
from sidecar.dataplane.revocation import reauthorise
from sidecar.dataplane.tunnels import acquire as obtain
from sidecar.dataplane.tunnels.pool import Pool, PoolLimits
from sidecar.directory import EXTERNAL, Answer, Endpoint, Found, Gone, Own, Service, Workload
from sidecar.wire.frames import ACCEPT, HEADER, OPEN, REFUSE, encode
from sidecar.wire.opening import DENIED, UNREACHABLE, encode_accept, encode_code
from tests.certs.forge import Forge
from tests.patience import PATIENCE_S
from tests.sidecar.dataplane.conftest import API, WEB, Captured, MakeSide, Side, StartPair
from tests.sidecar.dataplane.tunnels import Peer

Serve = Any
LOOPBACK = "127.0.0.1"


async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.read(100) + b" back")
    writer.close()


async def echoes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    writer.write(b"there")
    got = await asyncio.wait_for(reader.read(), PATIENCE_S)
    writer.close()
    return got == b"there back"


async def is_reset(reader: asyncio.StreamReader) -> bool:
    try:
        return await asyncio.wait_for(reader.read(), PATIENCE_S) == b"not a reset"
    except ConnectionResetError:
        return True


def unmeshed(ip: str = LOOPBACK) -> Workload:
    return Workload("u", "shop", "old-0", None, (ip,))


@pytest.fixture
async def near(make_side: MakeSide) -> Side:
    return make_side(WEB, LOOPBACK)


def service(*endpoints: Endpoint, port: int) -> Service:
    return Service("shop", "api", ("10.96.0.9",), frozenset({port}), endpoints)


# --- plaintext, where it is right -----------------------------------------------------------------


async def test_an_address_is_external_when_the_registry_has_said_so(
    near: Side, captured: Captured, serve: Serve
) -> None:
    near.directory.entries[LOOPBACK] = EXTERNAL
    port = await serve(hello)
    assert await echoes(*await captured(near, LOOPBACK, port))
    record = await near.record()
    assert (record.verdict, record.security, record.reason) == ("allowed", "plaintext", "external")
    assert (record.bytes_sent, record.bytes_received, record.close) == (5, 10, "fin")


async def test_an_external_address_is_refused_where_the_pod_may_not_leave_the_mesh(
    near: Side, captured: Captured, serve: Serve
) -> None:
    near.directory.entries[LOOPBACK], near.plane.allow_external = EXTERNAL, False
    reader, _ = await captured(near, LOOPBACK, await serve(_never_reached))
    assert await is_reset(reader)
    record = await near.record()
    assert (record.verdict, record.reason, record.attempts) == ("denied", "external_denied", 0)


async def opened_in_plaintext(near: Side, captured: Captured, serve: Serve) -> Any:
    """A link in plaintext that both sides have used, as (link, reader, writer)."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(100):
                writer.write(data)
        writer.close()

    near.directory.entries[LOOPBACK] = EXTERNAL
    reader, writer = await captured(near, LOOPBACK, await serve(echo), b"hello")
    assert await asyncio.wait_for(reader.readexactly(5), PATIENCE_S) == b"hello"
    (link,) = near.plane.live
    return link, reader, writer


async def test_an_open_link_out_of_the_mesh_ends_when_the_pod_may_leave_it_no_more(
    near: Side, captured: Captured, serve: Serve
) -> None:
    link, reader, writer = await opened_in_plaintext(near, captured, serve)
    assert (link.moved, link.peer, link.tunnel) == ((5, 5), None, None)
    assert reauthorise(near.plane) == 0
    near.plane.allow_external = False
    assert reauthorise(near.plane) == 1
    assert await is_reset(reader)
    writer.close()
    record = await near.record()
    assert (record.verdict, record.reason, record.close) == ("denied", "external_denied", "policy")


async def test_a_plaintext_link_whose_far_side_answers_nothing_any_more_ends(
    near: Side, captured: Captured, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, reader, writer = await opened_in_plaintext(near, captured, serve)
    link.look(near.plane.now())
    assert near.plane.live, "both sides answer"
    monkeypatch.setattr("sidecar.dataplane.links.splice.is_unanswered", lambda _: True)
    link.look(near.plane.now())
    assert await is_reset(reader)
    writer.close()
    assert (await near.record()).close == "lost"


@pytest.mark.parametrize(
    ("code", "reason"), [(errno.EMFILE, "overloaded"), (errno.ENETUNREACH, "endpoint_unreachable")]
)
async def test_a_connection_that_cannot_begin_says_why(
    near: Side, captured: Captured, monkeypatch: pytest.MonkeyPatch, code: int, reason: str
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("sidecar.dataplane.loop.connect.start_connect", refuses)
    near.directory.entries[LOOPBACK] = EXTERNAL
    reader, writer = await captured(near, LOOPBACK, 9, b"hello")
    assert await is_reset(reader)
    writer.close()
    record = await near.record()
    assert (record.verdict, record.reason) == ("failed", reason)


@pytest.mark.parametrize(
    ("workload", "reason"),
    [
        (unmeshed(), "unmeshed_peer"),
        (Workload("u", "shop", "api-0", API, (LOOPBACK,)), "skip_port"),
    ],
)
async def test_a_pod_without_a_sidecar_or_a_skipped_port_is_reached_in_plaintext_and_it_shows(
    workload: Workload, reason: str, near: Side, captured: Captured, serve: Serve
) -> None:
    port = await serve(hello)
    if reason == "skip_port":
        workload = Workload(
            "u", "shop", "api-0", API, (LOOPBACK,), skip_inbound=PortSet.parse(str(port))
        )
    near.directory.entries[LOOPBACK] = workload
    assert await echoes(*await captured(near, LOOPBACK, port))
    record = await near.record()
    assert (record.verdict, record.security, record.reason) == ("allowed", "plaintext", reason)
    assert record.destination_pod == workload.pod


async def test_a_pod_that_dials_itself_stays_on_loopback(
    near: Side, captured: Captured, serve: Serve
) -> None:
    near.plane.own = Own("shop", "web-0", "u", frozenset({LOOPBACK}))
    assert await echoes(*await captured(near, LOOPBACK, await serve(hello)))
    record = await near.record()
    assert (record.security, record.reason, record.endpoint_choice) == ("self", "self", "self")


async def test_a_service_whose_endpoint_is_the_pod_itself_stays_on_loopback(
    near: Side, captured: Captured, serve: Serve
) -> None:
    port = await serve(hello)
    near.plane.own = Own("shop", "web-0", "u", frozenset({LOOPBACK}))
    near.directory.entries["127.96.0.9"] = service(
        Endpoint(LOOPBACK, {80: port}, Workload("u", "shop", "web-0", WEB, (LOOPBACK,))), port=80
    )
    assert await echoes(*await captured(near, "127.96.0.9", 80))
    assert (await near.record()).reason == "self"


# --- fail closed ----------------------------------------------------------------------------------


async def _never_reached(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    raise AssertionError("reached")


class SilentDirectory:
    """The registry is away: nobody answers."""

    def known(self, key: str) -> Found | None:
        return None

    def ask(self, key: str, answer: Answer, *, for_record: bool = False) -> None:
        asyncio.get_running_loop().call_later(0.05, answer, None)

    ask_anew = ask


@pytest.mark.attack_row(60)
@pytest.mark.fault_row("control-plane-down")
@pytest.mark.parametrize("expected", ["127.0.0.0/8", "10.0.0.0/8", ""])
async def test_an_address_that_nobody_can_name_is_never_dialled_whatever_range_it_is_of(
    expected: str, near: Side, captured: Captured
) -> None:
    """A pod's address may lie outside of every range that somebody thought of."""
    near.plane.cluster_networks = tuple(map(ip_network, filter(None, [expected])))
    near.plane.directory = SilentDirectory()
    with socket.create_server((LOOPBACK, 0)) as listening:
        listening.settimeout(0.2)
        reader, _ = await captured(near, LOOPBACK, listening.getsockname()[1])
        assert await is_reset(reader)
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(listening.accept)
    record = await near.record()
    assert (record.verdict, record.reason, record.attempts) == ("failed", "registry_unavailable", 0)


async def test_a_link_that_is_cut_while_the_registry_is_asked_stays_cut(
    near: Side, captured: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Answer] = []
    monkeypatch.setattr(near.directory, "ask", lambda key, answer: answers.append(answer))
    with socket.create_server((LOOPBACK, 0)) as listening:
        listening.settimeout(0.1)
        reader, _ = await captured(near, LOOPBACK, listening.getsockname()[1])
        async with asyncio.timeout(PATIENCE_S):
            while not answers:
                await asyncio.sleep(0.01)
        (link,) = near.plane.live
        link.cut(4, "drain")
        assert await is_reset(reader)
        for found in (unmeshed(), None):
            answers[0](found)
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(listening.accept)
    assert [record.close for record in near.records] == ["drain"]


@pytest.mark.fault_row("control-plane-down")
async def test_a_meshed_pod_is_not_dialled_while_we_have_no_certificate(
    near: Side, captured: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obtain, "CERTIFICATE_WAIT_S", 0.2)
    near.plane.trust = None
    near.directory.entries[LOOPBACK] = Workload("u", "shop", "api-0", API, (LOOPBACK,))
    with socket.create_server((LOOPBACK, 0)) as listening:
        listening.settimeout(0.1)
        reader, _ = await captured(near, LOOPBACK, listening.getsockname()[1])
        assert await is_reset(reader)
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(listening.accept)
    assert (await near.record()).reason == "no_certificate"


@pytest.mark.fault_row("start-order")
async def test_a_link_is_held_until_the_first_certificate_comes(
    start_pair: StartPair, serve: Serve
) -> None:
    pair = start_pair(await serve(hello))
    trust, pair.near.plane.trust = pair.near.plane.trust, None
    reader, writer = await pair.client()
    await asyncio.sleep(0.2)
    assert not pair.near.records
    pair.near.plane.trust = trust
    assert await echoes(reader, writer)
    writer.close()


@pytest.mark.attack_row(20)
@pytest.mark.parametrize("port", sorted(OWN_PORTS))
async def test_an_app_that_dials_one_of_our_own_ports_is_refused(
    port: int, near: Side, captured: Captured
) -> None:
    reader, _ = await captured(near, "10.0.0.9", port)
    assert await is_reset(reader)
    record = await near.record()
    assert (record.verdict, record.reason) == ("denied", "own_port")


@pytest.mark.attack_row(19)
async def test_an_address_that_a_meshed_pod_has_just_left_is_not_dialled(
    near: Side, captured: Captured
) -> None:
    near.directory.entries[LOOPBACK] = Gone("shop/api-0")
    with socket.create_server((LOOPBACK, 0)) as listening:
        listening.settimeout(0.2)
        reader, _ = await captured(near, LOOPBACK, listening.getsockname()[1])
        assert await is_reset(reader)
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(listening.accept)
    record = await near.record()
    assert (record.verdict, record.reason, record.attempts) == ("failed", "endpoint_unreachable", 0)
    assert "shop/api-0" in record.error


async def test_an_upstream_that_nobody_knows_is_refused_and_not_dialled_on_this_machine(
    start_pair: StartPair,
) -> None:
    with socket.create_server((LOOPBACK, 0)) as listening:
        listening.settimeout(0.2)
        pair = start_pair(listening.getsockname()[1])
        pair.near.directory.entries["api.shop"] = EXTERNAL
        reader, writer = await pair.client()
        assert await is_reset(reader)
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(listening.accept)
    writer.close()
    record = await pair.near.record()
    assert (record.verdict, record.reason) == ("failed", "no_endpoints")
    assert "api.shop" in record.error


async def test_a_service_without_endpoints_says_so(near: Side, captured: Captured) -> None:
    near.directory.entries["127.96.0.9"] = service(port=80)
    reader, _ = await captured(near, "127.96.0.9", 80)
    assert await is_reset(reader)
    record = await near.record()
    assert (record.reason, record.service) == ("no_endpoints", "api.shop")


# --- another endpoint -----------------------------------------------------------------------------


Start = Callable[..., Awaitable[None]]


@pytest.fixture
async def start(near: Side, forge: Forge) -> AsyncIterator[Start]:
    """`await start(peer, ...)`: the endpoints of the Service at 127.96.0.9, in redirect mode, each at
    an address of its own from 127.0.0.2 on. What failed in a peer fails the test."""
    started: list[Peer] = []

    async def start(*peers: Peer) -> None:
        endpoints = []
        for number, peer in enumerate(peers, 2):
            ip = f"127.0.0.{number}"
            await peer.start(ip, forge)
            started.append(peer)
            workload = Workload("u", "shop", f"api-{number}", API, (ip,))
            endpoints.append(Endpoint(ip, {80: peer.port}, workload))
        near.directory.entries["127.96.0.9"] = service(*endpoints, port=80)
        near.plane.random = _InOrder()  # type: ignore[assignment]

    yield start
    near.plane.pool.drop_all()
    for link in list(near.plane.live):
        link.cut(4, "drain")
    for peer in started:
        await peer.close()


class _InOrder:
    """Chance that always draws the first two."""

    def sample(self, items: list[Endpoint], count: int) -> list[Endpoint]:
        return items[:count]


HELD = b"these bytes are held until ACCEPT"


@pytest.mark.fault_row("endpoint-death")
@pytest.mark.parametrize("answer", ["refuse", "fin", "nobody listens"])
async def test_before_accept_the_link_moves_on_and_the_held_bytes_go_along(
    answer: str, near: Side, captured: Captured, start: Start
) -> None:
    async def first(peer: Peer) -> None:
        assert await peer.frame(OPEN)
        if answer == "refuse":
            peer.send(encode(REFUSE, encode_code(UNREACHABLE)))
            await peer.until_closed()

    async def second(peer: Peer) -> None:
        await peer.accept()
        assert await peer.data(len(HELD)) == HELD
        await peer.end()

    one, two = Peer(first), Peer(second)
    await start(one, two)
    if answer == "nobody listens":
        await one.close()
    reader, writer = await captured(near, "127.96.0.9", 80, HELD)
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
    record = await near.record()
    assert (record.verdict, record.destination_ip, record.attempts) == ("allowed", "127.0.0.3", 2)


async def test_a_policy_s_no_is_an_answer_and_not_tried_elsewhere(
    near: Side, captured: Captured, start: Start
) -> None:
    async def deny(peer: Peer) -> None:
        await peer.frame(OPEN)
        peer.send(encode(REFUSE, encode_code(DENIED)))
        await peer.until_closed()

    async def never(peer: Peer) -> None:
        raise AssertionError("asked a second endpoint")

    one, two = Peer(deny), Peer(never)
    await start(one, two)
    reader, _ = await captured(near, "127.96.0.9", 80)
    assert await is_reset(reader)
    record = await near.record()
    assert (record.verdict, record.reason, record.attempts) == ("denied", "policy_denied", 1)
    assert not two.links


@pytest.mark.fault_row("endpoint-death")
async def test_after_accept_a_link_dies_with_its_peer_and_is_never_sent_again(
    near: Side, captured: Captured, start: Start
) -> None:
    async def accept_then_die(peer: Peer) -> None:
        await peer.accept()
        await peer.data(len(HELD))

    async def never(peer: Peer) -> None:
        raise AssertionError("sent twice")

    one, two = Peer(accept_then_die), Peer(never)
    await start(one, two)
    reader, writer = await captured(near, "127.96.0.9", 80)
    writer.write(HELD)
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
    record = await near.record()
    assert (record.verdict, record.reason, record.close) == ("allowed", "peer_lost", "lost")
    assert not two.links


@pytest.mark.fault_row("endpoint-death")
async def test_an_endpoint_that_does_not_answer_is_ejected_and_new_links_go_elsewhere(
    near: Side, captured: Captured, start: Start
) -> None:
    async def serve_one(peer: Peer) -> None:
        await peer.accept()
        await peer.end()

    one, two = Peer(serve_one), Peer(serve_one)
    await start(one, two)
    await one.close()
    for turn in (1, 2):
        reader, writer = await captured(near, "127.96.0.9", 80)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
        record = await near.record(turn)
        assert (record.destination_ip, record.attempts) == ("127.0.0.3", 3 - turn)


async def test_more_than_may_be_held_waits_at_the_app_until_accept(
    near: Side, captured: Captured, start: Start
) -> None:
    size = outbound.HOLD_BYTES * 3
    got = asyncio.Event()

    async def late(peer: Peer) -> None:
        await peer.frame(OPEN)
        await asyncio.sleep(0.1)
        assert len(peer.unread) <= outbound.HOLD_BYTES + HEADER
        peer.send(encode(ACCEPT, encode_accept(b"t" * 16, b"s" * 8)))
        await peer.data(size)
        got.set()
        await peer.until_closed()

    peer = Peer(late)
    await start(peer)
    _, writer = await captured(near, "127.96.0.9", 80)
    writer.write(b"x" * size)
    async with asyncio.timeout(PATIENCE_S):
        await got.wait()


async def test_an_answer_that_never_comes_ends_in_time(
    near: Side, captured: Captured, start: Start
) -> None:
    async def mute(peer: Peer) -> None:
        await peer.until_closed()

    peer = Peer(mute)
    await start(peer)
    reader, _ = await captured(near, "127.96.0.9", 80)
    async with asyncio.timeout(PATIENCE_S):
        while not near.records:
            for link in list(near.plane.live):  # as the watch does, a little later
                link.look(near.plane.now() + outbound.ACCEPT_TIMEOUT_S + 1)
            await asyncio.sleep(0.02)
    assert await is_reset(reader)
    assert near.records[0].reason == "handshake_timeout"


@pytest.mark.fault_row("half-open")
async def test_an_endpoint_that_keeps_a_link_waiting_gets_no_other(
    near: Side, captured: Captured, start: Start
) -> None:
    accept = asyncio.Event()

    async def slow(peer: Peer) -> None:
        await peer.frame(OPEN)
        await accept.wait()
        peer.send(encode(ACCEPT, encode_accept(b"t" * 16, b"s" * 8)))
        assert await peer.data(len(HELD)) == HELD
        await peer.end()

    peer = Peer(slow)
    await start(peer)
    reader, writer = await captured(near, "127.96.0.9", 80, HELD)
    async with asyncio.timeout(PATIENCE_S):
        while not peer.links:
            await asyncio.sleep(0.01)
    now, ejections = near.plane.now(), near.plane.ejections
    (link,) = near.plane.live
    link.look(now + 1)
    assert not ejections.out("127.0.0.2", peer.port, now)
    link.look(now + outbound.SUSPECT_AFTER_S + 1)
    assert ejections.out("127.0.0.2", peer.port, now)
    accept.set()
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
    assert not ejections.out("127.0.0.2", peer.port, now), "it was only slow"


@pytest.mark.fault_row("half-open")
async def test_a_link_that_sent_something_is_never_sent_again_for_want_of_an_answer(
    near: Side, captured: Captured, start: Start
) -> None:
    """ACCEPT may be what was lost: the app there may have seen the bytes."""

    async def mute(peer: Peer) -> None:
        await peer.frame(OPEN)
        await peer.until_closed()

    async def never(peer: Peer) -> None:
        raise AssertionError("sent twice")

    one, two = Peer(mute), Peer(never)
    await start(one, two)
    reader, _ = await captured(near, "127.96.0.9", 80, HELD)
    async with asyncio.timeout(PATIENCE_S):
        while not one.links:
            await asyncio.sleep(0.01)
        while not near.records:
            for link in list(near.plane.live):
                link.look(near.plane.now() + outbound.ACCEPT_TIMEOUT_S + 1)
            await asyncio.sleep(0.02)
    assert await is_reset(reader)
    record = await near.record()
    assert (record.verdict, record.reason, record.attempts) == ("failed", "handshake_timeout", 1)


@pytest.mark.fault_row("half-open")
async def test_a_link_that_sent_nothing_moves_on_from_an_endpoint_that_never_answers(
    near: Side, captured: Captured, start: Start
) -> None:
    async def mute(peer: Peer) -> None:
        await peer.until_closed()

    async def second(peer: Peer) -> None:
        await peer.accept()
        await peer.end()

    one, two = Peer(mute), Peer(second)
    await start(one, two)
    reader, writer = await captured(near, "127.96.0.9", 80)
    async with asyncio.timeout(PATIENCE_S):
        while not two.links:
            for link in list(near.plane.live):
                link.look(near.plane.now() + outbound.ACCEPT_TIMEOUT_S + 1)
            await asyncio.sleep(0.02)
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
    record = await near.record()
    assert (record.verdict, record.destination_ip, record.attempts) == ("allowed", "127.0.0.3", 2)


async def test_an_unexpected_identity_behind_a_service_is_refused(
    near: Side, captured: Captured, start: Start
) -> None:
    async def never(peer: Peer) -> None:
        raise AssertionError("reached")

    peer = Peer(never)
    await start(peer)
    entry = near.directory.entries["127.96.0.9"]
    assert isinstance(entry, Service)
    other = Workload(
        "u", "shop", "x", WorkloadIdentity("cluster.local", "shop", "other"), ("127.0.0.2",)
    )
    near.directory.entries["127.96.0.9"] = service(
        Endpoint("127.0.0.2", {80: peer.port}, other), port=80
    )
    reader, writer = await captured(near, "127.96.0.9", 80)
    writer.write(HELD)
    assert await is_reset(reader)
    assert (await near.record()).reason == "identity_mismatch"


BATCH = WorkloadIdentity("cluster.local", "shop", "batch")


@pytest.mark.attack_row(19)
@pytest.mark.fault_row("cluster-ip-reuse")
async def test_an_address_that_is_another_pods_by_now_is_asked_about_once_more(
    near: Side, captured: Captured, start: Start
) -> None:
    """The app dialled an IP. Who has it now is the registry's to say, and the leaf's to prove."""

    async def second(peer: Peer) -> None:
        await peer.accept()
        assert await peer.data(len(HELD)) == HELD
        await peer.end()

    peer = Peer(second)
    await start(peer)
    old = Workload("old", "shop", "batch-0", BATCH, ("127.0.0.2",))
    near.directory.entries["127.0.0.2"] = old
    near.directory.truth["127.0.0.2"] = Workload("new", "shop", "api-9", API, ("127.0.0.2",))
    reader, writer = await captured(near, "127.0.0.2", peer.port, HELD)
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
    record = await near.record()
    assert (record.verdict, record.destination_pod) == ("allowed", "shop/api-9")
    assert near.directory.anew == ["127.0.0.2"]


@pytest.mark.attack_row(19)
async def test_while_the_registry_stands_by_its_word_another_pod_gets_nothing(
    near: Side, captured: Captured, start: Start
) -> None:
    async def never(peer: Peer) -> None:
        raise AssertionError("reached")

    peer = Peer(never)
    await start(peer)
    near.directory.entries["127.0.0.2"] = Workload("o", "shop", "batch-0", BATCH, ("127.0.0.2",))
    reader, _ = await captured(near, "127.0.0.2", peer.port, HELD)
    assert await is_reset(reader)
    record = await near.record()
    assert (record.verdict, record.reason, record.attempts) == ("failed", "identity_mismatch", 1)
    assert near.directory.anew == ["127.0.0.2"], "once, not for ever"


@pytest.mark.attack_row(19)
async def test_a_registry_that_says_something_else_each_time_is_asked_anew_once(
    near: Side, captured: Captured, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(peer: Peer) -> None:
        raise AssertionError("reached")

    peer = Peer(never)
    await start(peer)
    near.directory.entries["127.0.0.2"] = Workload("0", "shop", "b", BATCH, ("127.0.0.2",))
    asked: list[str] = []

    def ask_anew(key: str, answer: Answer) -> None:
        asked.append(key)
        again = Workload(str(len(asked)), "shop", "b", BATCH, ("127.0.0.2",))
        asyncio.get_running_loop().call_soon(answer, again)

    monkeypatch.setattr(near.directory, "ask_anew", ask_anew)
    reader, _ = await captured(near, "127.0.0.2", peer.port, HELD)
    assert await is_reset(reader)
    record = await near.record()
    assert (record.reason, record.attempts, len(asked)) == ("identity_mismatch", 2, 1)


@pytest.mark.attack_row(19)
async def test_behind_a_service_an_impostor_is_ejected_and_the_next_endpoint_tried(
    near: Side, captured: Captured, start: Start
) -> None:
    async def never(peer: Peer) -> None:
        raise AssertionError("reached")

    async def second(peer: Peer) -> None:
        await peer.accept()
        assert await peer.data(len(HELD)) == HELD
        await peer.end()

    one, two = Peer(never, identity=BATCH), Peer(second)
    await start(one, two)
    reader, writer = await captured(near, "127.96.0.9", 80, HELD)
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
    record = await near.record()
    assert (record.verdict, record.destination_ip, record.attempts) == ("allowed", "127.0.0.3", 2)
    assert near.plane.ejections.out("127.0.0.2", one.port, near.plane.now())
    assert near.directory.anew == ["127.96.0.9"]


async def test_links_that_wait_for_a_tunnel_all_get_their_turn_though_no_certificate_comes(
    near: Side, captured: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obtain, "CERTIFICATE_WAIT_S", 0.1)
    near.plane.pool.close()
    near.plane.pool = pool = Pool(near.plane.poller, near.plane.now, PoolLimits(dials_per_peer=1))
    near.plane.trust = None
    near.directory.entries[LOOPBACK] = Workload("u", "shop", "api-0", API, (LOOPBACK,))
    pool.dial_began((LOOPBACK, 80, str(API)))
    readers = [(await captured(near, LOOPBACK, 80))[0] for _ in range(3)]
    await asyncio.sleep(0.1)
    assert not near.records, "all wait"
    pool.dial_ended((LOOPBACK, 80, str(API)))
    for reader in readers:
        assert await is_reset(reader)
    assert (await near.record(3)).reason == "no_certificate"


async def test_an_app_may_listen_at_the_pods_other_address_or_on_a_loopback_that_is_opened(
    near: Side,
) -> None:
    plane = near.plane
    plane.own = Own("shop", "web-0", "u", frozenset({"10.0.0.5", "fd00::5"}))
    assert plane.app_ips("10.0.0.5", 80) == ["10.0.0.5", "fd00::5"]
    assert plane.app_ips("fd00::5", 80) == ["fd00::5", "10.0.0.5"]
    plane.loopback_ports = PortSet.parse("80")
    assert plane.app_ips("fd00::5", 80) == ["fd00::5", "10.0.0.5", "::1"]
    plane.own = Own("shop", "web-0", "u", frozenset({"10.0.0.5"}))
    assert plane.app_ips("10.0.0.5", 81) == ["10.0.0.5"]
