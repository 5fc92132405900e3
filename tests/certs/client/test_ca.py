"""CaClient against the real CA over real gRPC."""

import asyncio
import dataclasses
import datetime as dt
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from certs.client.ca import CaClient, make_request
from certs.client.source import Svid, SvidSource
from certs.client.wire import CaAddress, CaUnreachable
from certs.trust.bundle import TrustBundle
from certs.trust.contexts import TlsMaterial
from kit.clock import utcnow
from kit.tasks import spawn, stop
from tests.certs.fake_kube import FakeKube
from tests.certs.forge import Forge
from tests.certs.handshakes import shake
from tests.certs.running_ca import CA_NAME, RunningCa, running_ca
from tests.patience import PATIENCE_S

POD = ("shop/api-1",)


@asynccontextmanager
async def run(client: CaClient) -> AsyncIterator[CaClient]:
    running = spawn(client.run(), name="client under test")
    try:
        yield client
    finally:
        await stop(running)


async def until(condition: Any, seconds: float = PATIENCE_S) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def ready(client: CaClient) -> Svid:
    await asyncio.wait_for(client.wait_ready(), PATIENCE_S)
    assert client.current is not None
    return client.current


async def test_two_pods_get_leaves_that_believe_each_other(ca: RunningCa) -> None:
    api = ca.client(ca.fake.add_pod(), "api")
    db = ca.client(ca.fake.add_pod("prod", "db-0", "db", ips=("10.0.0.8",)), "db")
    assert api.current is None
    source: SvidSource = api
    assert source.current is None
    async with run(api), run(db):
        near, far = await ready(api), await ready(db)
        shake(near.material.client_context(), far.material.server_context())
    assert str(near.facts.identity) == "spiffe://cluster.local/ns/shop/sa/api"
    assert far.facts.ips == {"10.0.0.8"}
    assert near.generation == near.bundle_generation == 1


@pytest.mark.fault_row("control-plane-down")
@pytest.mark.fault_row("ca-restart")
async def test_a_short_leaf_is_renewed_kept_through_an_outage_and_gone_when_it_ends(
    tmp_path: Path,
) -> None:
    fake = FakeKube()
    async with running_ca(tmp_path, fake, leaf_ttl_s=5) as ca:
        client = ca.client(fake.add_pod())
        seen: list[Svid] = []
        client.subscribe(seen.append)
        address = ca.address
        running = spawn(client.run(), name="client under test")
        first = await ready(client)
        await until(lambda: len(seen) >= 2)
        assert seen[1].material.key_pem != first.material.key_pem, "a new key each time"
        assert seen[1].generation == 2
        assert client.renewals == 2, "no hot loop"
    last = seen[-1]
    while utcnow() < last.expires_at - dt.timedelta(seconds=0.5):
        assert client.current is last, "the CA is gone, the leaf is not"
        await asyncio.sleep(0.1)
    await until(lambda: client.current is None, 6)
    assert utcnow() >= last.expires_at - dt.timedelta(seconds=1)
    assert 1 <= client.failures <= 30
    async with running_ca(tmp_path, fake, leaf_ttl_s=5, listen=address):
        await until(lambda: client.current is not None)
    await stop(running)


async def test_a_new_root_takes_effect_without_a_new_leaf_and_is_acknowledged(
    ca: RunningCa,
) -> None:
    next_forge = Forge(name="the next root")
    old = ca.authority.bundle
    async with run(ca.client(ca.fake.add_pod())) as client:
        before = await ready(client)
        await until(lambda: ca.server.feed.using(1) == POD)
        both = TrustBundle.of("cluster.local", 2, (*old.roots, next_forge.root_der))
        ca.server.feed.publish(both)
        await until(lambda: ca.server.feed.using(2) == POD)
        after = client.current
        assert after is not None
        assert (after.bundle_generation, after.generation) == (2, before.generation + 1)
        assert after.facts == before.facts
        assert after.deadline == before.deadline
        peer = next_forge.leaf("spiffe://cluster.local/ns/prod/sa/db")
        theirs = TlsMaterial(peer.key_pem, peer.chain_pem, both.to_pem())
        shake(after.material.client_context(), theirs.server_context())


@pytest.mark.fault_row("root-lost")
async def test_a_bundle_without_the_root_of_our_own_leaf_is_neither_used_nor_acknowledged(
    ca: RunningCa,
) -> None:
    async with run(ca.client(ca.fake.add_pod())) as client:
        before = await ready(client)
        await until(lambda: ca.server.feed.using(1) == POD)
        stranger = Forge(name="the wrong root").root_der
        ca.server.feed.publish(TrustBundle.of("cluster.local", 2, [stranger]))
        await asyncio.sleep(0.3)
        assert client.current is before
        assert before.bundle_generation == 1
        assert ca.server.feed.using(2) == ()


@pytest.mark.fault_row("root-lost")
async def test_a_ca_with_another_root_is_not_believed(tmp_path: Path) -> None:
    async with running_ca(tmp_path) as right, running_ca(tmp_path) as wrong:
        token = wrong.fake.add_pod()
        (tmp_path / "token").write_text(token)
        (tmp_path / "root.pem").write_bytes(right.authority.bundle.to_pem())
        client = CaClient(
            wrong.address,
            tmp_path / "token",
            tmp_path / "root.pem",
            "cluster.local",
            server_name=CA_NAME,
        )
        async with run(client):
            await until(lambda: client.failures >= 1, 20)
        assert client.current is None
        assert not wrong.issued, "and the token never reached it"
        assert not wrong.fake.review_specs


