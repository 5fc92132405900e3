"""A root is replaced in a mesh that lives: the real CA, real clients, real TLS between them."""

import asyncio
import datetime as dt
import itertools
import json
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from certs.authority.keys import AuthorityRefused, create_root
from certs.client.ca import CaClient
from certs.client.source import Svid
from certs.names import ROTATION_CONFIG_MAP
from certs.rotation import Move, Phase, RotationOrder, Seen, Timing, decide
from certs.server.report import RotationStep
from kit.clock import utcnow
from kit.kube import KubeError
from tests.certs.client.test_ca import ready, run, until
from tests.certs.fake_kube import FakeKube
from tests.certs.handshakes import shake
from tests.certs.running_ca import RunningCa, running_ca
from tests.patience import PATIENCE_S

ORDERS = f"/api/v1/namespaces/podlink-system/configmaps/{ROTATION_CONFIG_MAP}"
SECRET = "/api/v1/namespaces/podlink-system/secrets/podlink-ca"
SHORT: Any = {"leaf_ttl_s": 5.0, "stale_s": 1.0, "reread_s": 0.2}


def give(fake: FakeKube, action: Any, number: int = 1, **more: Any) -> str:
    """What `podlink rotate root` writes."""
    order = RotationOrder(f"order-{number}", action, by="a test", **more)
    data = dict((fake.objects.get(ORDERS) or {}).get("data") or {})
    fake.put(ORDERS, {"data": {**data, "order": order.to_json()}})
    return order.id


def status(fake: FakeKube) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        ((fake.objects.get(ORDERS) or {}).get("data") or {}).get("status") or "{}"
    )
    return found


async def answered(fake: FakeKube, order_id: str) -> str:
    await until(lambda: status(fake).get("order_done") == order_id)
    return str(status(fake)["order_said"])


def phase(ca: RunningCa) -> Phase | None:
    rotation = ca.server.keeper.keyring.rotation
    return rotation.phase if rotation else None


def believe_each_other(near: Svid | None, far: Svid | None) -> None:
    assert near is not None and far is not None
    shake(near.material.client_context(), far.material.server_context())
    shake(far.material.client_context(), near.material.server_context())


async def two_clients(ca: RunningCa, stack: AsyncExitStack) -> list[CaClient]:
    clients = []
    for name in ("api-1", "db-0"):
        client = ca.client(ca.fake.add_pod(name=name), name)
        await stack.enter_async_context(run(client))
        await ready(client)
        clients.append(client)
    return clients


@pytest.mark.fault_row("root-rotation")
async def test_a_root_is_replaced_step_by_step_and_peers_believe_each_other_all_the_time(
    tmp_path: Path,
) -> None:
    async with running_ca(tmp_path, **SHORT) as ca, AsyncExitStack() as stack:
        old = ca.authority.bundle.roots
        near, far = await two_clients(ca, stack)
        assert (await answered(ca.fake, give(ca.fake, "start"))).startswith("begun")
        assert phase(ca) is Phase.PUBLISHING
        assert ca.authority.bundle.generation == 2 and len(ca.authority.bundle.roots) == 2
        assert ca.authority.intermediates_der == ()
        await until(lambda: ca.server.feed.lagging(2) == ())
        believe_each_other(near.current, far.current)

        await until(lambda: status(ca.fake)["generation"] == 2 and not status(ca.fake)["waits"])
        assert (await answered(ca.fake, give(ca.fake, "advance", 2))).startswith(
            "the new root signs"
        )
        assert phase(ca) is Phase.SIGNING
        assert len(ca.authority.bundle.roots) == 2
        late = ca.client(ca.fake.add_pod(name="late"), "late")
        await stack.enter_async_context(run(late))
        fresh = await ready(late)
        believe_each_other(fresh, near.current)

        said = await answered(ca.fake, give(ca.fake, "advance", 3))
        assert said.startswith("not yet: leaves of the root that goes may live until")
        # Shorten the wait: nobody may advance the clock of a test that runs on real leaves.
        keyring = ca.server.keeper.keyring
        assert keyring.rotation is not None and keyring.rotation.leaves_end is not None
        wait_s = (keyring.rotation.leaves_end - dt.datetime.now(dt.UTC)).total_seconds() - 60
        await asyncio.sleep(max(0.0, wait_s))  # what remains is allowance for clocks
        said = await answered(ca.fake, give(ca.fake, "advance", 4, force=frozenset({"old_leaves"})))
        assert said.startswith("ended")
        assert phase(ca) is None
        new = ca.authority.bundle
        assert len(new.roots) == 1 and new.roots[0] not in old and new.generation == 3
        await until(lambda: ca.server.feed.lagging(3) == ())
        believe_each_other(near.current, far.current)
        believe_each_other(late.current, far.current)
        steps = [i.phase for i in ca.items if isinstance(i, RotationStep)]
        assert steps == ["publishing", "signing", "ended"]
        assert "PRIVATE" not in json.dumps([status(ca.fake), ca.fake.of_kind("events")])


