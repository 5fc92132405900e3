"""What becomes of a connection that reaches the pod, where plaintext is let in and where it is not."""

import asyncio
import contextlib
import dataclasses
import functools
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from certs.trust.identity import WorkloadIdentity
from kit.contract import ALPN, OWN_PORTS
from kit.ports import PortSet
from policy.rules import NOT_TOLD, PolicySet
from sidecar import sockets
from sidecar.dataplane.limits import Limits
from sidecar.dataplane.links.arrival import Arrivals
from sidecar.dataplane.links.plaintext import PlaintextLink
from sidecar.dataplane.loop.listener import Listener
from sidecar.dataplane.tunnels.handshake import Handshake
from sidecar.directory import EXTERNAL, Gone, Workload
from sidecar.wire.opening import SHUTDOWN
from tests.certs.forge import Forge
from tests.patience import PATIENCE_S
from tests.sidecar.dataplane.conftest import API, MakeSide, Side, StartPair, connected
from tests.sidecar.dataplane.test_link import echo
from tests.sidecar.dataplane.test_tcp_stays_tcp import full

Serve = Any
LOOPBACK = "127.0.0.1"


class Gate:
    """The far side alone, with its connections going where a test says (as capture would have it)."""

    def __init__(self, side: Side, address: tuple[str, int]) -> None:
        self.side, self.address = side, address


@pytest.fixture
async def gate(make_side: MakeSide, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gate]:
    side = make_side(API, LOOPBACK)
    side.plane.tunnel_only = False
    side.plane.policy = PolicySet(allow_plaintext=True)
    arrivals = Arrivals(side.plane)
    listening = sockets.listen(LOOPBACK, 0)
    listener = Listener(side.plane.poller, listening, arrivals.accepted)
    yield Gate(side, listening.getsockname())
    listener.close()
    arrivals.close()


