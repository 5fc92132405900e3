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
from registry.watch import NODES, PODS, SERVICES, SLICES
from sidecar.directory import (
    EXTERNAL,
    ByPort,
    Found,
    Gone,
    Own,
    Service,
    ToService,
    Workload,
    port_key,
)
from sidecar.discovery import client as module
from sidecar.discovery.client import RegistryClient
from sidecar.discovery.translate import policy_set
from tests.patience import PATIENCE_S
from tests.registry.objects import endpoint, node, pod, service, slice_of
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
        return await asyncio.wait_for(answer, PATIENCE_S)

    async def until(self, key: str, kind: type) -> Any:
        async with asyncio.timeout(PATIENCE_S):
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
    monkeypatch.setattr(module, "ANSWER_WITHIN_S", 0.6)
    monkeypatch.setattr(module, "FIRST_ANSWER_WITHIN_S", 0.6)
    monkeypatch.setattr(module, "ASK_AGAIN_S", 0.05)
    monkeypatch.setattr(module, "HOLD_S", 0.3)


async def ready(it: Sidecar) -> None:
    await asyncio.wait_for(it.client.ready.wait(), PATIENCE_S)


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
        async with asyncio.timeout(PATIENCE_S):
            while sidecar.client.connected:
                await asyncio.sleep(0.01)
        assert await sidecar.ask("10.0.0.7") == known
        assert await sidecar.ask("10.0.0.9") is None


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


@pytest.mark.fault_row("control-plane-down")
async def test_when_a_replica_dies_another_goes_on_where_it_stood_and_nothing_is_unlearned() -> (
    None
):
    pods = (WEB_POD, pod("api", "10.0.0.7", account="api"))
    async with registry(*pods) as dying, registry(*pods) as living:
        replicas = [dying, living]
        async with running(lambda: replicas[0].channel()) as sidecar:
            await ready(sidecar)
            known = await sidecar.ask("10.0.0.7")
            replicas.pop(0)
            await dying.server.stop(grace_s=0)
            assert sidecar.client.known("10.0.0.7") == known, "it is in force all the while"
            async with asyncio.timeout(PATIENCE_S):
                while not sidecar.client.connected or len(sidecar.channels) < 2:
                    assert sidecar.client.known("10.0.0.7") == known
                    await asyncio.sleep(0.01)
            # The other replica has not had to say it again; what changes there is told.
            assert sidecar.client.known("10.0.0.7") is known
            living.api.put(PODS, pod("api", "10.0.0.7", account="other"))
            async with asyncio.timeout(PATIENCE_S):
                while sidecar.client.known("10.0.0.7") == known:
                    await asyncio.sleep(0.01)


