"""The registry as a process of its own, with its usual limits: `python -m tests.registry.process`.

Prints its port and that of its metrics once it has listed the cluster.
"""

import asyncio
import sys
from pathlib import Path

import uvloop
from kubernetes.aio.client import Configuration

from bench.registry.source import FileSource
from kit.health import serve_health
from kit.kube import Kube
from kit.logs import start_logging
from kit.settings import Settings
from registry.app import RegistryServer, settle
from registry.config import RegistryConfig


async def run(api: str, folder: Path) -> None:
    start_logging()
    config = RegistryConfig.from_env(Settings({"PODLINK_REGISTRY_LISTEN": "[::]:0"}))
    async with Kube(Configuration(host=api)) as kube:
        server = RegistryServer(config, kube, FileSource(folder, "own"))
        await server.start()
        settle()
        health = await serve_health(0, lambda: server.ready, "127.0.0.1", metrics=server.metrics)
        print(server.port, health.port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(run(sys.argv[1], Path(sys.argv[2])))
