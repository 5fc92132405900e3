"""A tunnel in which no proof is heard is continued by a new handshake of the same two workloads."""

import asyncio
from typing import Any

import pytest

from certs.trust.bans import Ban, Bans, Guard
from certs.trust.contexts import TlsMaterial
from certs.trust.identity import WorkloadIdentity
from certs.trust.svid import SvidChecker
from kit.buckets import Buckets
from kit.contract import ALPN
from policy.rules import Policy, PolicySet, Rule, Source
from sidecar.dataplane.tunnels import continuation
from sidecar.wire.frames import CONTINUE, CONTINUED, encode
from sidecar.wire.renewal import BELIEVED, NOT_NOW, OTHER_WORKLOAD, encode_continue
from tests.certs.forge import Forge
from tests.patience import PATIENCE_S
from tests.sidecar.dataplane.conftest import API, WEB, Pair, Side, StartPair
from tests.sidecar.dataplane.test_attacks import inbound_address
from tests.sidecar.dataplane.test_renewal import ends, give_leaf, leaf_of, until

CHUNK = bytes(range(256)) * 256


@pytest.fixture
async def pair(start_pair: StartPair, serve: Any, forge: Forge) -> Pair:
    """Leaves of sixty seconds; the app writes without end, and the client reads what it likes."""

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(CHUNK)
                await writer.drain()
        except ConnectionError:
            writer.close()

    pair = start_pair(await serve(pour))
    give_leaf(pair.near, forge, WEB, 20)
    give_leaf(pair.far, forge, API, 20)
    return pair


async def stuck(pair: Pair) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that reads nothing, until everything between it and the app is full."""
    reader, writer = await pair.client()
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    moved = -1
    while True:
        await asyncio.sleep(0.3)
        (link,) = pair.far.plane.live or [None]
        now = link.moved[1] if link is not None else 0
        if now and now == moved:
            return reader, writer
        moved = now


async def leave(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    await asyncio.sleep(0.05)  # the loop closes it a moment later


async def read_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Everything that was on its way is still right."""
    writer.transport.resume_reading()  # type: ignore[attr-defined]
    for _ in range(64):
        assert await asyncio.wait_for(reader.readexactly(len(CHUNK)), PATIENCE_S) == CHUNK


def next_leaves(pair: Pair, forge: Forge) -> None:
    give_leaf(pair.near, forge, WEB, 500)
    give_leaf(pair.far, forge, API, 400)


async def test_a_link_whose_client_reads_nothing_outlives_its_leaves_too(
    pair: Pair, forge: Forge
) -> None:
    reader, writer = await stuck(pair)
    next_leaves(pair, forge)
    pair.near.plane.renewals.look()
    await until(lambda: ends(pair.near) > 300 and ends(pair.far) > 300)
    assert pair.near.plane.renewals.ours["continued"] == 1
    assert pair.far.plane.renewals.theirs["continued"] == 1
    await until(lambda: len(pair.near.plane.pool))  # the new tunnel is there for the next link
    await read_on(reader, writer)  # and with it the proofs that were on their way
    await asyncio.sleep(0.3)
    assert ends(pair.near) > 300 < ends(pair.far)
    writer.close()
    for side in (pair.near, pair.far):
        record = await side.record()
        assert (record.renewed, record.reason) == (1, "")


async def test_nothing_is_continued_while_there_is_time_for_a_proof(
    pair: Pair, forge: Forge
) -> None:
    give_leaf(pair.near, forge, WEB, 300)
    give_leaf(pair.far, forge, API, 300)
    _, writer = await stuck(pair)
    next_leaves(pair, forge)
    await asyncio.sleep(0.5)
    assert not pair.near.plane.renewals.ours["continued"]
    await leave(writer)


async def test_without_later_leaves_a_new_handshake_continues_nothing(
    pair: Pair, forge: Forge
) -> None:
    _, writer = await stuck(pair)
    pair.near.plane.renewals.look()
    await asyncio.sleep(0.5)
    assert ends(pair.near) < 20
    assert not pair.near.plane.renewals.ours["continued"]
    await leave(writer)


async def test_tunnels_that_come_from_one_port_to_two_of_ours_are_told_apart(
    pair: Pair, forge: Forge
) -> None:
    """A kernel gives one port to connections that go to different ones."""
    writers = [(await pair.client())[1] for _ in range(2)]
    await until(lambda: len(pair.far.plane.live) == 2)
    first, second = (link.tunnel for link in pair.far.plane.live)
    assert first is not None and second is not None
    second.peer_port = first.peer_port
    give_leaf(pair.far, forge, API, 400)
    asker = Asker(pair, forge)
    for tunnel in (first, second):
        assert tunnel.channel is not None
        leaf = leaf_of(forge, WEB, 500)
        assert await asker.ask(leaf, first.peer_port, tunnel.channel) == BELIEVED
        assert tunnel.expires_at - pair.far.plane.now() > 300
    for writer in writers:
        await leave(writer)


# --- attacks ----------------------------------------------------------------------------------


