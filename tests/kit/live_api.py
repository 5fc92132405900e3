"""A small real API server that keeps objects by path: list, watch, get and JSON patch."""

import asyncio
import copy
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from kubernetes.aio.client import Configuration

from kit.kube import Kube, Object


class LiveApi:
    """`put` and `remove` change objects under a list path; open watches hear of it."""

    def __init__(self) -> None:
        self._objects: defaultdict[str, dict[str, Object]] = defaultdict(dict)
        self._watches: defaultdict[str, set[asyncio.Queue[bytes]]] = defaultdict(set)
        self._version = 0

    def put(self, path: str, *things: Object) -> None:
        for thing in things:
            kept = copy.deepcopy(thing)
            known = self._objects[path]
            key = _key(kept)
            self._version += 1
            kept["metadata"]["resourceVersion"] = str(self._version)
            self._tell(path, "MODIFIED" if key in known else "ADDED", kept)
            known[key] = kept

    def remove(self, path: str, thing: Object) -> None:
        self._version += 1
        gone = self._objects[path].pop(_key(thing))
        gone["metadata"]["resourceVersion"] = str(self._version)
        self._tell(path, "DELETED", gone)

    def get(self, path: str, key: str) -> Object:
        return self._objects[path][key]

    def _tell(self, path: str, kind: str, thing: Object) -> None:
        line = json.dumps({"type": kind, "object": thing}).encode() + b"\n"
        for queue in self._watches[path]:
            queue.put_nowait(line)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if "watch" in request.query:
            return await self._watch(request)
        if request.path in self._objects or request.path.endswith("s"):
            metadata = {"resourceVersion": str(self._version)}
            items = list(self._objects[request.path].values())
            return web.json_response({"metadata": metadata, "items": items})
        path, _, name = request.path.rpartition("/")
        found = self._objects[path].get(f"/{name}")
        if found is None:
            return web.json_response({"code": 404, "reason": "NotFound"}, status=404)
        if request.method == "PATCH":
            _apply(found, await request.json())
            self.put(path, found)
        return web.json_response(found)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        since = int(request.query["resourceVersion"])
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        for thing in self._objects[request.path].values():
            if int(thing["metadata"]["resourceVersion"]) > since:
                queue.put_nowait(json.dumps({"type": "MODIFIED", "object": thing}).encode() + b"\n")
        self._watches[request.path].add(queue)
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(await queue.get())
        finally:
            self._watches[request.path].discard(queue)


def _apply(target: Any, patch: list[Object]) -> None:
    for operation in patch:
        *way, last = operation["path"].split("/")[1:]
        at = target
        for step in way:
            at = at[int(step)] if isinstance(at, list) else at[step]
        if operation["op"] == "test":
            assert at[last] == operation["value"]
        else:
            at[last] = operation["value"]


def _key(thing: Object) -> str:
    return f"{thing['metadata'].get('namespace', '')}/{thing['metadata']['name']}"


@asynccontextmanager
async def live_api() -> AsyncIterator[tuple[LiveApi, Kube]]:
    api = LiveApi()
    app = web.Application()
    app.router.add_route("*", "/{anything:.*}", api.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    kube = Kube(Configuration(host=f"http://{host}:{port}"))
    try:
        yield api, kube
    finally:
        await kube.close()
        await runner.cleanup()
