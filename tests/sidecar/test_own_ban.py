"""A ban reaches the banned: of two proxies that nobody will talk to any more neither goes on talking to
the other. (The CA and the registry refuse them, so nobody pushes them the list that they are on.)"""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest

from certs.client import ca as client_module
from certs.client.source import Svid
from certs.server.refusals import BANNED
from certs.trust.bans import Ban, Bans
from kit.settings import Settings
from sidecar.carrier import Carrier
from sidecar.config import SidecarConfig
from sidecar.dataplane.tunnels import tunnel
from tests.certs.fake_source import FakeSource
from tests.certs.forge import Forge
from tests.certs.running_ca import RunningCa, running_ca
from tests.patience import PATIENCE_S
from tests.sidecar.dataplane.conftest import FakeDirectory
from tests.sidecar.mesh_of_two import Two, two_sidecars
from tests.sidecar.test_config import GOOD

pytestmark = [pytest.mark.attack_row(61), pytest.mark.timeout(2 * PATIENCE_S)]
WEB = "spiffe://cluster.local/ns/shop/sa/web"
API = "spiffe://cluster.local/ns/shop/sa/api"


@pytest.fixture
async def ca(tmp_path: Path) -> AsyncIterator[RunningCa]:
    async with running_ca(tmp_path) as it:
        yield it


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.02)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(4096):
            writer.write(data)
    writer.close()


async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, word: bytes) -> bytes:
    writer.write(word)
    async with asyncio.timeout(PATIENCE_S):
        return await reader.read(100)


async def is_cut(reader: asyncio.StreamReader) -> bool:
    async with asyncio.timeout(PATIENCE_S):
        try:
            return await reader.read(1) == b""
        except ConnectionError:
            return True


async def watching(ca: RunningCa, two: Two) -> None:
    await until(lambda: len(ca.server.feed.watchers) == len(two.clients))


def pod_of(ca: RunningCa, identity: str) -> str:
    return next(one.pod_uid for one in ca.issued if one.identity == identity)


@pytest.mark.parametrize("kind", ["identity", "pod", "serial"])
async def test_links_between_the_banned_are_cut_and_come_back_when_the_ban_is_lifted(
    ca: RunningCa,
    kind: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Both ends abort at once, and each waits this long for the other to close.
    monkeypatch.setattr(tunnel, "RESET_HEARD_WITHIN_S", 0.1)
    async with two_sidecars(ca, echo) as two:
        await watching(ca, two)
        reader, writer = await asyncio.open_connection(*two.upstream)
        assert await say(reader, writer, b"open") == b"open"
        serials = [client.current.facts.serial for client in two.clients if client.current]
        ca.server.feed.ban(
            Bans.of(
                {
                    "identity": [Ban("identity", WEB), Ban("identity", API)],
                    "pod": [Ban("pod", pod_of(ca, WEB)), Ban("pod", pod_of(ca, API))],
                    "serial": [Ban("serial", serial) for serial in serials],
                }[kind]
            )
        )
        assert await is_cut(reader), "neither side can have heard of the other's ban alone"
        writer.close()
        assert "we are banned: certificate dropped" in caplog.text
        if kind == "serial":  # of the leaf alone: each gets another at once
            await until(lambda: all(client.current for client in two.clients))
            assert not {c.current.facts.serial for c in two.clients if c.current} & set(serials)
        else:
            await until(lambda: not any(client.current for client in two.clients))
            with contextlib.suppress(ConnectionError):  # refused at once
                reader, writer = await asyncio.open_connection(*two.upstream)
                assert await is_cut(reader)
                writer.close()
            await until(lambda: any(r.reason == "no_certificate" for r in two.records))
            [record] = [r for r in two.records if r.reason == "no_certificate"]
            assert "banned" in record.error
            ca.server.feed.ban(Bans())
            await until(lambda: all(client.current for client in two.clients))
        reader, writer = await asyncio.open_connection(*two.upstream)
        assert await say(reader, writer, b"again") == b"again"
        writer.close()
        await until(lambda: not two.near.plane.live and not two.far.plane.live)
        await asyncio.sleep(0.5)


async def test_the_caller_is_told_of_a_ban_and_of_no_other_cause(ca: RunningCa) -> None:
    token = ca.fake.add_pod()
    assert (await ca.sign(token)).chain_der
    ca.server.feed.ban(Bans.of([Ban("identity", API)]))
    refused = await ca.refusal(token)
    assert refused.code() is grpc.StatusCode.PERMISSION_DENIED
    assert (BANNED, "identity") in [(k, v) for k, v in refused.trailing_metadata() or ()]
    assert refused.details() == "not allowed"
    ca.server.feed.ban(Bans())
    ca.fake.pods.clear()
    other = await ca.refusal(token)
    assert BANNED not in [key for key, _ in other.trailing_metadata() or ()]


async def test_a_proxy_that_the_ca_goes_on_refusing_drops_its_leaf_too(
    ca: RunningCa, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the cause, it tells such a one of no ban any more. An outage is another matter."""
    token = ca.fake.add_pod()
    client = ca.client(token)
    running = asyncio.ensure_future(client.run())
    await client.wait_ready()
    await until(lambda: client._watching)
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.PERMISSION_DENIED, grpc.aio.Metadata(), grpc.aio.Metadata()
    )
    away = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata()
    )
    now = [1000.0]
    monkeypatch.setattr(client, "_monotonic", lambda: now[0])
    monkeypatch.setattr(client, "_svid", client._svid and _lasting(client._svid))
    for refused, after_s, holds in (
        (error, 0.0, True),
        (away, 2 * client_module.REFUSED_FOR_S, True),
        (error, 0.0, False),
    ):
        now[0] += after_s
        client._heard_refusal(refused)
        assert (client.current is not None) is holds, (refused.code(), after_s)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


def _lasting(svid: Svid) -> Svid:
    return dataclasses.replace(svid, deadline=1e9)


async def test_the_registrys_word_counts_while_the_ca_is_not_heard(ca: RunningCa) -> None:
    client = ca.client(ca.fake.add_pod())
    running = asyncio.ensure_future(client.run())
    await client.wait_ready()
    await until(lambda: client._watching)
    client.told_banned("the registry says so")
    assert client.current is not None, "the CA is heard, and says nothing of it"
    client._watching = False
    client.told_banned("the registry says so")
    assert client.current is None
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def test_a_leaf_that_comes_while_its_owner_is_banned_is_not_used() -> None:
    forge = Forge()
    config = SidecarConfig.from_settings(Settings(GOOD))
    it = Carrier(asyncio.get_running_loop(), config, FakeDirectory(), lambda record: None)
    source = FakeSource(forge)
    source.subscribe(it.svid_came)
    it.bans_came(Bans.of([Ban("identity", API)]))
    source.show(forge.leaf(API))
    assert it.plane.usable_trust() is None
    it.bans_came(Bans())
    assert it.plane.usable_trust() is not None
    it.close()