@pytest.mark.fault_row("rotation-laggard")
async def test_a_pod_that_stands_still_stops_the_rotation_and_is_named(tmp_path: Path) -> None:
    async with running_ca(tmp_path) as ca, AsyncExitStack() as stack:
        await two_clients(ca, stack)
        # A pod with a living leaf that never listens: stopped by a signal, or cut off.
        await ca.sign(ca.fake.add_pod(name="stopped"))
        await answered(ca.fake, give(ca.fake, "start", automatic=True))
        await until(lambda: status(ca.fake)["waits"] != [])
        await until(lambda: ca.server.feed.lagging(2) == ())
        await asyncio.sleep(0.3)
        await until(lambda: [w["names"] for w in status(ca.fake)["waits"]] == [["shop/stopped"]])
        assert phase(ca) is Phase.PUBLISHING
        said = await answered(ca.fake, give(ca.fake, "advance", 2))
        assert "shop/stopped" in said
        assert phase(ca) is Phase.PUBLISHING
        wrong = await answered(
            ca.fake, give(ca.fake, "advance", 3, force=frozenset({"shop/api-1"}))
        )
        assert wrong.startswith("refused: nothing waits for shop/api-1")
        await answered(ca.fake, give(ca.fake, "advance", 4, force=frozenset({"shop/stopped"})))
        assert phase(ca) is Phase.SIGNING


@pytest.mark.fault_row("rotation-laggard")
async def test_a_pod_that_is_gone_holds_nobody_up(tmp_path: Path) -> None:
    async with running_ca(tmp_path) as ca:
        await ca.sign(ca.fake.add_pod(name="gone"))
        del ca.fake.pods["shop", "gone"]
        await answered(ca.fake, give(ca.fake, "start", automatic=True))
        await until(lambda: phase(ca) is Phase.SIGNING)


async def test_an_abort_before_the_switch_leaves_the_old_root_alone(tmp_path: Path) -> None:
    async with running_ca(tmp_path) as ca, AsyncExitStack() as stack:
        old = ca.authority
        (near, far) = await two_clients(ca, stack)
        await answered(ca.fake, give(ca.fake, "start"))
        assert (await answered(ca.fake, give(ca.fake, "abort", 2))).startswith("ended")
        assert ca.authority.bundle.roots == old.bundle.roots
        assert ca.authority.bundle.generation == 3, "the set of roots changed twice"
        assert ca.authority.issuer == old.issuer
        await until(lambda: ca.server.feed.lagging(3) == ())
        believe_each_other(near.current, far.current)


