"""One pod that opens 400 streams to the registry, again and again, each with as many keys as one may
ask for: `python -m tests.registry.hog PORT FOLDER SECONDS`. Prints why its streams ended, as JSON.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from proto import registry_pb2 as pb
from proto.registry_pb2_grpc import RegistryStub

HOST = "podlink-registry.podlink-system.svc"
STREAMS, PER_CONNECTION, KEYS = 400, 16, 10_000
BLOCKS = [
    [f"10.{n // 62_500}.{n // 250 % 250}.{n % 250}" for n in range(block, block + 1000)]
    for block in range(0, KEYS, 1000)
]


async def requests() -> AsyncIterator[pb.DiscoverRequest]:
    hello = pb.Hello(pod_uid="shop-evil", namespace="shop", pod_name="evil", version="0.1.0")
    yield pb.DiscoverRequest(hello=hello)
    for keys in BLOCKS:
        yield pb.DiscoverRequest(subscribe=pb.Subscribe(keys=keys))
    for version in range(1, 10_000):
        await asyncio.sleep(0.2)
        yield pb.DiscoverRequest(ack=pb.Ack(version=version))


async def stream(channel: grpc.aio.Channel, until: float, ended: Counter[str]) -> None:
    while time.monotonic() < until:
        call: Any = RegistryStub(channel).Discover(requests())
        try:
            async with asyncio.timeout_at(
                asyncio.get_running_loop().time() + until - time.monotonic()
            ):
                async for _ in call:
                    pass
        except TimeoutError:
            ended["held to the end"] += 1
            call.cancel()
            return
        except grpc.aio.AioRpcError as error:
            ended[error.details() or error.code().name] += 1
        await asyncio.sleep(0.5)


async def run(port: int, folder: Path, seconds: float) -> None:
    credentials = grpc.ssl_channel_credentials(
        (folder / "ca.pem").read_bytes(),
        (folder / "evil.key").read_bytes(),
        (folder / "evil.pem").read_bytes(),
    )
    options = [
        ("grpc.ssl_target_name_override", HOST),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    ended: Counter[str] = Counter()
    until = time.monotonic() + seconds
    channels = [
        grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options)
        for _ in range(STREAMS // PER_CONNECTION)
    ]
    await asyncio.gather(
        *(stream(channels[n // PER_CONNECTION], until, ended) for n in range(STREAMS))
    )
    print(json.dumps(ended))


if __name__ == "__main__":
    asyncio.run(run(int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])))
