"""The registry as it runs: a real API server stand-in behind it, real mutual TLS before it."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.kube import Object
from kit.settings import Settings
from kit.tasks import spawn
from proto import registry_pb2 as pb
from proto.registry_pb2_grpc import RegistryStub
from registry import service as registry_service
from registry.admit import HelloRefused
from registry.answers import encode, message
from registry.app import RegistryServer
from registry.config import RegistryConfig
from registry.facts import PodFacts
from registry.hub import COALESCE_S, MAX_KEYS, WINDOW
from registry.keys import Key
from registry.model import Topics
from registry.service import caller_ip
from registry.watch import NAMESPACES, PODS, SERVICES, SLICES
from tests.certs.forge import Forge, Pair
from tests.kit.live_api import LiveApi, live_api
from tests.patience import PATIENCE_S
from tests.registry.fixed_source import FixedSource
from tests.registry.objects import endpoint, namespace_object, pod, service, slice_of

FORGE = Forge()
HOST = "podlink-registry.podlink-system.svc"
Leaf = Callable[[], Pair]
"""Makes a leaf when it is used."""
HELLO = pb.Hello(pod_uid="shop-web", namespace="shop", pod_name="web", version="0.1.0")
WEB_POD = pod("web", "127.0.0.1")


def own() -> Pair:
    name = "spiffe://cluster.local/ns/podlink-system/sa/podlink-registry"
    return FORGE.leaf(name, dns=[HOST])


def web() -> Pair:
    return FORGE.leaf("spiffe://cluster.local/ns/shop/sa/web", ips=["127.0.0.1"])


class Registry:
    def __init__(self, api: LiveApi, server: RegistryServer) -> None:
        self.api, self.server = api, server

    def channel(self, leaf: Leaf | None = web, forge: Forge = FORGE) -> grpc.aio.Channel:
        pair = leaf and leaf()
        credentials = grpc.ssl_channel_credentials(
            FORGE.root_pem, pair and pair.key_pem, pair and pair.chain_pem
        )
        options = [("grpc.ssl_target_name_override", HOST), ("grpc.enable_http_proxy", 0)]
        address = f"127.0.0.1:{self.server.port}"
        return grpc.aio.secure_channel(address, credentials, options=options)


class Stream:
    """One sidecar's stream, and what it knows."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.entries: dict[str, pb.Entry] = {}
        self.settings: pb.PodSettings | None = None
        self.messages: list[pb.DiscoverResponse] = []
        self.acks = True

    async def say(self, **request: Any) -> None:
        await self.call.write(pb.DiscoverRequest(**request))

    async def ask(self, *keys: str) -> None:
        await self.say(subscribe=pb.Subscribe(keys=keys))

    async def hear(self) -> pb.DiscoverResponse:
        async with asyncio.timeout(PATIENCE_S):
            response = await self.call.read()
        assert isinstance(response, pb.DiscoverResponse)
        self.messages.append(response)
        if self.acks:
            await self.say(ack=pb.Ack(version=response.version))
        self.entries |= {entry.key: entry for entry in response.entries}
        if response.HasField("settings"):
            self.settings = response.settings
        return response

    async def entry(self, key: str, found: str) -> pb.Entry:
        while key not in self.entries or self.entries[key].WhichOneof("found") != found:
            await self.hear()
        return self.entries[key]


@asynccontextmanager
async def registry(*pods: Object, config: dict[str, str] | None = None) -> AsyncIterator[Registry]:
    settings = Settings({"PODLINK_REGISTRY_LISTEN": "127.0.0.1:0", **(config or {})})
    async with live_api() as (api, kube):
        api.put(NAMESPACES, namespace_object("shop"))
        api.put(PODS, *pods)
        server = RegistryServer(RegistryConfig.from_env(settings), kube, FixedSource(FORGE, own()))
        async with asyncio.timeout(PATIENCE_S):
            await server.start()
        assert server.ready
        try:
            yield Registry(api, server)
        finally:
            await server.stop(grace_s=0)