async def test_an_abort_after_the_switch_signs_with_the_old_root_again(tmp_path: Path) -> None:
    async with running_ca(tmp_path) as ca, AsyncExitStack() as stack:
        old = ca.authority.issuer
        await answered(ca.fake, give(ca.fake, "start", automatic=True))
        await until(lambda: phase(ca) is Phase.SIGNING)
        assert ca.authority.issuer != old
        (near, far) = await two_clients(ca, stack)
        await answered(ca.fake, give(ca.fake, "abort", 2))
        assert phase(ca) is Phase.RETURNING
        assert ca.authority.issuer == old
        assert len(ca.authority.bundle.roots) == 2, "leaves of the new root live on"
        late = ca.client(ca.fake.add_pod(name="late"), "late")
        await stack.enter_async_context(run(late))
        believe_each_other(await ready(late), near.current)
        believe_each_other(near.current, far.current)


async def test_several_cas_serve_at_once_and_a_switch_waits_for_each(tmp_path: Path) -> None:
    fake = FakeKube()
    fast: Any = {"replica": "ca-1", "reread_s": 0.1}
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(running_ca(tmp_path, fake, **fast))
        second = await stack.enter_async_context(
            running_ca(tmp_path, fake, replica="ca-2", reread_s=0.1)
        )
        assert first.authority.bundle == second.authority.bundle
        api = first.client(fake.add_pod(), "one")
        db = second.client(fake.add_pod(name="db"), "two")
        await stack.enter_async_context(run(api))
        await stack.enter_async_context(run(db))
        believe_each_other(await ready(api), await ready(db))
        # Each CA knows of the other's pods only by its book.
        await second.server._writer.write()
        await until(lambda: len(first.server.rotator.living_leaves()) == 2)
        await answered(fake, give(fake, "start", automatic=True))
        await until(lambda: phase(first) is phase(second) is Phase.SIGNING)
        assert second.authority.issuer == first.authority.issuer
        assert fake.seen.count(("PUT", SECRET)) <= 6, "they do not fight"
        believe_each_other(api.current, db.current)


def cut_down(ca: RunningCa, after_write: bool) -> asyncio.Event:
    """Have the CA's next write of its keys be its last deed; the event says that it came."""
    store: Any = ca.server.keeper._store
    real, dead = store.replace, asyncio.Event()

    async def die(keyring: Any, version: str) -> bool:
        if after_write and not dead.is_set():
            await real(keyring, version)
        dead.set()
        raise KubeError(0, "Unreachable", "killed")

    store.replace = die
    return dead


@pytest.mark.fault_row("root-rotation")
@pytest.mark.fault_row("ca-restart")
@pytest.mark.parametrize(
    "after_write",
    [
        pytest.param(False, id="before the write", marks=pytest.mark.soak),
        pytest.param(True, id="after the write"),
    ],
)
async def test_a_ca_that_is_killed_at_any_step_goes_on_where_it_was(
    tmp_path: Path, after_write: bool
) -> None:
    """Every second CA is cut down at its first write of the keys, just before the write reaches the
    API server or just after; the next one takes over from there."""
    fake = FakeKube()
    token = fake.add_pod()
    async with AsyncExitStack() as stack:
        async with running_ca(tmp_path, fake, **SHORT) as ca:
            address = ca.address
            client = ca.client(token)
            await stack.enter_async_context(run(client))
            await ready(client)
            roots = {ca.authority.bundle.roots}
        give(fake, "start", automatic=True)
        seen: list[Phase | None] = []
        for number in range(12):
            async with running_ca(tmp_path, fake, listen=address, **SHORT) as ca:
                seen.append(phase(ca))
                rotation = ca.server.keeper.keyring.rotation
                if rotation is not None and rotation.leaves_end is not None:
                    await until_leaves_end(rotation.leaves_end)
                    give(fake, "advance", 100 + number, force=frozenset({"old_leaves"}))
                dead = cut_down(ca, after_write) if number % 2 == 0 else asyncio.Event()
                async with asyncio.timeout(PATIENCE_S):
                    while not dead.is_set() and phase(ca) is seen[-1]:
                        await asyncio.sleep(0.02)
                roots.add(ca.authority.bundle.roots)
                if not dead.is_set() and phase(ca) is None:
                    break
                if dead.is_set() and stored_phase(fake) is None and seen[-1] is not None:
                    break
        async with running_ca(tmp_path, fake, listen=address) as ca:
            assert phase(ca) is None
            assert ca.authority.bundle.generation == 3
            assert len(ca.authority.bundle.roots) == 1
            await until(lambda: ca.server.feed.using(3) == ("shop/api-1",), 20)
            await until(lambda: client.current is not None, 20)
            believe_each_other(client.current, await fresh(ca, stack))
        assert len(roots) <= 3, "old, both, new: never a second new root"
    assert {Phase.PUBLISHING, Phase.SIGNING} <= set(seen)


