"""The real registry against the simulated API server: `python -m bench.registry.server`.

Prints its port once it has listed the cluster.
"""

import argparse
import asyncio
from pathlib import Path

import uvloop
from kubernetes.aio.client import Configuration

from bench.registry.source import FileSource
from kit.kube import Kube
from kit.settings import Settings
from registry.app import RegistryServer, settle
from registry.config import RegistryConfig
from registry.limits import StreamLimits

_LIMITS = StreamLimits(
    strangers_per_source=10**6, begun_burst=1e6, begun_per_s=1e6, connections_per_source=10**6
)
"""Hundreds of sidecars come from one loopback address here, and from as many in a cluster."""


async def run(api: int, folder: Path) -> None:
    config = RegistryConfig.from_env(Settings({"PODLINK_REGISTRY_LISTEN": "127.0.0.1:0"}))
    async with Kube(Configuration(host=f"http://127.0.0.1:{api}")) as kube:
        server = RegistryServer(config, kube, FileSource(folder, "far"), _LIMITS)
        await server.start()
        settle()
        print(server.port, flush=True)
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--api", type=int, required=True)
    parser.add_argument("--certs", type=Path, required=True)
    args = parser.parse_args()
    uvloop.run(run(args.api, args.certs))


if __name__ == "__main__":
    main()
