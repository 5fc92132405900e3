import asyncio
from pathlib import Path

from kit.tasks import spawn, stop
from tests.certs.running_ca import running_ca


async def test_it_renews(tmp_path: Path) -> None:
    async with running_ca(tmp_path, leaf_ttl_s=5) as ca:
        client = ca.client(ca.fake.add_pod())
        run = spawn(client.run(), name="client")
        await asyncio.wait_for(client.wait_ready(), 5)
        await asyncio.sleep(6)
        assert client.current
        print(client.current, client.renewals, client.failures)
        await stop(run)