@asynccontextmanager
async def stream(
    it: Registry, hello: pb.Hello = HELLO, leaf: Leaf | None = web
) -> AsyncIterator[Stream]:
    async with it.channel(leaf) as channel:
        opened = Stream(RegistryStub(channel).Discover())
        await opened.say(hello=hello)
        yield opened
        opened.call.cancel()


async def refusal(it: Registry, hello: pb.Hello = HELLO, leaf: Leaf | None = web) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with stream(it, hello, leaf) as opened:
            await opened.hear()
    assert caught.value.code() in (
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAVAILABLE,
    )
    return caught.value.details() or ""


async def test_settings_come_first_and_are_the_defaults() -> None:
    async with registry(WEB_POD) as it, stream(it) as sidecar:
        first = await sidecar.hear()
        assert first.version == 1
        assert sidecar.settings == pb.PodSettings(
            mesh_default="allow-meshed", plaintext="deny", external="allow", policy_format=1
        )


async def test_a_pod_a_service_and_a_stranger_are_answered_at_once() -> None:
    async with registry(WEB_POD, pod("db-0", "10.0.0.9", account="db")) as it:
        it.api.put(SERVICES, service("db", "10.96.0.1"))
        it.api.put(SLICES, slice_of("db", endpoint("10.0.0.9", pod("db-0"))))
        async with stream(it) as sidecar:
            await sidecar.ask("10.0.0.9", "203.0.113.9", "db.shop", "10.96.0.1", "db-0.db.shop")
            workload = (await sidecar.entry("10.0.0.9", "workload")).workload
            assert (workload.namespace, workload.service_account) == ("shop", "db")
            assert workload.meshed
            assert workload.mode == "redirect"
            assert (await sidecar.entry("203.0.113.9", "external")).external
            by_name = (await sidecar.entry("db.shop", "service")).service
            by_ip = (await sidecar.entry("10.96.0.1", "service")).service
            assert by_name == by_ip
            (one,) = by_ip.endpoints
            assert (one.ip, dict(one.ports), one.ready) == ("10.0.0.9", {5432: 15432}, True)
            assert one.workload == workload
            named = (await sidecar.entry("db-0.db.shop", "workload")).workload
            assert named == workload


async def test_an_address_that_was_external_and_becomes_a_pod_is_pushed() -> None:
    async with registry(WEB_POD) as it, stream(it) as sidecar:
        await sidecar.ask("10.0.0.9")
        await sidecar.entry("10.0.0.9", "external")
        it.api.put(PODS, pod("late", "10.0.0.9"))
        assert (await sidecar.entry("10.0.0.9", "workload")).workload.name == "late"
        it.api.remove(PODS, pod("late"))
        await sidecar.entry("10.0.0.9", "external")


async def test_only_what_was_asked_for_is_pushed_and_no_more_after_unsubscribing() -> None:
    async with registry(WEB_POD) as it, stream(it) as sidecar:
        await sidecar.ask("10.0.0.8", "10.0.0.9")
        await sidecar.entry("10.0.0.9", "external")
        await sidecar.say(unsubscribe=pb.Unsubscribe(keys=["10.0.0.9"]))
        await sidecar.ask("10.0.0.7")
        await sidecar.entry("10.0.0.7", "external")  # so the registry has read both
        it.api.put(PODS, pod("a", "10.0.0.9"), pod("b", "10.0.0.10"), pod("c", "10.0.0.8"))
        await sidecar.entry("10.0.0.8", "workload")
        assert sidecar.entries["10.0.0.9"].external
        assert "10.0.0.10" not in sidecar.entries


