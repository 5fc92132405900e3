"""A simulated API server: lists in pages, watches, bookmarks; and the churn of `cluster`.

`python -m bench.registry.apiserver --log FILE ...` prints its port. One JSON line per change goes to
the log: when it was told (CLOCK_MONOTONIC, ns), and HOT's addresses from then on.
"""

import argparse
import asyncio
import json
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, TextIO

from aiohttp import web

from bench.registry import cluster
from bench.registry.cluster import Churn, Raw, Size

RELABEL_EVERY_S = 60


class ApiServer:
    def __init__(self, size: Size, log: TextIO) -> None:
        self._objects: defaultdict[str, dict[str, bytes]] = defaultdict(dict)
        self._watches: defaultdict[str, set[asyncio.Queue[bytes]]] = defaultdict(set)
        self._version = 1
        self._churn, self._log = Churn(), log
        self.lists: Counter[str] = Counter()
        for path, raw in cluster.objects(size):
            self._put(path, raw)

    def _put(self, path: str, raw: Raw, kind: str = "ADDED") -> None:
        self._version += 1
        raw["metadata"]["resourceVersion"] = str(self._version)
        key = f"{raw['metadata'].get('namespace', '')}/{raw['metadata']['name']}"
        encoded = json.dumps(raw).encode()
        if kind == "DELETED":
            self._objects[path].pop(key, None)
        else:
            kind = "MODIFIED" if key in self._objects[path] else "ADDED"
            self._objects[path][key] = encoded
        line = b'{"type":"%b","object":%b}\n' % (kind.encode(), encoded)
        for queue in self._watches[path]:
            queue.put_nowait(line)

    # --- the churn --------------------------------------------------------------------------

    async def churn(self, seconds: int, relabel_every_s: int) -> None:
        began = time.monotonic()
        for second in range(1, seconds + 1):
            await asyncio.sleep(max(0.0, began + second - time.monotonic()))
            self.rescale()
            if second % relabel_every_s == 0:
                labels = {"relabelled": str(second)}
                self._put(cluster.NAMESPACES, cluster.namespace("team-0", labels))

    def rescale(self) -> None:
        added, removed = self._churn.rescale()
        told_ns = time.monotonic_ns()
        for number in added:
            self._put(cluster.PODS, cluster.hot_pod(number))
        for number in removed:
            self._put(cluster.PODS, cluster.hot_pod(number, leaving=True))
        pods = [cluster.hot_pod(number) for number in self._churn.numbers]
        for one in cluster.slices(cluster.HOT, cluster.HOT_NAMESPACE, pods):
            self._put(cluster.SLICES, one)
        for number in removed:
            self._put(cluster.PODS, cluster.hot_pod(number), "DELETED")
        ips = sorted(one["status"]["podIP"] for one in pods)
        self._log.write(json.dumps({"t": told_ns, "ips": ips}) + "\n")
        self._log.flush()

    # --- HTTP -------------------------------------------------------------------------------

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/-/lists":
            return web.json_response(self.lists)
        if request.path == "/-/churn":
            seconds, every = int(request.query["seconds"]), int(request.query["relabel"])
            await self.churn(seconds, every)
            return web.json_response({})
        if "watch" in request.query:
            return await self._watch(request)
        return self._list(request)

    def _list(self, request: web.Request) -> web.Response:
        self.lists[request.path] += "continue" not in request.query
        start, limit = (
            int(request.query.get("continue", "0")),
            int(request.query.get("limit", "500")),
        )
        kept = list(self._objects[request.path].values())
        more = str(start + limit) if start + limit < len(kept) else ""
        metadata = json.dumps({"resourceVersion": str(self._version), "continue": more}).encode()
        items = b",".join(kept[start : start + limit])
        body = b'{"metadata":%b,"items":[%b]}' % (metadata, items)
        return web.Response(body=body, content_type="application/json")

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._watches[request.path].add(queue)
        try:
            async with asyncio.timeout(float(request.query.get("timeoutSeconds", "300"))):
                while True:
                    await response.write(await queue.get())
        except (TimeoutError, ConnectionError):
            return response
        finally:
            self._watches[request.path].discard(queue)


async def _run(args: argparse.Namespace) -> None:
    with Path(args.log).open("w") as log:  # noqa: ASYNC230 - before anything is served
        size = Size(args.pods, args.services, args.sidecars)
        api = ApiServer(size, log)
        app = web.Application()
        app.router.add_route("*", "/{anything:.*}", api.handle)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", required=True)
    for name in ("pods", "services", "sidecars"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args: Any = parser.parse_args()
    asyncio.run(_run(args))


if __name__ == "__main__":
    main()
