"""An aiohttp server whose certificate follows a source without a restart."""

import asyncio
import ssl

import aiohttp
import pytest
from aiohttp import web

from certs.client.rpc import NoCertificate
from certs.client.web import following_context
from tests.certs.fake_source import FakeSource
from tests.certs.forge import Forge, Pair

NAME = "podlink-injector.podlink-system.svc"


def shown_leaf(forge: Forge) -> Pair:
    return forge.leaf("spiffe://cluster.local/ns/podlink-system/sa/podlink-injector", dns=[NAME])


async def test_each_new_connection_sees_the_present_leaf(forge: Forge) -> None:
    source = FakeSource(forge, first := shown_leaf(forge))
    app = web.Application()

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    app.router.add_get("/", answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=following_context(source)).start()
    port = runner.addresses[0][1]
    trust = ssl.create_default_context(cadata=forge.root_pem.decode())

    async def seen() -> bytes:
        _, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=trust, server_hostname=NAME
        )
        der: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        await writer.wait_closed()
        return der

    async with aiohttp.ClientSession() as session:
        asked = session.get(f"https://127.0.0.1:{port}/", ssl=trust, server_hostname=NAME)
        async with asked as response:
            assert await response.text() == "ok"
    assert await seen() == first.der
    second = shown_leaf(forge)
    source.show(second)
    assert await seen() == second.der
    source.expire()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await seen()
    await runner.cleanup()


async def test_without_a_certificate_there_is_no_server(forge: Forge) -> None:
    with pytest.raises(NoCertificate):
        following_context(FakeSource(forge))