def stored_phase(fake: FakeKube) -> str | None:
    found: str | None = fake.objects[SECRET]["data"].get("rotation")
    return found


async def until_leaves_end(end: dt.datetime) -> None:
    left_s = (end - dt.datetime.now(dt.UTC)).total_seconds() - 60
    await asyncio.sleep(max(0.0, left_s))


async def fresh(ca: RunningCa, stack: AsyncExitStack) -> Svid:
    client = ca.client(ca.fake.add_pod(name="fresh"), "fresh")
    await stack.enter_async_context(run(client))
    return await ready(client)


async def test_a_ca_that_cannot_read_its_keys_for_long_signs_no_more(tmp_path: Path) -> None:
    async with running_ca(tmp_path, stale_s=0.5, reread_s=0.1) as ca:
        token = ca.fake.add_pod()
        await until_answered(ca, "OK")
        secrets = "/api/v1/namespaces/podlink-system/secrets"
        failure = (500, {"reason": "x", "message": "y"})
        ca.fake.answers = {("GET", SECRET): failure, ("GET", secrets): failure}
        await until_answered(ca, "UNAVAILABLE")
        assert ca.refused[-1].reason == "authority_stale"
        await asyncio.sleep(0.2)
        assert (await ca.refusal(token)).code().name == "UNAVAILABLE", "and it stays so"
        ca.fake.answers = {}
        await until_answered(ca, "OK")


async def until_answered(ca: RunningCa, wanted: str) -> None:
    """Ask, each time as another pod (one has a rate), until Sign ends with that code."""
    async with asyncio.timeout(PATIENCE_S):
        for number in itertools.count():
            try:
                await ca.sign(ca.fake.add_pod(name=f"asks-{wanted.lower()}-{number}"))
                said = "OK"
            except grpc.aio.AioRpcError as e:
                said = e.code().name
            if said == wanted:
                return
            await asyncio.sleep(0.05)


@pytest.mark.fault_row("root-lost")
async def test_another_root_in_the_secret_is_refused_told_of_and_the_old_one_signs_on(
    tmp_path: Path,
) -> None:
    stranger = FakeKube()
    async with running_ca(tmp_path, stranger):
        foreign = stranger.objects[SECRET]
    async with running_ca(tmp_path, reread_s=0.1) as ca:
        before, token = ca.authority, ca.fake.add_pod()
        for bad in (foreign, {"metadata": {}, "data": {"tls.crt": "AAAA"}}, {"data": "x"}):
            ca.fake.put(SECRET, {**bad})
            await until(lambda: any(e["reason"] == "CaKeysRefused" for e in events(ca)))
            assert ca.authority is before
            assert (await ca.sign(token)).chain_der
            for event in events(ca):
                del ca.fake.objects[event_path(event)]
            ca.server._events._said.clear()


async def test_a_secret_that_was_deleted_is_written_again(tmp_path: Path) -> None:
    async with running_ca(tmp_path, reread_s=0.1) as ca:
        before = ca.fake.objects[SECRET]["data"]
        ca.fake.put(SECRET, None)
        await until(lambda: SECRET in ca.fake.objects)
        assert ca.fake.objects[SECRET]["data"] == before
        await until(lambda: any(e["reason"] == "CaKeysRestored" for e in events(ca)))