async def test_versions_grow_and_a_burst_of_changes_is_few_messages() -> None:
    async with registry(WEB_POD) as it, stream(it) as sidecar:
        await sidecar.ask("10.0.0.9")
        await sidecar.entry("10.0.0.9", "external")
        before = len(sidecar.messages)
        for number in range(200):
            it.api.put(PODS, pod("a", "10.0.0.9", labels={"version": str(number)}))
        while sidecar.entries["10.0.0.9"].workload.labels.get("version") != "199":
            await sidecar.hear()
        assert len(sidecar.messages) - before < 100
        versions = [message.version for message in sidecar.messages]
        assert versions == list(range(1, len(versions) + 1))


async def test_annotations_of_the_pod_then_of_its_namespace_are_pushed_as_settings() -> None:
    async with registry(WEB_POD) as it, stream(it) as sidecar:
        await sidecar.hear()
        it.api.put(NAMESPACES, namespace_object("shop", plaintext="allow", external="deny"))
        await sidecar.hear()
        assert sidecar.settings is not None
        assert (sidecar.settings.plaintext, sidecar.settings.external) == ("allow", "deny")
        it.api.put(PODS, pod("web", "127.0.0.1", annotations={"plaintext": "deny"}))
        await sidecar.hear()
        assert (sidecar.settings.plaintext, sidecar.settings.external) == ("deny", "deny")
        it.api.put(PODS, pod("web", "127.0.0.1", annotations={"external": "perhaps"}))
        await sidecar.hear()
        assert (sidecar.settings.plaintext, sidecar.settings.external) == ("allow", "deny")


def hello(**changed: str) -> pb.Hello:
    made = pb.Hello()
    made.CopyFrom(HELLO)
    for field, value in changed.items():
        setattr(made, field, value)
    return made


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (hello(namespace="prod"), "namespace_differs"),
        (hello(pod_name="other"), "pod_differs"),
        (hello(pod_uid="prod-api"), "pod_differs"),
        (hello(pod_uid="shop-db"), "pod_differs"),
    ],
)
async def test_a_caller_may_speak_for_no_pod_but_its_own(said: pb.Hello, reason: str) -> None:
    pods = (WEB_POD, pod("api", "10.0.0.2", namespace="prod"), pod("db", "10.0.0.3", account="db"))
    async with registry(*pods) as it:
        assert await refusal(it, said) == reason


async def test_a_pod_with_another_service_account_is_refused() -> None:
    said = pb.Hello(pod_uid="shop-db", namespace="shop", pod_name="db")
    async with registry(pod("db", "127.0.0.1", account="db")) as it:
        assert await refusal(it, said) == "service_account_differs"


async def test_a_leaf_shown_from_another_address_is_refused() -> None:
    stolen = FORGE.leaf("spiffe://cluster.local/ns/shop/sa/web", ips=["10.0.0.7"])
    async with registry(WEB_POD) as it:
        assert await refusal(it, leaf=lambda: stolen) == "caller_not_in_leaf"


async def test_a_call_from_an_address_that_is_not_the_pods_is_refused() -> None:
    async with registry(pod("web", "10.0.0.7")) as it:
        assert await refusal(it) == "caller_not_the_pod"


async def test_a_pod_whose_address_is_not_reported_yet_is_known_by_its_leaf() -> None:
    async with registry(pod("web")) as it, stream(it) as sidecar:
        assert (await sidecar.hear()).HasField("settings")


async def test_a_pod_that_the_watch_learns_of_a_moment_later_is_let_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("registry.service.POD_TIMEOUT_S", PATIENCE_S)
    async with registry() as it, stream(it) as sidecar:
        await asyncio.sleep(0.2)
        it.api.put(PODS, WEB_POD)
        assert (await sidecar.hear()).HasField("settings")


async def test_a_pod_that_nobody_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.service.POD_TIMEOUT_S", 0.2)
    async with registry() as it:
        assert await refusal(it) == "pod_unknown"


