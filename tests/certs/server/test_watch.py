"""WatchBundle: the bundle now, then each change; and the CA knows who has which."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest

from certs.server.feed import MAX_STREAMS_PER_POD, BundleFeed
from certs.server.refusals import PUBLIC_TEXT, TooMany
from certs.trust.bundle import TrustBundle
from proto import ca_pb2
from tests.certs.forge import Forge
from tests.certs.running_ca import RunningCa
from tests.patience import PATIENCE_S


def grown(bundle: TrustBundle) -> TrustBundle:
    more = Forge(name="the next root").root_der
    return TrustBundle.of(bundle.trust_domain, bundle.generation + 1, (*bundle.roots, more))


@asynccontextmanager
async def watching(ca: RunningCa, token: str) -> AsyncIterator[Any]:
    async with ca.stub() as stub:
        call = stub.WatchBundle(metadata=(("authorization", f"Bearer {token}"),))
        yield call
        call.cancel()


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def test_the_bundle_comes_at_once_and_again_when_it_changes(ca: RunningCa) -> None:
    async with watching(ca, ca.fake.add_pod()) as call:
        first = await asyncio.wait_for(call.read(), PATIENCE_S)
        assert (first.generation, list(first.root_der)) == (1, list(ca.authority.bundle.roots))
        ca.server.feed.publish(grown(ca.authority.bundle))
        second = await asyncio.wait_for(call.read(), PATIENCE_S)
        assert (second.generation, len(second.root_der)) == (2, 2)


@pytest.mark.fault_row("rotation-laggard")
async def test_a_pod_that_has_not_acknowledged_is_known_by_name(ca: RunningCa) -> None:
    async with watching(ca, ca.fake.add_pod()) as call:
        await call.read()
        assert ca.server.feed.lagging(1) == ("shop/api-1",)
        await call.write(ca_pb2.BundleAck(generation=7))  # what it cannot have
        await call.write(ca_pb2.BundleAck(generation=1))
        await until(lambda: ca.server.feed.lagging(1) == ())
        ca.server.feed.publish(grown(ca.authority.bundle))
        assert ca.server.feed.lagging(2) == ("shop/api-1",)
    await until(lambda: ca.server.feed.lagging(2) == ())


@pytest.mark.attack_row(28)
async def test_a_stranger_may_not_watch(ca: RunningCa) -> None:
    for token in ("", "a.b.c"):
        async with watching(ca, token) as call:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call.read()
            code = grpc.StatusCode.UNAUTHENTICATED
            assert (refused.value.code(), refused.value.details()) == (code, PUBLIC_TEXT[code])


@pytest.mark.attack_row(31)
async def test_one_pod_holds_only_a_few_streams(ca: RunningCa) -> None:
    feed = BundleFeed(ca.authority.bundle)
    with ExitStack() as held:
        for _ in range(MAX_STREAMS_PER_POD):
            held.enter_context(feed.watcher("uid-1", "shop/api-1"))
        with pytest.raises(TooMany):
            held.enter_context(feed.watcher("uid-1", "shop/api-1"))
        held.enter_context(feed.watcher("uid-2", "shop/api-2"))
    with feed.watcher("uid-1", "shop/api-1"):
        pass


async def test_a_generation_never_goes_back(ca: RunningCa) -> None:
    feed = BundleFeed(ca.authority.bundle)
    with pytest.raises(ValueError, match="only grows"):
        feed.publish(ca.authority.bundle)