def events(ca: RunningCa) -> list[dict[str, Any]]:
    return ca.fake.of_kind("events")


def event_path(event: dict[str, Any]) -> str:
    return f"/api/v1/namespaces/podlink-system/events/{event['metadata']['name']}"


async def test_the_schedule_begins_a_rotation_and_carries_it_on_without_anybody(
    tmp_path: Path,
) -> None:
    # A new root is backdated by an hour, so it is that old at once.
    async with running_ca(tmp_path, rotate_every=dt.timedelta(hours=1)) as ca:
        await until(lambda: phase(ca) is Phase.SIGNING)
        assert ca.server.keeper.keyring.rotation is not None
        assert ca.server.keeper.keyring.rotation.by == "schedule"
    async with running_ca(tmp_path, rotate_every=dt.timedelta(days=1)) as ca:
        await asyncio.sleep(0.3)
        assert phase(ca) is None


@pytest.mark.fault_row("root-rotation")
async def test_two_cas_that_begin_at_once_make_one_new_root(tmp_path: Path) -> None:
    """For a moment each may think that it leads. A step that was decided on an old state must not
    take the place of a newer one, though the CA that decided has read that in the meantime."""
    fake = FakeKube()
    async with running_ca(tmp_path, fake) as ca:
        keeper = ca.server.keeper
        old = keeper.keyring
        mine = old.moved(_begun(), create_root("cluster.local", utcnow()))
        theirs = old.moved(_begun(), create_root("cluster.local", utcnow()))
        assert await keeper.replace(theirs, old)
        assert keeper.keyring == theirs
        assert not await keeper.replace(mine, old)
        await keeper.refresh()
        assert keeper.keyring == theirs
        assert not any(e["reason"] == "CaKeysRefused" for e in fake.of_kind("events"))


def _begun() -> Move:
    return decide(None, Seen(utcnow()), Timing(), due="a test")


async def test_what_no_ca_would_use_is_never_stored(tmp_path: Path) -> None:
    """Refused after the write it would stand in the Secret, and a CA that restarts would not."""
    fake = FakeKube()
    async with running_ca(tmp_path, fake) as ca:
        keeper, stored = ca.server.keeper, dict(fake.objects[SECRET]["data"])
        strange = replace(keeper.keyring, current=create_root("cluster.local", utcnow()))
        with pytest.raises(AuthorityRefused, match="roots differ"):
            await keeper.replace(strange, keeper.keyring)
        assert fake.objects[SECRET]["data"] == stored


@pytest.mark.fault_row("rotation-laggard")
async def test_pods_that_lag_for_long_are_not_asked_for_at_every_look(tmp_path: Path) -> None:
    """A node that is away keeps its pods lagging for hours, and the API server has other work."""
    fake = FakeKube()
    async with running_ca(tmp_path, fake, tick_s=0.02) as ca:
        for number in range(3):
            await ca.sign(fake.add_pod(name=f"away-{number}"))
        await answered(fake, give(fake, "start", automatic=True))
        await until(lambda: len(status(fake).get("waits", [{}])[0].get("names", ())) == 3)
        fake.seen.clear()
        looks, step = 0, ca.server.rotator.step

        async def counted() -> None:
            nonlocal looks
            looks += 1
            await step()

        ca.server.rotator.step = counted  # type: ignore[method-assign]
        await until(lambda: looks >= 20)
        asked = sum(method == "GET" and "/pods/away-" in path for method, path in fake.seen)
        assert 0 < asked <= 3 * (looks // 5)
        # One that has gone meanwhile is noticed all the same.
        fake.pods.clear()
        await until(lambda: phase(ca) is not Phase.PUBLISHING)