async def test_the_token_is_read_anew_for_each_try(ca: RunningCa) -> None:
    good = ca.fake.add_pod()
    client = ca.client("a.b.c")
    async with run(client):
        await until(lambda: client.failures >= 1)
        (ca.folder / "pod" / "token").write_text(good)
        await ready(client)


async def test_a_token_or_bundle_that_appears_late_is_found(ca: RunningCa, tmp_path: Path) -> None:
    token = ca.fake.add_pod()
    client = CaClient(
        ca.address,
        tmp_path / "late-token",
        tmp_path / "late.pem",
        "cluster.local",
        server_name=CA_NAME,
    )
    async with run(client):
        await until(lambda: client.failures >= 1)
        (tmp_path / "late.pem").write_bytes(ca.authority.bundle.to_pem())
        (tmp_path / "late-token").write_text(token)
        await ready(client)


async def test_a_subscriber_that_fails_harms_nobody_else(
    ca: RunningCa, caplog: pytest.LogCaptureFixture
) -> None:
    client = ca.client(ca.fake.add_pod())
    seen: list[Svid] = []

    def broken(_: Svid) -> None:
        raise ZeroDivisionError

    client.subscribe(broken)
    client.subscribe(seen.append)
    with caplog.at_level(logging.ERROR):
        async with run(client):
            await ready(client)
    assert len(seen) == 1
    assert "subscriber" in caplog.text


async def test_the_leaf_expires_by_either_clock(ca: RunningCa) -> None:
    wall, steady = [utcnow()], [1000.0]
    made = ca.client(ca.fake.add_pod())
    client = CaClient(
        ca.address,
        ca.folder / "pod" / "token",
        ca.folder / "pod" / "root.pem",
        "cluster.local",
        server_name=CA_NAME,
        clock=lambda: wall[0],
        monotonic=lambda: steady[0],
    )
    assert made.current is None
    async with run(client):
        svid = await ready(client)
        steady[0] = svid.deadline
        assert client.current is None
        steady[0] = svid.deadline - 1
        assert client.current is svid
        wall[0] = svid.expires_at
        assert client.current is None


@pytest.mark.parametrize("address", ["10.0.0.1:24110", "[fd00::1]:24110", "127.0.0.1:1"])
def test_an_ip_address_proves_nothing_and_is_refused(
    address: str, forge: Forge, tmp_path: Path
) -> None:
    (tmp_path / "root.pem").write_bytes(forge.root_pem)
    ca = CaAddress(address, tmp_path / "token", tmp_path / "root.pem", "cluster.local")
    with pytest.raises(CaUnreachable, match="must be a name"):
        ca.channel()


@pytest.mark.parametrize("content", [b"", b"  \n", b"\xff", b"a\nb", b"x" * 20_000])
def test_a_file_that_holds_no_token_is_refused_without_quoting_it(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "token").write_bytes(content)
    ca = CaAddress("podlink-ca.x.svc:1", tmp_path / "token", tmp_path / "root.pem", "cluster.local")
    with pytest.raises(CaUnreachable) as refused:
        ca.metadata()
    assert "xxx" not in str(refused.value)


def test_each_request_has_a_key_of_its_own() -> None:
    assert len({make_request()[0] for _ in range(5)}) == 5


async def test_a_pod_that_is_quicker_than_the_kubelet_gets_its_address_soon(ca: RunningCa) -> None:
    token = ca.fake.add_pod(ips=(), hostIP="127.0.0.1")
    async with run(ca.client(token)) as client:
        early = await ready(client)
        assert early.facts.ips == frozenset()
        ca.fake.pods["shop", "api-1"]["status"]["podIPs"] = [{"ip": "10.0.0.7"}]
        await until(lambda: client.current is not early and client.current is not None)
        assert client.current is not None
        assert client.current.facts.ips == {"10.0.0.7"}


@pytest.mark.fault_row("ca-restart")
async def test_after_a_restart_of_the_ca_the_bundle_is_watched_again(tmp_path: Path) -> None:
    fake = FakeKube()
    async with running_ca(tmp_path, fake) as first:
        client, address = first.client(fake.add_pod()), first.address
        running = spawn(client.run(), name="client under test")
        await until(lambda: first.server.feed.using(1) == POD)
    async with running_ca(tmp_path, fake, listen=address) as second:
        await until(lambda: second.server.feed.using(1) == POD)
        await stop(running)
    assert client.renewals == 1, "a restart alone is no reason for a new leaf"


async def test_an_identity_that_changes_between_two_leaves_is_refused(ca: RunningCa) -> None:
    client = ca.client(ca.fake.add_pod(ips=(), hostIP="127.0.0.1"))  # asks again within seconds
    async with run(client):
        first = await ready(client)
        (ca.folder / "pod" / "token").write_text(ca.fake.add_pod("prod", "db-0", "db"))
        await until(lambda: client.failures >= 1)
        assert client.current is first


async def test_an_answer_older_than_the_stream_does_not_bring_the_old_bundle_back(
    ca: RunningCa,
) -> None:
    client = ca.client(ca.fake.add_pod(ips=(), hostIP="127.0.0.1"))
    old = ca.authority.bundle
    async with run(client):
        await ready(client)
        await until(lambda: ca.server.feed.using(1) == POD)
        newer = TrustBundle.of("cluster.local", 2, (*old.roots, Forge(name="next").root_der))
        ca.server.feed.publish(newer)
        await until(lambda: ca.server.feed.using(2) == POD)
        ca.server.feed.news = dataclasses.replace(
            ca.server.feed.news, bundle=old
        )  # what an answer carries that was made just before
        await until(lambda: client.renewals >= 2)
        assert client.current is not None
        assert client.current.bundle_generation == 2
