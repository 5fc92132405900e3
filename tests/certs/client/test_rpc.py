"""gRPC over mutual TLS: who called, who is refused, and what a rotation changes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from certs.client.rpc import NoCertificate, RenewingChannel, peer_facts, server_credentials
from certs.trust.svid import SvidChecker, SvidRefused
from tests.certs.fake_source import FakeSource
from tests.certs.forge import BadLeaf, Forge, Pair
from tests.patience import PATIENCE_S

NAME = "podlink-registry.podlink-system.svc"
WHO = "/test.Echo/Who"


class Echo(grpc.GenericRpcHandler):
    """Answers with who called, or why it is nobody."""

    def __init__(self) -> None:
        self.verify = SvidChecker("cluster.local")

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_unary_rpc_method_handler(self.who) if details.method == WHO else None

    async def who(self, _: bytes, context: Any) -> bytes:
        try:
            facts = peer_facts(context, self.verify)
            return f"{facts.identity} {facts.serial}".encode()
        except SvidRefused as e:
            return b"refused " + e.reason.encode()


@asynccontextmanager
async def serving(source: FakeSource, *, require_client: bool = True) -> AsyncIterator[str]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Echo(),))
    credentials = server_credentials(source, require_client=require_client)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


async def ask(channel: grpc.aio.Channel) -> str:
    call: Any = channel.unary_unary(WHO)
    return str(await call(b"", timeout=PATIENCE_S), "ascii")


def registry_leaf(forge: Forge) -> Pair:
    return forge.leaf("spiffe://cluster.local/ns/podlink-system/sa/podlink-registry", dns=[NAME])


async def test_the_server_knows_who_calls_and_both_sides_follow_a_rotation(forge: Forge) -> None:
    server, client = FakeSource(forge, registry_leaf(forge)), FakeSource(forge, forge.leaf())
    async with serving(server) as address:
        channel = RenewingChannel(client, address, server_name=NAME)
        first_channel = channel.get()
        first = await ask(channel.get())
        assert first.startswith("spiffe://cluster.local/ns/shop/sa/api ")
        assert channel.get() is first_channel
        server.show(registry_leaf(forge))
        client.show(forge.leaf())
        second = await ask(channel.get())
        assert channel.get() is not first_channel
        assert second.split()[0] == first.split()[0]
        assert second.split()[1] != first.split()[1]
        await channel.close()


async def test_new_roots_are_used_for_the_next_connection(forge: Forge) -> None:
    next_forge = Forge(name="the next root")
    server, newcomer = FakeSource(forge, registry_leaf(forge)), FakeSource(next_forge)
    both = forge.root_pem + next_forge.root_pem
    newcomer.show(next_forge.leaf(), both)
    async with serving(server) as address:
        channel = RenewingChannel(newcomer, address, server_name=NAME)
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(channel.get())
        await channel.close()
        server.show(registry_leaf(forge), both)
        assert (await ask(channel.get())).startswith("spiffe://")
        await channel.close()


@pytest.mark.attack_row(2)
@pytest.mark.attack_row(3)
async def test_a_caller_without_a_leaf_of_ours_gets_no_answer(forge: Forge) -> None:
    options = [("grpc.ssl_target_name_override", NAME)]
    async with serving(FakeSource(forge, registry_leaf(forge))) as address:
        bare = grpc.ssl_channel_credentials(forge.root_pem)
        async with grpc.aio.secure_channel(address, bare, options) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask(channel)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        for pair in forge.untrusted_chains().values():
            shown = grpc.ssl_channel_credentials(forge.root_pem, pair.key_pem, pair.chain_pem)
            async with grpc.aio.secure_channel(address, shown, options) as channel:
                with pytest.raises(grpc.aio.AioRpcError):
                    await ask(channel)


@pytest.mark.attack_row(8)
@pytest.mark.attack_row(14)
async def test_a_leaf_that_grpc_believes_is_still_judged_by_our_validator(
    forge: Forge, bad_leaves: dict[str, BadLeaf]
) -> None:
    options = [("grpc.ssl_target_name_override", NAME), ("grpc.use_local_subchannel_pool", 1)]
    believed = 0
    async with serving(FakeSource(forge, registry_leaf(forge))) as address:
        for name in (
            "two URI SANs",
            "only a DNS SAN",
            "foreign trust domain",
            "URI: NUL",
            "no EKU",
        ):
            bad = bad_leaves[name]
            shown = grpc.ssl_channel_credentials(forge.root_pem, bad.key_pem, bad.chain_pem)
            async with grpc.aio.secure_channel(address, shown, options) as channel:
                assert await ask(channel) == f"refused {bad.reason}", name
                believed += 1
    assert believed == 5


async def test_without_a_required_leaf_the_caller_is_nobody(forge: Forge) -> None:
    options = [("grpc.ssl_target_name_override", NAME)]
    async with serving(FakeSource(forge, registry_leaf(forge)), require_client=False) as address:
        bare = grpc.ssl_channel_credentials(forge.root_pem)
        async with grpc.aio.secure_channel(address, bare, options) as channel:
            assert await ask(channel) == "refused peer_without_leaf"


@pytest.mark.attack_row(19)
async def test_a_server_with_another_name_gets_no_call(forge: Forge) -> None:
    pod = FakeSource(forge, forge.leaf(ips=["127.0.0.1"]))
    async with serving(pod) as address:
        channel = RenewingChannel(FakeSource(forge, forge.leaf()), address, server_name=NAME)
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(channel.get())
        await channel.close()


async def test_without_a_certificate_in_force_nothing_is_sent(forge: Forge) -> None:
    source = FakeSource(forge)
    with pytest.raises(NoCertificate):
        server_credentials(source)
    channel = RenewingChannel(source, "x:1")
    with pytest.raises(NoCertificate):
        channel.get()
    source.show(forge.leaf())
    channel.get()
    source.expire()
    with pytest.raises(NoCertificate):
        channel.get()
    await channel.close()