@pytest.mark.attack_row(19)
@pytest.mark.fault_row("cluster-ip-reuse")
async def test_the_address_of_a_meshed_pod_that_went_is_not_external_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next pod may have it before we are told, and would be dialled in plaintext."""
    monkeypatch.setattr(module, "GONE_S", 0.2)
    api = pod("api", "10.0.0.7", account="api")
    old = pod("old", "10.0.0.8", meshed=False)
    async with registry(WEB_POD, api, old) as it, running(it.channel) as sidecar:
        await ready(sidecar)
        for key in ("10.0.0.7", "10.0.0.8"):
            assert isinstance(await sidecar.ask(key), Workload)
        it.api.remove(PODS, api)
        it.api.remove(PODS, old)
        assert await sidecar.until("10.0.0.7", Gone) == Gone("shop/api")
        await sidecar.until("10.0.0.8", type(EXTERNAL))
        await sidecar.until("10.0.0.7", type(EXTERNAL))


async def test_whoever_has_the_address_next_is_taken_at_the_registry_s_word() -> None:
    api = pod("api", "10.0.0.7", account="api")
    async with registry(WEB_POD, api) as it, running(it.channel) as sidecar:
        await ready(sidecar)
        await sidecar.ask("10.0.0.7")
        it.api.remove(PODS, api)
        await sidecar.until("10.0.0.7", Gone)
        it.api.put(PODS, pod("next", "10.0.0.7", account="next"))
        assert (await sidecar.until("10.0.0.7", Workload)).name == "next"


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
    async with scripted_by(Scripted(*messages)) as sidecar:
        yield sidecar


@asynccontextmanager
async def scripted_by(servicer: RegistryServicer) -> AsyncIterator[Sidecar]:
    server = grpc.aio.server()
    add_RegistryServicer_to_server(servicer, server)
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


async def test_a_silent_registry_is_no_answer_after_a_while() -> None:
    async with scripted() as sidecar:
        assert await sidecar.ask("10.0.0.7") is None
        assert sidecar.client.known("10.0.0.7") is None


class Forgetful(RegistryServicer):
    """Answers the third time it is asked for a key, as `found` says; closes the stream if told to."""

    def __init__(self, *, breaks_off: bool) -> None:
        self.asked, self.streams, self._breaks_off = 0, 0, breaks_off

    async def Discover(self, requests: Any, context: Any) -> AsyncIterator[pb.DiscoverResponse]:
        self.streams += 1
        async for request in requests:
            self.asked += len(request.subscribe.keys)
            if self.asked >= 3:
                entry = pb.Entry(key="10.0.0.7", external=True)
                yield pb.DiscoverResponse(version=1, entries=[entry])
                self.asked = -1000
            elif request.subscribe.keys and self._breaks_off:
                return


@pytest.mark.fault_row("control-plane-down")
@pytest.mark.parametrize("breaks_off", [False, True])
async def test_a_question_that_the_registry_does_not_answer_is_asked_again(
    breaks_off: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_WITHIN_S", 4.0)
    monkeypatch.setattr(module, "FIRST_ANSWER_WITHIN_S", 4.0)
    servicer = Forgetful(breaks_off=breaks_off)
    async with scripted_by(servicer) as sidecar:
        answers: list[Found | None] = []
        for _ in range(3):
            sidecar.client.ask("10.0.0.7", answers.append)
        async with asyncio.timeout(PATIENCE_S):
            while len(answers) < 3:
                await asyncio.sleep(0.01)
    assert answers == [EXTERNAL] * 3, "all who waited, once each"
    assert (servicer.streams > 1) == breaks_off


async def test_asking_anew_brings_the_answer_of_now_and_else_what_was_known() -> None:
    first = pb.Entry(key="10.0.0.7", workload=pb.Workload(name="old", namespace="shop"))
    async with scripted(pb.DiscoverResponse(version=1, entries=[first])) as sidecar:
        old = await sidecar.until("10.0.0.7", Workload)
        answers: list[Found | None] = []
        sidecar.client.ask_anew("10.0.0.7", answers.append)
        async with asyncio.timeout(PATIENCE_S):
            while not answers:
                await asyncio.sleep(0.01)
        assert answers == [old], "a registry that says nothing takes nothing away"


# --- a new stream that knows of no endpoints ----------------------------------------------------------


def _service(*ips: str, meshed: bool = True, version: int = 1) -> pb.DiscoverResponse:
    endpoints = [
        pb.Endpoint(
            ip=ip,
            ports={80: 80},
            ready=True,
            workload=pb.Workload(namespace="shop", service_account="api", meshed=meshed, ips=[ip]),
        )
        for ip in ips
    ]
    said = pb.Service(
        namespace="shop", name="api", ports=[pb.ServicePort(port=80)], endpoints=endpoints
    )
    return pb.DiscoverResponse(version=version, entries=[pb.Entry(key="api.shop", service=said)])


class Relisting(RegistryServicer):
    """Says one thing on its first stream, which it then breaks off, and others on the second."""

    def __init__(self, first: pb.DiscoverResponse, *second: pb.DiscoverResponse) -> None:
        self._streams = [(first,), second]

    async def Discover(self, requests: Any, context: Any) -> AsyncIterator[pb.DiscoverResponse]:
        messages = self._streams.pop(0)
        for message in messages:
            yield message
        if self._streams:
            await asyncio.sleep(0.05)
            return
        await asyncio.Event().wait()


def _ips(sidecar: Sidecar) -> list[str]:
    found = sidecar.client.known("api.shop")
    return [e.ip for e in found.endpoints] if isinstance(found, Service) else ["unknown"]


async def _until_ips(sidecar: Sidecar, ips: list[str]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while _ips(sidecar) != ips:
            await asyncio.sleep(0.01)


@pytest.mark.fault_row("empty-endpoints")
async def test_endpoints_outlive_a_new_stream_that_knows_of_none_for_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with scripted_by(Relisting(_service("10.0.0.7"), _service())) as sidecar:
        async with asyncio.timeout(PATIENCE_S):
            while "a service without endpoints after a new stream" not in caplog.messages:
                await asyncio.sleep(0.01)
        assert _ips(sidecar) == ["10.0.0.7"]
        await _until_ips(sidecar, [])


@pytest.mark.fault_row("empty-endpoints")
async def test_what_the_registry_says_after_that_counts_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "HOLD_S", 3600.0)
    again = Relisting(_service("10.0.0.7"), _service(), _service("10.0.0.8", version=2))
    async with scripted_by(again) as sidecar:
        await _until_ips(sidecar, ["10.0.0.8"])
    gone = Relisting(_service("10.0.0.7"), _service("10.0.0.7"), _service(version=2))
    async with scripted_by(gone) as sidecar:
        await _until_ips(sidecar, [])


@pytest.mark.fault_row("empty-endpoints")
async def test_what_a_new_stream_has_confirmed_and_then_takes_back_counts_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`same` is a first word too: only a list that was just made anew is held against."""
    monkeypatch.setattr(module, "HOLD_S", 3600.0)
    same = pb.DiscoverResponse(version=1, same=["api.shop"])
    async with scripted_by(Relisting(_service("10.0.0.7"), same, _service(version=2))) as sidecar:
        await _until_ips(sidecar, [])


