"""The CA's own certificate is renewed at half its life, at the next connection."""

import asyncio
import datetime as dt
import ssl

import grpc
import pytest

from certs.authority.keys import create_root, load_authority
from certs.names import CA_ACCOUNT, service_dns_names
from certs.server.own_leaf import OwnLeaf
from kit.clock import utcnow


class Hand:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_connection_after_half_the_life_sees_a_new_leaf() -> None:
    clock = Hand()
    now = utcnow()
    authority = load_authority(create_root("cluster.local", now), "cluster.local", 1, now)
    own = OwnLeaf(lambda: authority, "podlink-system", dt.timedelta(hours=1), utcnow, clock)
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", own.credentials())
    await server.start()

    async def look() -> bytes:
        return (await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))).encode()

    first = await look()
    clock.now += 1799
    assert await look() == first
    clock.now += 2
    second = await look()
    assert second != first
    assert await look() == second
    await server.stop(0)


@pytest.mark.parametrize("namespace", ["podlink-system", "mesh"])
def test_its_names_are_those_of_the_service(namespace: str) -> None:
    assert service_dns_names(CA_ACCOUNT, namespace) == (
        f"podlink-ca.{namespace}.svc",
        f"podlink-ca.{namespace}.svc.cluster.local",
    )
