"""The sidecar's stream against the real registry: real mutual TLS, a real API server."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from kit.tasks import spawn, stop
from proto import registry_pb2 as pb
from proto.registry_pb2_grpc import RegistryServicer, add_RegistryServicer_to_server
from registry.watch import PODS, SERVICES, SLICES
from sidecar.directory import EXTERNAL, Found, Own, Service, Workload
from sidecar.discovery import client as module
from sidecar.discovery.client import RegistryClient
from sidecar.discovery.translate import policy_set
from tests.registry.objects import endpoint, pod, service, slice_of
from tests.registry.test_service import WEB_POD, Registry, registry

OWN = Own("shop", "web", "shop-web", frozenset({"127.0.0.1"}))


class Sidecar:
    """A RegistryClient with what came of it. Each stream has a channel of its own."""

    def __init__(self, channel: Any) -> None:
        self.settings: list[pb.PodSettings] = []
        self.channels: list[grpc.aio.Channel] = []
        self._channel = channel
        self.client = RegistryClient(OWN, "cluster.local", self._get, self._take)

    def _get(self) -> grpc.aio.Channel:
        self.channels.append(self._channel())
        return self.channels[-1]

    def _take(self, said: pb.PodSettings) -> None:
        policy_set(said)
        self.settings.append(said)

    async def ask(self, key: str) -> Found | None:
        answer: asyncio.Future[Found | None] = asyncio.get_running_loop().create_future()
        self.client.ask(key, answer.set_result)
        return await asyncio.wait_for(answer, 2)

    async def until(self, key: str, kind: type) -> Any:
        async with asyncio.timeout(3):
            while not isinstance(found := self.client.known(key), kind):
                await asyncio.sleep(0.01)
        return found


@asynccontextmanager
async def running(channel: Any) -> AsyncIterator[Sidecar]:
    it = Sidecar(channel)
    task = spawn(it.client.run(), name="registry client under test")
    try:
        yield it
    finally:
        await stop(task)
        for opened in it.channels:
            await opened.close()


@pytest.fixture(autouse=True)
def patient_but_not_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST_WAIT_S", 0.2)


async def ready(it: Sidecar) -> None:
    await asyncio.wait_for(it.client.ready.wait(), 3)


async def test_pods_services_and_strangers_are_answered_and_kept() -> None:
    api = pod("api", "10.0.0.7", account="api")
    async with registry(WEB_POD, api) as it, running(it.channel) as sidecar:
        it.api.put(SERVICES, service("db", "10.96.0.9"))
        it.api.put(SLICES, slice_of("db", endpoint("10.0.0.7", api)))
        await ready(sidecar)
        found = await sidecar.ask("10.0.0.7")
        assert isinstance(found, Workload)
        assert str(found.identity) == "spiffe://cluster.local/ns/shop/sa/api"
        db = await sidecar.ask("10.96.0.9")
        assert isinstance(db, Service)
        assert [e.ip for e in db.endpoints] == ["10.0.0.7"]
        assert await sidecar.ask("198.51.100.1") is EXTERNAL
        assert sidecar.client.known("10.0.0.7") == found
        assert sidecar.settings[0].mesh_default == "allow-meshed"


async def test_what_changes_is_pushed() -> None:
    async with registry(WEB_POD) as it, running(it.channel) as sidecar:
        await ready(sidecar)
        assert await sidecar.ask("10.0.0.8") is EXTERNAL
        it.api.put(PODS, pod("new", "10.0.0.8", account="api"))
        assert (await sidecar.until("10.0.0.8", Workload)).name == "new"


async def test_a_question_asked_before_the_stream_is_up_is_answered_by_it() -> None:
    async with registry(WEB_POD) as it, running(it.channel) as sidecar:
        assert await sidecar.ask("127.0.0.1") is not None


@pytest.mark.fault_row("control-plane-down")
async def test_while_the_registry_is_away_answers_stay_and_new_questions_end_in_time() -> None:
    async with registry(WEB_POD, pod("api", "10.0.0.7")) as it, running(it.channel) as sidecar:
        await ready(sidecar)
        known = await sidecar.ask("10.0.0.7")
        await it.server.stop(grace_s=0)
        async with asyncio.timeout(2):
            while sidecar.client.connected:
                await asyncio.sleep(0.01)
        assert await sidecar.ask("10.0.0.7") == known
        began = asyncio.get_running_loop().time()
        assert await sidecar.ask("10.0.0.9") is None
        assert 0.4 < asyncio.get_running_loop().time() - began < 1.5


async def test_a_new_stream_asks_again_for_what_was_asked_before() -> None:
    async with registry(WEB_POD) as first:
        it: Registry = first
        async with running(lambda: it.channel()) as sidecar:
            await ready(sidecar)
            assert await sidecar.ask("10.0.0.8") is EXTERNAL
            async with registry(WEB_POD, pod("new", "10.0.0.8", account="api")) as second:
                it = second
                await first.server.stop(grace_s=0)
                assert (await sidecar.until("10.0.0.8", Workload)).name == "new"


# --- a registry that says what it should not ---------------------------------------------------------


class Scripted(RegistryServicer):
    """Answers each stream with the messages of a test, then keeps silent."""

    def __init__(self, *messages: pb.DiscoverResponse) -> None:
        self.messages = messages

    async def Discover(self, requests: Any, context: Any) -> AsyncIterator[pb.DiscoverResponse]:
        for message in self.messages:
            yield message
        await asyncio.Event().wait()


@asynccontextmanager
async def scripted(*messages: pb.DiscoverResponse) -> AsyncIterator[Sidecar]:
    server = grpc.aio.server()
    add_RegistryServicer_to_server(Scripted(*messages), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with running(lambda: grpc.aio.insecure_channel(f"127.0.0.1:{port}")) as sidecar:
            yield sidecar
    finally:
        await server.stop(0)


def says(default: str) -> pb.DiscoverResponse:
    said = pb.PodSettings(mesh_default=default, plaintext="deny", external="allow")
    return pb.DiscoverResponse(version=1, settings=said)


async def test_a_silent_registry_is_no_answer_after_half_a_second() -> None:
    async with scripted() as sidecar:
        began = asyncio.get_running_loop().time()
        assert await sidecar.ask("10.0.0.7") is None
        assert asyncio.get_running_loop().time() - began < 1.5


async def test_settings_that_are_not_understood_leave_the_old_ones(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with scripted(says("deny"), says("perhaps"), says("allow-all")) as sidecar:
        async with asyncio.timeout(2):
            while len(sidecar.settings) < 2:
                await asyncio.sleep(0.01)
        assert [s.mesh_default for s in sidecar.settings] == ["deny", "allow-all"]
    assert "settings not understood, the old ones stay" in caplog.messages


async def test_a_pod_is_not_ready_on_settings_that_it_does_not_understand(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with scripted(says("perhaps")) as sidecar:
        async with asyncio.timeout(2):
            while "settings not understood, the old ones stay" not in caplog.messages:
                await asyncio.sleep(0.01)
        assert sidecar.client.connected
        assert not sidecar.client.ready.is_set()


async def test_an_entry_that_is_not_understood_is_skipped_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.ERROR)
    bad = pb.Entry(key="10.0.0.7", workload=pb.Workload(meshed=True, skip_inbound_ports=["x"]))
    good = pb.Entry(key="10.0.0.8", external=True)
    async with scripted(pb.DiscoverResponse(version=1, entries=[bad, good])) as sidecar:
        assert await sidecar.ask("10.0.0.8") is EXTERNAL
        assert sidecar.client.known("10.0.0.7") is None
    assert "registry entry not understood" in caplog.messages


async def test_the_address_asked_longest_ago_is_given_up_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_KEYS", 2)
    entries = [pb.Entry(key=f"10.0.0.{n}", external=True) for n in range(3)]
    async with scripted(pb.DiscoverResponse(version=1, entries=entries)) as sidecar:
        await sidecar.until("10.0.0.2", type(EXTERNAL))
        assert sidecar.client.known("10.0.0.0") is None