@pytest.mark.fault_row("empty-endpoints")
async def test_endpoints_that_are_reached_in_plaintext_are_never_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their address may be a meshed pod's by now, and nothing would notice."""
    monkeypatch.setattr(module, "HOLD_S", 3600.0)
    async with scripted_by(Relisting(_service("10.0.0.7", meshed=False), _service())) as sidecar:
        await _until_ips(sidecar, [])


async def test_settings_that_are_not_understood_leave_the_old_ones(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with scripted(says("deny"), says("perhaps"), says("allow-all")) as sidecar:
        async with asyncio.timeout(PATIENCE_S):
            while len(sidecar.settings) < 2:
                await asyncio.sleep(0.01)
        assert [s.mesh_default for s in sidecar.settings] == ["deny", "allow-all"]
    assert "settings not understood, the old ones stay" in caplog.messages


async def test_a_pod_is_not_ready_on_settings_that_it_does_not_understand(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with scripted(says("perhaps")) as sidecar:
        async with asyncio.timeout(PATIENCE_S):
            while "settings not understood, the old ones stay" not in caplog.messages:
                await asyncio.sleep(0.01)
        assert sidecar.client.connected
        assert not sidecar.client.ready.is_set()


async def test_an_entry_that_is_not_understood_is_skipped_counted_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    bad = pb.Entry(key="10.0.0.7", workload=pb.Workload(meshed=True, service_account="../x"))
    good = pb.Entry(key="10.0.0.8", external=True)
    async with scripted(pb.DiscoverResponse(version=1, entries=[bad, good])) as sidecar:
        assert await sidecar.ask("10.0.0.8") is EXTERNAL
        assert sidecar.client.known("10.0.0.7") is None
        assert sidecar.client.refused == {"registry_not_understood": 1}
    assert "registry entry not understood" in caplog.messages
    assert all(record.levelno < logging.ERROR for record in caplog.records)


async def test_an_entry_that_cannot_be_put_into_force_costs_no_other_its_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a worker or the data plane makes of it must not end the stream for good."""
    said = [pb.Entry(key=key, external=True) for key in ("10.0.0.7", "10.0.0.8")]
    async with scripted(pb.DiscoverResponse(version=1, entries=said)) as sidecar:

        def changed(key: str, _: Found | None) -> None:
            if key == "10.0.0.7":
                raise OverflowError("port must be 0-65535")

        sidecar.client.changed = changed
        assert await sidecar.ask("10.0.0.8") is EXTERNAL
        assert sidecar.client.refused == {"bug": 1}
        assert sidecar.client.connected


async def test_an_app_that_dials_ever_more_addresses_is_refused_and_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    async with scripted(says("deny")) as sidecar:
        await ready(sidecar)
        for number in range(3):
            sidecar.client.ask(f"203.0.113.{number}", lambda _: None)
        assert await sidecar.ask("203.0.113.9") is None
        assert sidecar.client.refused == {"too_many_questions": 1}


async def test_a_new_stream_asks_for_thousands_of_long_addresses_again() -> None:
    """In one message they would be more than the registry takes, and no stream would come up."""
    async with registry(WEB_POD) as it, running(it.channel) as sidecar:
        keys = [f"2001:db8:1111:2222:3333:4444:{n:x}:5555" for n in range(1000, 8000)]
        for key in keys:
            sidecar.client._found[key] = EXTERNAL
        await ready(sidecar)
        await sidecar.ask("127.0.0.1")
        assert sidecar.client.connected
        assert len(sidecar.channels) == 1


@pytest.mark.attack_row(39)
async def test_addresses_seen_once_do_not_drive_out_what_is_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever dials us from many addresses makes us ask for each of them."""
    monkeypatch.setattr(module, "MAX_KEYS", 3)
    first = [pb.Entry(key=f"10.0.0.{n}", external=True) for n in range(3)]
    async with scripted(pb.DiscoverResponse(version=1, entries=first)) as sidecar:
        await sidecar.until("10.0.0.2", type(EXTERNAL))
        for number in range(3, 20):
            assert sidecar.client.known("10.0.0.0") is EXTERNAL
            flood = pb.Entry(key=f"10.0.0.{number}", external=True)
            sidecar.client._apply(pb.DiscoverResponse(version=2, entries=[flood]))
        assert sidecar.client.known("10.0.0.1") is None
        assert sidecar.client.known("10.0.0.0") is EXTERNAL


async def test_the_address_asked_longest_ago_is_given_up_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_KEYS", 2)
    entries = [pb.Entry(key=f"10.0.0.{n}", external=True) for n in range(3)]
    async with scripted(pb.DiscoverResponse(version=1, entries=entries)) as sidecar:
        await sidecar.until("10.0.0.2", type(EXTERNAL))
        assert sidecar.client.known("10.0.0.0") is None


# --- addresses whose ports differ ---------------------------------------------------------------------


async def test_a_port_of_an_external_ip_is_asked_for_and_leads_to_the_service_of_now() -> None:
    port = {"name": "db", "port": 80}
    owned = service("db", "10.96.0.9", ports=(port,), externalIPs=["198.51.100.7"])
    async with registry(WEB_POD) as it, running(it.channel) as sidecar:
        await ready(sidecar)
        assert await sidecar.ask("198.51.100.7") is EXTERNAL
        it.api.put(SERVICES, owned)
        assert (await sidecar.until("198.51.100.7", ByPort)).otherwise is EXTERNAL
        key = port_key("198.51.100.7", 80)
        assert await sidecar.ask(key) == ToService("db.shop", 80)
        assert await sidecar.ask(port_key("198.51.100.7", 81)) is EXTERNAL
        it.api.remove(SERVICES, owned)
        await sidecar.until(key, type(EXTERNAL))
        await sidecar.until("198.51.100.7", type(EXTERNAL))


class Older(RegistryServicer):
    """A registry that knows no ports: it ends the stream of whoever asks for one."""

    def __init__(self) -> None:
        self.streams = 0

    async def Discover(self, requests: Any, context: Any) -> AsyncIterator[pb.DiscoverResponse]:
        self.streams += 1
        async for request in requests:
            if any(key.endswith(":80") for key in request.subscribe.keys):
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "key_malformed")
            entries = [pb.Entry(key=key, external=True) for key in request.subscribe.keys]
            yield pb.DiscoverResponse(version=1, entries=entries)


async def test_a_registry_that_knows_no_ports_loses_no_stream_over_one_twice() -> None:
    servicer = Older()
    async with scripted_by(servicer) as sidecar:
        assert await sidecar.ask("198.51.100.7") is EXTERNAL
        assert await sidecar.ask(port_key("198.51.100.7", 80)) is None
        async with asyncio.timeout(PATIENCE_S):
            while servicer.streams < 2 or not sidecar.client.connected:
                await asyncio.sleep(0.01)
        assert await sidecar.ask("198.51.100.8") is EXTERNAL
        assert servicer.streams == 2


@pytest.mark.attack_row(60)
async def test_an_address_of_the_pods_range_is_waited_for_and_then_nobodys() -> None:
    new = pod("new", "10.0.9.9", account="api")
    async with registry(WEB_POD, pod("old", "10.0.9.2")) as it, running(it.channel) as sidecar:
        it.api.put(NODES, node("n1", "192.0.2.1", cidrs=["10.0.9.0/24"]))
        await ready(sidecar)
        async with asyncio.timeout(PATIENCE_S):
            while it.server.model.at_ip("10.0.9.8") is None:
                await asyncio.sleep(0.01)
        assert await sidecar.ask("10.0.9.8") == Gone("")
        answers: list[Found | None] = []
        sidecar.client.ask("10.0.9.9", answers.append)
        await sidecar.until("10.0.9.9", Gone)
        assert answers == [], "it waits"
        it.api.put(PODS, new)
        await sidecar.until("10.0.9.9", Workload)
        assert [type(one) for one in answers] == [Workload]


# --- many questions at once ---------------------------------------------------------------------------


class Counting(RegistryServicer):
    """Answers each question when it is told to, and counts what comes."""

    def __init__(self) -> None:
        self.messages: list[list[str]] = []
        self.dropped: list[str] = []
        self.answers = asyncio.Event()

    async def Discover(self, requests: Any, context: Any) -> AsyncIterator[pb.DiscoverResponse]:
        yield says("deny")
        async for request in requests:
            self.dropped.extend(request.unsubscribe.keys)
            if not request.subscribe.keys:
                continue
            self.messages.append(list(request.subscribe.keys))
            await self.answers.wait()
            entries = [pb.Entry(key=key, external=True) for key in request.subscribe.keys]
            yield pb.DiscoverResponse(version=1, entries=entries)


@pytest.mark.attack_row(60)
async def test_an_app_that_dials_many_addresses_at_once_does_not_flood_the_registry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("MAX_ASKED", 10), ("MAX_WAITING", 40), ("ASK_AGAIN_S", 10.0)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "ANSWER_WITHIN_S", 3.0)
    servicer = Counting()
    async with scripted_by(servicer) as sidecar:
        await ready(sidecar)
        answers: dict[str, Found | None] = {}
        for number in range(50):
            key = f"198.51.100.{number}"
            sidecar.client.ask(key, lambda found, key=key: answers.__setitem__(key, found))  # type: ignore[misc]
        async with asyncio.timeout(PATIENCE_S):
            while not servicer.messages:
                await asyncio.sleep(0.01)
        assert [len(keys) for keys in servicer.messages] == [10], "one message, and no more asked"
        refused = [key for key, found in answers.items() if found is None]
        assert refused == [f"198.51.100.{number}" for number in range(40, 50)]
        servicer.answers.set()
        async with asyncio.timeout(PATIENCE_S):
            while len(answers) < 50:
                await asyncio.sleep(0.01)
        assert sum(found is EXTERNAL for found in answers.values()) == 40
        assert max(map(len, servicer.messages)) <= 10
        asked = [key for keys in servicer.messages for key in keys]
        assert len(asked) == len(set(asked)) == 40, "each once"
        sidecar.client.ask("198.51.100.0", lambda _: None)
        assert len([key for keys in servicer.messages for key in keys]) == 40, "it is kept"


