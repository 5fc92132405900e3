"""A small real HTTP server that plays an API server by script: lists and watches one path."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from kubernetes.aio.client import Configuration

from kit.kube import Kube, Object

PATH = "/api/v1/pods"
Answer = Callable[[web.Request], Any]


def pod(name: str, version: str = "1", **spec: Any) -> Object:
    metadata = {"namespace": "shop", "name": name, "resourceVersion": version}
    return {"metadata": metadata, "spec": spec}


def listing(version: str, *items: Object, more: str = "") -> Answer:
    body = {"metadata": {"resourceVersion": version, "continue": more}, "items": list(items)}
    return lambda _: web.json_response(body)


def refusal(status: int, reason: str, headers: dict[str, str] | None = None) -> Answer:
    body = {"kind": "Status", "code": status, "reason": reason, "message": f"said {reason}"}
    return lambda _: web.json_response(body, status=status, headers=headers)


def events(*lines: Object | bytes, then_hang: bool = False) -> Answer:
    """A watch that says `lines` and ends, or stays open in silence."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for line in lines:
            raw = line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n"
            await response.write(raw)
        if then_hang:
            await asyncio.sleep(30)
        return response

    return answer


def event(kind: str, thing: Object) -> Object:
    return {"type": kind, "object": thing}


class FakeApi:
    """Answers requests in the order of `script`; when it is spent, watches hang and lists fail."""

    def __init__(self) -> None:
        self.script: list[Answer] = []
        self.asked: list[dict[str, str]] = []
        self.bodies: list[tuple[str, str, Any]] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append({"path": request.path, "method": request.method, **request.query})
        if request.can_read_body:
            self.bodies.append((request.method, request.content_type, await request.json()))
        if not self.script:
            spent = events(then_hang=True) if "watch" in request.query else refusal(503, "Spent")
            self.script.append(spent)
        answer = self.script.pop(0)(request)
        made = await answer if asyncio.iscoroutine(answer) else answer
        assert isinstance(made, web.StreamResponse)
        return made


@asynccontextmanager
async def fake_api(*script: Answer) -> AsyncIterator[tuple[FakeApi, Kube]]:
    api = FakeApi()
    api.script.extend(script)
    app = web.Application()
    app.router.add_route("*", "/{anything:.*}", api.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    kube = Kube(Configuration(host=f"http://{host}:{port}"))
    try:
        yield api, kube
    finally:
        await kube.close()
        await runner.cleanup()