async def test_a_stream_ends_when_its_pod_is_gone() -> None:
    async with registry(WEB_POD) as it, stream(it) as sidecar:
        await sidecar.hear()
        it.api.remove(PODS, WEB_POD)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await sidecar.hear()
        assert caught.value.details() == "pod_unknown"


async def test_a_stream_ends_with_the_leaf_that_opened_it() -> None:
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=2)
    brief = FORGE.leaf("spiffe://cluster.local/ns/shop/sa/web", ips=["127.0.0.1"], not_after=soon)
    async with registry(WEB_POD) as it, stream(it, leaf=lambda: brief) as sidecar:
        await sidecar.hear()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await sidecar.hear()
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.attack_row(2)
async def test_a_caller_without_a_certificate_gets_nowhere() -> None:
    async with registry(WEB_POD) as it:
        assert await refusal(it, leaf=None)


@pytest.mark.attack_row(3)
@pytest.mark.parametrize("name", ["another root", "podlink test root"])
async def test_a_leaf_of_an_unknown_root_gets_nowhere(name: str) -> None:
    other = Forge(name=name).leaf("spiffe://cluster.local/ns/shop/sa/web", ips=["127.0.0.1"])
    async with registry(WEB_POD) as it:
        assert await refusal(it, leaf=lambda: other)


@pytest.mark.parametrize("name", ["two URI SANs", "CA:TRUE"])
async def test_a_leaf_that_verifies_but_is_no_svid_is_refused_by_its_reason(name: str) -> None:
    uri = "spiffe://cluster.local/ns/shop/sa/web"
    pair = (
        FORGE.leaf(uris=[uri, uri + "2"], ips=["127.0.0.1"])
        if name == "two URI SANs"
        else FORGE.leaf(uri, ca=True, ips=["127.0.0.1"])
    )
    async with registry(WEB_POD) as it:
        assert await refusal(it, leaf=lambda: pair)
        async with stream(it) as sidecar:  # the positive control
            assert await sidecar.hear()


@pytest.mark.parametrize("key", ["", "*", "db", "a.b.c.d", "DB.shop", "10.0.0.1/8", "x" * 300])
async def test_a_key_of_no_form_is_left_out_alone(key: str) -> None:
    async with registry(WEB_POD) as it, stream(it) as sidecar:
        await sidecar.hear()
        await sidecar.ask(key, "127.0.0.1", key)
        await sidecar.entry("127.0.0.1", "workload")
        assert sidecar.entries.keys() == {"127.0.0.1"}
        assert it.server._service.keys_refused == {"key_malformed": 2}
        assert 'podlink_registry_keys_refused_total{reason="key_malformed"} 2' in (
            it.server.metrics()
        )


async def test_what_is_held_is_told_of_the_right_key_where_one_before_it_has_no_form() -> None:
    async with registry(WEB_POD) as it, stream(it) as sidecar:
        await sidecar.ask("127.0.0.1")
        digest = (await sidecar.entry("127.0.0.1", "workload")).digest
        async with stream(it) as again:
            keys, held = ["*", "127.0.0.1"], [7, digest]
            await again.say(subscribe=pb.Subscribe(keys=keys, held=held))
            while not again.messages or not again.messages[-1].same:
                await again.hear()
            assert list(again.messages[-1].same) == ["127.0.0.1"]


async def test_a_stream_that_asks_for_ever_more_keys_is_answered_only_so_many() -> None:
    async with registry(WEB_POD) as it, stream(it) as sidecar:
        for block in range(0, MAX_KEYS + 1, 1001):
            await sidecar.ask(
                *(f"203.{n // 250 % 250}.{n % 250}.1" for n in range(block, block + 1001))
            )
        await eventually(lambda: it.server._service.keys_refused["too_many_keys"] > 0)
        async with asyncio.timeout(PATIENCE_S):
            while len(sidecar.entries) < MAX_KEYS:
                await sidecar.hear()
        await sidecar.ask("127.0.0.1")
        await eventually(lambda: it.server._service.keys_refused["too_many_keys"] > 10)
        assert len(sidecar.entries) == MAX_KEYS