async def test_questions_that_are_never_answered_end_in_time_in_whatever_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_ASKED", 2)
    async with scripted(says("deny")) as sidecar:
        await ready(sidecar)
        answers: list[Found | None] = []
        for number in range(9):
            sidecar.client.ask(f"198.51.100.{number}", answers.append)
        async with asyncio.timeout(PATIENCE_S):
            while len(answers) < 9:
                await asyncio.sleep(0.01)
        assert answers == [None] * 9
        assert (sidecar.client._asked, sidecar.client._waiting) == (0, {})


@pytest.mark.attack_row(39)
async def test_strangers_addresses_take_no_room_from_what_the_app_dials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever connects to us from many addresses makes us ask who that is, for the record alone."""
    monkeypatch.setattr(module, "MAX_FOR_RECORD", 5)
    servicer = Counting()
    async with scripted_by(servicer) as sidecar:
        await ready(sidecar)
        named: list[Found | None] = []
        for number in range(20):
            key = f"2001:db8::{number:x}"
            sidecar.client.ask(key, named.append, for_record=True)
        assert named == [None] * 15
        dialled: list[Found | None] = []
        sidecar.client.ask("198.51.100.1", dialled.append)
        sidecar.client.ask("2001:db8::0", dialled.append)  # one of them is dialled as well
        servicer.answers.set()
        async with asyncio.timeout(PATIENCE_S):
            while len(dialled) < 2 or len(named) < 20:
                await asyncio.sleep(0.01)
        assert dialled == [EXTERNAL, EXTERNAL]
        assert named[15:] == [EXTERNAL] * 5
        assert set(sidecar.client.all()) == {"198.51.100.1", "2001:db8::0"}, "the rest is forgotten"
        async with asyncio.timeout(PATIENCE_S):
            while len(servicer.dropped) < 4:
                await asyncio.sleep(0.01)