class Asker:
    """Has a tunnel of its own by a leaf that a test chooses, and asks for another to be continued."""

    def __init__(self, pair: Pair, forge: Forge) -> None:
        self.pair, self.forge = pair, forge

    async def ask(self, leaf: Any, port: int, channel: bytes) -> int:
        material = TlsMaterial(leaf.key_pem, leaf.chain_pem, self.forge.root_pem)
        reader, writer = await asyncio.open_connection(
            *inbound_address(self.pair), ssl=material.client_context([ALPN])
        )
        writer.write(encode(CONTINUE, encode_continue(port, channel)))
        try:
            async with asyncio.timeout(PATIENCE_S):
                head = await reader.readexactly(4)
                assert head[0] == CONTINUED
                return (await reader.readexactly(1))[0]
        finally:
            await leave(writer)


def old_tunnel(side: Side) -> Any:
    (link,) = side.plane.live
    return link.tunnel


@pytest.mark.attack_row(51)
@pytest.mark.parametrize(
    ("identity", "pod", "ips", "outcome"),
    [
        (WEB, "", ("127.0.0.1",), BELIEVED),
        (API, "", ("127.0.0.1",), OTHER_WORKLOAD),
        (WEB, "another-uid", ("127.0.0.1",), OTHER_WORKLOAD),
        (WEB, "", (), OTHER_WORKLOAD),
    ],
)
async def test_only_the_same_workload_continues_a_tunnel(
    pair: Pair,
    forge: Forge,
    identity: WorkloadIdentity,
    pod: str,
    ips: tuple[str, ...],
    outcome: int,
) -> None:
    _, writer = await stuck(pair)
    old = old_tunnel(pair.near)
    give_leaf(pair.far, forge, API, 400)
    leaf = leaf_of(forge, identity, 500, pod, ips)
    assert await Asker(pair, forge).ask(leaf, old.near_port, old.channel) == outcome
    assert (ends(pair.far) > 300) == (outcome == BELIEVED)
    await leave(writer)


@pytest.mark.attack_row(51)
async def test_a_tunnel_is_continued_only_by_who_knows_its_handshake(
    pair: Pair, forge: Forge
) -> None:
    """A tunnel that a thief of the old key has made: the pod itself cannot name it, nor be made to."""
    _, writer = await stuck(pair)
    old, asker = old_tunnel(pair.near), Asker(pair, forge)
    give_leaf(pair.far, forge, API, 400)
    leaf = leaf_of(forge, WEB, 500)
    assert old.channel == old_tunnel(pair.far).channel
    for port, channel in (
        (old.near_port, bytes(32)),
        (old.near_port, bytes(31) + b"\1"),
        (old.near_port ^ 1, old.channel),
        (0, old.channel),
    ):
        assert await asker.ask(leaf, port, channel) == OTHER_WORKLOAD
    assert ends(pair.far) < 21
    await leave(writer)


@pytest.mark.attack_row(51)
async def test_continuing_has_the_budget_of_proofs(pair: Pair, forge: Forge) -> None:
    _, writer = await stuck(pair)
    pair.far.plane.renewal_rate = Buckets(0.0, 0.0)
    old = old_tunnel(pair.near)
    asked = await Asker(pair, forge).ask(leaf_of(forge, WEB, 500), old.near_port, old.channel)
    assert asked == NOT_NOW
    await leave(writer)


@pytest.mark.attack_row(51)
async def test_policy_and_bans_are_asked_again(pair: Pair, forge: Forge) -> None:
    _, writer = await stuck(pair)
    old, asker = old_tunnel(pair.near), Asker(pair, forge)
    guard = Guard(SvidChecker("cluster.local"))
    guard.bans = Bans.of([Ban("pod", "uid-web")])
    pair.far.plane.verify, verify = guard, pair.far.plane.verify
    with pytest.raises((OSError, asyncio.IncompleteReadError)):
        await asker.ask(leaf_of(forge, WEB, 500), old.near_port, old.channel)
    assert ends(pair.far) < 21
    pair.far.plane.verify = verify
    pair.far.plane.policy = PolicySet(
        policies=(Policy("shop/none", deny=(Rule("deny[0]", (Source("shop"),)),)),)
    )
    said = await asker.ask(leaf_of(forge, WEB, 500), old.near_port, old.channel)
    assert said == OTHER_WORKLOAD
    assert [r.reason for r in pair.far.records if r.bytes_received] == ["policy_denied"]
    await leave(writer)


@pytest.mark.attack_row(51)
async def test_a_peer_that_never_answers_costs_one_tunnel_and_nothing_else(
    pair: Pair, forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(continuation, "ANSWER_WITHIN_S", 0.3)
    _, writer = await stuck(pair)
    far: Any = pair.far.plane.renewals
    monkeypatch.setattr(far._continuations, "asked", lambda fresh, payload: None)
    next_leaves(pair, forge)
    near: Any = pair.near.plane.renewals
    await until(lambda: near._continuations._asking)
    await until(lambda: not near._continuations._asking)
    assert ends(pair.near) < 21
    monkeypatch.undo()
    near._continuations._not_before.clear()
    near.look()
    await until(lambda: ends(pair.near) > 300)
    await leave(writer)