async def test_only_so_many_streams_are_served_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with registry(WEB_POD) as it:
        monkeypatch.setattr(registry_service, "MAX_STREAMS", 2)
        async with stream(it) as first, stream(it) as second:
            await first.hear()
            await second.hear()
            with pytest.raises(grpc.aio.AioRpcError, match="too_many_streams") as caught:
                async with stream(it) as third:
                    await third.hear()
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await eventually(lambda: it.server._service.streams == 0)
        async with stream(it) as again:
            await again.hear()


async def test_a_first_message_that_is_no_hello_is_refused() -> None:
    async with registry(WEB_POD) as it, it.channel() as channel:
        call = RegistryStub(channel).Discover()
        await call.write(pb.DiscoverRequest(subscribe=pb.Subscribe(keys=["10.0.0.1"])))
        with pytest.raises(grpc.aio.AioRpcError, match="hello_missing"):
            await call.read()


async def test_the_registry_forgets_a_stream_that_ended() -> None:
    async with registry(WEB_POD) as it:
        for _ in range(3):
            async with stream(it) as sidecar:
                await sidecar.ask("10.0.0.9")
                await sidecar.entry("10.0.0.9", "external")
        async with asyncio.timeout(PATIENCE_S):
            while it.server.hub.listeners:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("peer", "ip"),
    [
        ("ipv4:10.0.0.7:1234", "10.0.0.7"),
        ("ipv6:[fd00::7]:1234", "fd00::7"),
        ("ipv6:%5Bfd00::7%5D:1234", "fd00::7"),
        ("ipv6:[::ffff:10.0.0.7]:1234", "10.0.0.7"),
    ],
)
def test_a_caller_has_one_address_however_grpc_writes_it(peer: str, ip: str) -> None:
    assert caller_ip(peer) == ip


@pytest.mark.parametrize("peer", ["unix:/run/x", "unix:", "", "ipv6:[fe80::1%25eth0]:1", "ipv4::1"])
def test_a_caller_without_an_address_is_refused(peer: str) -> None:
    with pytest.raises(HelloRefused, match="caller_address_unknown"):
        caller_ip(peer)


async def test_equal_answers_are_encoded_once_for_all_streams() -> None:
    async with registry(WEB_POD, pod("db-0", "10.0.0.9", account="db")) as it:
        hub = it.server.hub
        first, second = hub.open("shop-web"), hub.open("shop-web")
        for subscription in (first, second):
            subscription.ask([Key.parse("10.0.0.9")])
        one, other = await first.take(), await second.take()
        assert one == other and one is not None
        read = pb.DiscoverResponse.FromString(one)
        assert read.entries[0].workload.service_account == "db"
        assert read.entries[0].digest
        entry = hub.answers.entry(Key.parse("10.0.0.9"))
        assert entry is hub.answers.entry(Key.parse("10.0.0.9"))
        first.close()
        second.close()
        assert hub.listeners == 0


@given(
    st.integers(0, 2**64 - 1),
    st.lists(st.text("abc.", min_size=1, max_size=300), max_size=4),
    st.booleans(),
    st.lists(st.text("xyz", max_size=8), max_size=3),
)
def test_a_message_joined_from_pieces_is_what_protobuf_would_have_made(
    version: int, keys: list[str], settled: bool, same: list[str]
) -> None:
    entries = [encode(pb.Entry(key=key, external=True)) for key in keys]
    settings = pb.PodSettings(mesh_default="deny") if settled else None
    raw = message(version, entries, settings.SerializeToString() if settings else None, same)
    read = pb.DiscoverResponse.FromString(raw)
    assert (read.version, [e.key for e in read.entries], list(read.same)) == (version, keys, same)
    assert [e.digest for e in read.entries] == [e.digest for e in entries]
    assert read.HasField("settings") == settled