def goes_to(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.dataplane.links.arrival.original_dst", lambda _: (LOOPBACK, port))


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 ready\r\n")
    await reader.read()
    writer.close()


async def ends(reader: asyncio.StreamReader) -> bytes:
    with contextlib.suppress(ConnectionResetError):
        return await asyncio.wait_for(reader.read(), PATIENCE_S)
    return b""


async def test_plaintext_that_is_allowed_reaches_the_app_and_its_record_says_so(
    gate: Gate, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_to(await serve(echo), monkeypatch)
    gate.side.directory.entries[LOOPBACK] = Workload("u", "shop", "old-0", None, (LOOPBACK,))
    reader, writer = await connected(gate.address, b"hello")
    assert await reader.readexactly(5) == b"hello"
    writer.close()
    record = await gate.side.record()
    assert (record.verdict, record.security, record.reason) == (
        "allowed",
        "plaintext",
        "permissive",
    )
    assert (record.bytes_sent, record.bytes_received, record.rule) == (5, 5, "plaintext:allow")


async def test_a_port_may_take_plaintext_where_the_pod_does_not(
    gate: Gate, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = await serve(greet)
    gate.side.plane.policy = PolicySet(plaintext_ports=PortSet.parse(str(port)))
    gate.side.directory.entries[LOOPBACK] = Workload("u", "shop", "old-0", None, (LOOPBACK,))
    goes_to(port, monkeypatch)
    reader, writer = await connected(gate.address)
    assert await reader.readline() == b"220 ready\r\n", "and it waits for nothing either"
    writer.close()
    assert (await gate.side.record()).rule == "plaintext:allow"
    goes_to(port - 1, monkeypatch)
    reader, writer = await connected(gate.address, b"hello")
    assert await ends(reader) == b""
    writer.close()
    assert (await gate.side.record(2)).reason == "plaintext_denied"


@pytest.mark.attack_row(24)
@pytest.mark.parametrize(
    ("limits", "said"),
    [(Limits(links=1), "links"), (Limits(plaintext_links=1), "plaintext_links")],
)
async def test_strangers_that_are_let_in_do_not_use_up_the_links_of_all(
    limits: Limits, said: str, gate: Gate, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_to(await serve(echo), monkeypatch)
    plane = gate.side.plane
    plane.limits = limits
    reader, writer = await connected(gate.address, b"hello")
    assert await reader.readexactly(5) == b"hello"
    late, refused = await connected(gate.address, b"hello")
    assert await ends(late) == b""
    assert plane.turned_away == {said: 1} and len(plane.live) == 1
    for each in (writer, refused):
        each.close()
    await gate.side.record()
    assert plane.plaintext == 0
    again, writer = await connected(gate.address, b"hello")
    assert await again.readexactly(5) == b"hello"
    writer.close()
    await gate.side.record(2)
    assert plane.plaintext == 0


NODE = Workload("", "", "", None, (LOOPBACK,), host_network=True)


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("source", ["node", "outside", "asked"])
async def test_what_comes_from_no_pod_is_external_whether_it_is_let_in_or_not(
    source: str, allowed: bool, gate: Gate, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane, directory = gate.side.plane, gate.side.directory
    plane.policy = PolicySet(allow_plaintext=allowed)
    goes_to(await serve(echo), monkeypatch)
    if source == "outside":
        directory.entries[LOOPBACK] = EXTERNAL
    else:
        directory.entries[LOOPBACK] = NODE
    if source == "asked":
        monkeypatch.setattr(directory, "known", lambda key: None)
    reader, writer = await connected(gate.address, b"hello")
    if allowed:
        assert await reader.readexactly(5) == b"hello"
    else:
        assert await ends(reader) == b""
    writer.close()
    record = await gate.side.record()
    assert record.source_pod == ""
    if allowed:
        assert (record.verdict, record.security, record.reason) == (
            "allowed",
            "plaintext",
            "external",
        )
    else:
        assert (record.verdict, record.reason) == ("denied", "plaintext_denied")
        assert "external" in record.error


@pytest.mark.parametrize("known", ["unmeshed", "skips the port", "asked"])
async def test_a_client_known_to_be_unmeshed_is_not_waited_for_when_the_server_speaks_first(
    known: str, gate: Gate, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = await serve(greet)
    goes_to(port, monkeypatch)
    identity = WorkloadIdentity("cluster.local", "shop", "old")
    it = (
        Workload("u", "shop", "o", identity, (LOOPBACK,), skip_outbound=PortSet.parse(str(port)))
        if known == "skips the port"
        else Workload("u", "shop", "old-0", None, (LOOPBACK,))
    )
    directory = gate.side.directory
    directory.entries[LOOPBACK] = it
    if known == "asked":
        monkeypatch.setattr(directory, "known", lambda key: None)
    reader, writer = await connected(gate.address)
    async with asyncio.timeout(PATIENCE_S):
        assert await reader.readline() == b"220 ready\r\n"
    writer.close()
    await gate.side.record()


async def test_an_address_that_a_meshed_pod_has_just_left_may_be_the_next_ones(
    gate: Gate, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it sends first may be a handshake that has not come yet: it is waited for."""
    monkeypatch.setattr("sidecar.dataplane.links.arrival.TIMEOUT_S", 0.3)
    goes_to(await serve(greet), monkeypatch)
    gate.side.directory.entries[LOOPBACK] = Gone("shop/web-0")
    reader, writer = await connected(gate.address)
    assert await ends(reader) == b""
    writer.close()
    assert (await gate.side.record()).reason == "handshake_timeout"


@pytest.mark.attack_row(1)
async def test_a_client_known_to_be_meshed_must_speak_first_even_where_plaintext_is_allowed(
    gate: Gate, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.dataplane.links.arrival.TIMEOUT_S", 0.3)
    goes_to(await serve(greet), monkeypatch)
    gate.side.directory.entries[LOOPBACK] = Workload("u", "shop", "web-0", API, (LOOPBACK,))
    reader, writer = await connected(gate.address)
    assert await ends(reader) == b""
    writer.close()
    assert (await gate.side.record()).reason == "handshake_timeout"


async def test_an_app_s_own_tls_passes_as_plaintext_untouched(
    gate: Gate, serve: Serve, forge: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaf = forge.leaf(str(API), ips=[LOOPBACK], dns=["app.test"])
    (tmp_path / "app.pem").write_bytes(leaf.key_pem + leaf.chain_pem)
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(tmp_path / "app.pem")
    theirs.set_alpn_protocols(["h2"])
    server = await asyncio.start_server(echo, LOOPBACK, 0, ssl=theirs)
    goes_to(server.sockets[0].getsockname()[1], monkeypatch)
    ours = ssl.create_default_context(cadata=forge.root_pem.decode())
    ours.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection(
        *gate.address, ssl=ours, server_hostname="app.test"
    )
    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
    writer.write(b"through")
    assert await reader.readexactly(7) == b"through"
    writer.close()
    await writer.wait_closed()
    record = await gate.side.record()
    assert (record.security, record.reason) == ("plaintext", "permissive")
    server.close()


@pytest.mark.attack_row(20)
async def test_plaintext_to_a_port_of_our_own_is_refused_and_does_not_come_round_again(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In localhost mode a peer dials our inbound port itself; plaintext there stands for no app."""
    gate.side.plane.tunnel_only = True
    gate.side.plane.own_ports = frozenset({gate.address[1]})
    reader, writer = await connected(gate.address, b"GET / HTTP/1.1\r\n\r\n")
    assert await ends(reader) == b""
    writer.close()
    await asyncio.sleep(0.1)
    (record,) = gate.side.records
    assert (record.verdict, record.reason) == ("denied", "plaintext_denied")


@pytest.mark.attack_row(20)
@pytest.mark.parametrize("tunnel_only", [True, False])
async def test_a_peer_cannot_go_out_again_through_a_port_that_stands_for_an_upstream(
    tunnel_only: bool, start_pair: StartPair, serve: Serve
) -> None:
    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise AssertionError("a peer reached the app's own way out")

    pair = start_pair(await serve(never))
    pair.far.plane.tunnel_only = tunnel_only
    inbound = pair.inbound_port
    pair.far.plane.own_ports = frozenset({pair.app_port} if tunnel_only else {inbound})
    reader, writer = await pair.client()
    assert await ends(reader) == b""
    writer.close()
    record = await pair.far.record()
    assert (record.verdict, record.reason) == ("denied", "own_port")


async def test_nobody_is_let_in_before_the_registry_has_spoken(
    start_pair: StartPair, serve: Serve
) -> None:
    pair = start_pair(await serve(echo))
    pair.far.plane.policy = NOT_TOLD
    reader, writer = await pair.client()
    assert await ends(reader) == b""
    writer.close()
    record = await pair.far.record()
    assert (record.verdict, record.reason) == ("denied", "policy_denied")
    assert "registry" in record.error


async def test_plaintext_to_a_port_where_nothing_listens_says_so(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_to(1, monkeypatch)
    reader, writer = await connected(gate.address, b"hello")
    assert await ends(reader) == b""
    writer.close()
    assert (await gate.side.record()).reason == "app_unreachable"


async def test_a_port_scan_leaves_no_record_and_no_stranger(gate: Gate) -> None:
    gate.side.plane.policy = PolicySet()
    _, writer = await connected(gate.address)
    writer.close()
    await asyncio.sleep(0.1)
    assert not gate.side.records


@pytest.mark.attack_row(20)
@pytest.mark.parametrize("port", sorted(OWN_PORTS))
async def test_a_captured_connection_to_one_of_our_own_ports_is_refused_unheard(
    port: int, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_to(port, monkeypatch)
    reader, writer = await connected(gate.address)
    assert await ends(reader) == b""
    writer.close()
    record = await gate.side.record()
    assert (record.verdict, record.reason) == ("denied", "own_port")


async def half_a_handshake(gate: Gate) -> str:
    """As a peer that sends its ClientHello and nothing more; the reason that is recorded."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.set_alpn_protocols([ALPN])
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    reader, writer = await connected(gate.address, outgoing.read())
    await ends(reader)
    writer.close()
    return (await gate.side.record()).reason


@pytest.mark.attack_row(24)
async def test_a_handshake_that_stops_half_way_ends_at_its_deadline(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sidecar.dataplane.links.arrival.Handshake", functools.partial(Handshake, timeout_s=0.3)
    )
    goes_to(80, monkeypatch)
    assert await half_a_handshake(gate) == "handshake_timeout"


@pytest.mark.attack_row(25)
async def test_a_handshake_longer_than_ours_can_be_is_given_up(
    start_pair: StartPair, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.dataplane.tunnels.handshake.MAX_HANDSHAKE_BYTES", 100)
    pair = start_pair(await serve(echo))
    reader, writer = await pair.client()
    assert await ends(reader) == b""
    writer.close()
    record = await pair.near.record()
    assert (record.reason, record.error) == ("handshake_failed", "handshake too long")


@pytest.mark.fault_row("control-plane-down")
async def test_an_expired_certificate_of_our_own_is_never_shown(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_to(80, monkeypatch)
    trust = gate.side.plane.trust
    assert trust is not None
    gate.side.plane.trust = dataclasses.replace(trust, expires_at=gate.side.plane.now() - 1)
    assert await half_a_handshake(gate) == "no_certificate"


async def one_link(side: Side) -> PlaintextLink:
    async with asyncio.timeout(PATIENCE_S):
        while not side.plane.live:
            await asyncio.sleep(0.005)
    (link,) = side.plane.live
    assert isinstance(link, PlaintextLink)
    return link


async def test_an_open_plaintext_link_tells_what_it_moved_and_that_no_peer_is_known(
    gate: Gate, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_to(await serve(echo), monkeypatch)
    reader, writer = await connected(gate.address, b"hello")
    assert await reader.readexactly(5) == b"hello"
    link = await one_link(gate.side)
    assert (link.moved, link.peer, link.tunnel, link.tunnel_expires_at) == (
        (5, 5),
        None,
        None,
        None,
    )
    link.look(gate.side.plane.now())
    assert gate.side.plane.live, "both sides answer"
    monkeypatch.setattr("sidecar.dataplane.links.splice.is_unanswered", lambda _: True)
    link.look(gate.side.plane.now())
    record = await gate.side.record()
    assert (record.verdict, record.close) == ("allowed", "lost")
    assert "answers nothing" in record.error
    writer.close()


async def test_a_plaintext_link_is_cut_while_its_app_is_dialled(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening, waiting = await full()
    goes_to(listening.getsockname()[1], monkeypatch)
    reader, writer = await connected(gate.address, b"hello")
    link = await one_link(gate.side)
    assert link.moved == (0, 0)
    link.look(gate.side.plane.now())
    link.cut(SHUTDOWN, "drain")
    assert await ends(reader) == b""
    writer.close()
    assert (await gate.side.record()).close == "drain"
    assert not gate.side.plane.live and gate.side.plane.plaintext == 0
    for sock in (listening, *waiting):
        sock.close()


async def test_an_app_that_listens_on_the_pods_other_address_gets_plaintext_as_well(
    gate: Gate, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = await serve(greet)
    gate.side.plane.loopback_ports = PortSet.parse(str(port))
    monkeypatch.setattr(
        "sidecar.dataplane.links.arrival.original_dst", lambda _: ("127.0.0.9", port)
    )
    reader, writer = await connected(gate.address, b"hello")
    assert await asyncio.wait_for(reader.readline(), PATIENCE_S) == b"220 ready\r\n"
    writer.close()
    assert (await gate.side.record()).verdict == "allowed"


@pytest.mark.parametrize("method", ["_try", "_answered", "_begin"])
async def test_our_own_failure_ends_a_plaintext_link_alone(
    gate: Gate, serve: Serve, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def fails(*_: object) -> None:
        raise ValueError("ours")

    goes_to(await serve(greet), monkeypatch)
    with monkeypatch.context() as broken:
        broken.setattr(PlaintextLink, method, fails)
        reader, writer = await connected(gate.address, b"hello")
        assert await ends(reader) == b""
        writer.close()
        record = await gate.side.record()
    assert (record.verdict, record.reason, record.close) == ("failed", "bug", "bug")
    assert not gate.side.plane.live and gate.side.plane.plaintext == 0
    reader, writer = await connected(gate.address, b"hello")
    assert await asyncio.wait_for(reader.readline(), PATIENCE_S) == b"220 ready\r\n"
    writer.close()
    assert (await gate.side.record(2)).verdict == "allowed"