async def test_who_comes_back_is_told_only_what_differs_even_by_another_replica() -> None:
    pods = (WEB_POD, pod("a", "10.0.0.7"), pod("b", "10.0.0.8"))
    async with registry(*pods) as one, registry(*pods) as other:
        async with stream(one) as sidecar:
            await sidecar.ask("10.0.0.7", "10.0.0.8", "192.0.2.77")
            await sidecar.entry("10.0.0.8", "workload")
            await sidecar.entry("192.0.2.77", "external")
            held = {key: entry.digest for key, entry in sidecar.entries.items()}
        other.api.put(PODS, pod("b", "10.0.0.8", account="other"))
        await eventually(lambda: other.server.model.at_ip("10.0.0.8").service_account == "other")  # type: ignore[union-attr]
        async with stream(other) as sidecar:
            await sidecar.say(subscribe=pb.Subscribe(keys=list(held), held=held.values()))
            again = await sidecar.entry("10.0.0.8", "workload")
            assert again.workload.service_account == "other"
            assert list(sidecar.entries) == ["10.0.0.8"]
            same = [key for message in sidecar.messages for key in message.same]
            assert sorted(same) == ["10.0.0.7", "192.0.2.77"]
            # What still stood then is told when it changes.
            other.api.remove(PODS, pods[1])
            assert (await sidecar.entry("10.0.0.7", "external")).external


async def test_a_sidecar_that_acknowledges_nothing_is_told_little_and_then_the_newest() -> None:
    async with registry(WEB_POD, pod("a", "10.0.0.9")) as it, stream(it) as sidecar:
        sidecar.acks = False
        await sidecar.ask("10.0.0.9")
        await sidecar.entry("10.0.0.9", "workload")
        for number in range(WINDOW + 10):
            it.api.put(PODS, pod("a", "10.0.0.9", labels={"version": str(number)}))
            if sidecar.messages[-1].version < WINDOW:
                await sidecar.hear()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await sidecar.call.read()
    async with registry(WEB_POD) as it:
        subscription = it.server.hub.open("shop-web")
        subscription.ask([Key.parse("10.0.0.9")])
        for number in range(WINDOW):
            it.api.put(PODS, pod("a", "10.0.0.9", labels={"version": str(number)}))
            it.server.hub.changed({"10.0.0.9"})
            await eventually(lambda n=number: _version_at(it, "10.0.0.9") == str(n))  # type: ignore[misc]
            assert await asyncio.wait_for(subscription.take(), PATIENCE_S)
        it.api.put(PODS, pod("a", "10.0.0.9", labels={"version": "last"}))
        await eventually(lambda: _version_at(it, "10.0.0.9") == "last")
        waiting = spawn(subscription.take(), name="take")
        await asyncio.sleep(5 * COALESCE_S)
        assert not waiting.done()
        subscription.ack(subscription.version)
        async with asyncio.timeout(PATIENCE_S):
            told = pb.DiscoverResponse.FromString(await waiting or b"")
        assert told.entries[0].workload.labels["version"] == "last"
        subscription.close()


def _version_at(it: Registry, ip: str) -> str:
    found = it.server.model.at_ip(ip)
    return dict(found.labels)["version"] if isinstance(found, PodFacts) else ""


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            await asyncio.sleep(0.01)


async def test_a_registry_whose_watch_has_failed_is_not_ready_and_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Serving on would tell nobody of changes for ever."""
    async with registry(WEB_POD) as it:
        assert it.server.ready

        def broken(*_: object) -> Topics:
            raise RuntimeError("a bug")

        monkeypatch.setattr(it.server.model, "change_pod", broken)
        it.api.put(PODS, pod("a", "10.0.0.9"))
        with pytest.raises(RuntimeError, match="a bug"):
            await asyncio.wait_for(it.server.watch_ended(), PATIENCE_S)
        assert not it.server.ready
