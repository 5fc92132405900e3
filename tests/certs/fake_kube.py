"""A scriptable stand-in for the Kubernetes API server, as far as the CA asks it anything.

It speaks HTTP on loopback and `kit.kube` talks to it for real. A test scripts it by filling `pods`,
`reviews`, `namespaces` and the rest, or by putting an exact answer into `answers`.
"""

import asyncio
import copy
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from kubernetes.aio.client import Configuration

from kit.kube import Kube, Object

NODE_NAME = "authentication.kubernetes.io/node-name"
POD_NAME = "authentication.kubernetes.io/pod-name"
POD_UID = "authentication.kubernetes.io/pod-uid"
AUDIENCE = "podlink-ca"
PROXY: Object = {
    "name": "podlink-proxy",
    "image": "podlink/podlink:0.1.0",
    "command": ["python", "-m", "sidecar"],
    "restartPolicy": "Always",
}


class FakeKube:
    def __init__(self) -> None:
        self.pods: dict[tuple[str, str], Object] = {}
        self.reviews: dict[str, Any] = {}
        """Token -> the status that TokenReview answers."""
        self.objects: dict[str, Object] = {}
        """Path -> Secret, ConfigMap or Event."""
        self.history: list[tuple[int, str, Object]] = []
        """Every change of `objects` through the API: version, type and the object with its path."""
        self.namespaces: dict[str, Object] = {}
        self.events: list[Object] = []
        """Watch events of namespaces, in order; a watch gets those after its resourceVersion."""
        self.answers: dict[tuple[str, str], tuple[int, Any]] = {}
        """(method, path) -> a fixed (status, body) instead of the real answer."""
        self.before: Callable[[str, str], None] = lambda _method, _path: None
        """Called with each request's method and path before it is answered."""
        self.wait: Callable[[], Awaitable[object]] | None = None
        """Awaited before each answer: makes the API server slow."""
        self.seen: list[tuple[str, str]] = []
        self.review_specs: list[Object] = []
        self.oldest = 0
        """A watch from before this resourceVersion is answered with 410 Gone."""
        self.url = ""
        self._news = asyncio.Event()
        self._numbers = itertools.count(1)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Kube]:
        """Serve, and yield a client that talks to it."""
        runner = web.AppRunner(self.app(), handler_cancellation=True, shutdown_timeout=0.2)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            async with Kube(Configuration(host=self.url)) as kube:
                yield kube
        finally:
            await runner.cleanup()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        return app

    def add_pod(
        self,
        namespace: str = "shop",
        name: str = "api-1",
        account: str = "api",
        ips: tuple[str, ...] = ("10.0.0.7",),
        uid: str | None = None,
        spec: Object | None = None,
        **status: Any,
    ) -> str:
        """Add a running pod and return a good token of it. Pods are replaced by name; `spec` goes over
        that of a meshed pod."""
        uid = uid or f"uid-{next(self._numbers)}"
        self.pods[namespace, name] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "uid": uid},
            "spec": {
                "serviceAccountName": account,
                "nodeName": "node-1",
                "initContainers": [PROXY],
                **(spec or {}),
            },
            "status": {
                "phase": "Running",
                "hostIP": "192.168.9.1",
                "podIPs": [{"ip": ip} for ip in ips],
                **status,
            },
        }
        token = f"head.{namespace}-{name}-{uid}.signature".replace(":", "")
        self.reviews[token] = review(namespace, account, name, uid)
        return token

    def add_namespace(self, name: str, **labels: str) -> None:
        """Add or relabel a namespace, and tell those who watch."""
        known = name in self.namespaces
        version = str(next(self._numbers))
        labelled = labels or {"podlink.dev/inject": "enabled"}
        found = {"metadata": {"name": name, "labels": labelled, "resourceVersion": version}}
        self.namespaces[name] = found
        self.events.append({"type": "MODIFIED" if known else "ADDED", "object": found})
        self._ring()

    def bundle_in(self, namespace: str) -> str | None:
        found = self.objects.get(f"/api/v1/namespaces/{namespace}/configmaps/podlink-bundle")
        return found["data"]["root.pem"] if found else None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        method, path = request.method, request.path
        self.seen.append((method, path))
        self.before(method, path)
        if self.wait is not None:
            await self.wait()
        if (fixed := self.answers.get((method, path))) is not None:
            status, body = fixed
            if isinstance(body, str):
                return web.Response(status=status, text=body)
            return web.json_response(body, status=status)
        if path == "/apis/authentication.k8s.io/v1/tokenreviews":
            return await self._review(request)
        watch = request.query.get("watch") == "true"
        if path == "/api/v1/namespaces" and watch:
            return await self._watch_namespaces(request)
        if path == "/api/v1/namespaces":
            return self._list_namespaces()
        if path == "/api/v1/pods":
            return await self._labelled_pods(request, watch)
        parts = path.split("/")
        if len(parts) == 5 and parts[3] == "namespaces":
            one = self.namespaces.get(parts[4])
            return web.json_response(one) if one else _failure(404, "NotFound")
        if len(parts) == 7 and parts[5] == "pods":
            pod = self.pods.get((parts[4], parts[6]))
            return web.json_response(pod) if pod else _failure(404, "NotFound")
        if len(parts) == 6 and method == "GET":
            return await self._collection(request, path, watch)
        return await self._object(request, method, path)

    # --- Secrets, ConfigMaps, Events ----------------------------------------------------------

    @property
    def version(self) -> int:
        return self.history[-1][0] if self.history else 1

    def put(self, path: str, body: Object | None) -> None:
        """Change an object as somebody else would; None deletes it."""
        version, old = self.version + 1, self.objects.get(path)
        if body is None:
            gone = self.objects.pop(path)
            self.history.append((version, "DELETED", {"path": path, "object": gone}))
        else:
            body.setdefault("metadata", {})
            body["metadata"]["resourceVersion"] = str(version)
            body["metadata"].setdefault("name", path.rpartition("/")[2])
            self.objects[path] = body
            kind = "ADDED" if old is None else "MODIFIED"
            self.history.append((version, kind, {"path": path, "object": copy.deepcopy(body)}))
        self._ring()

    def of_kind(self, plural: str) -> list[Object]:
        return [o for path, o in self.objects.items() if path.split("/")[-2] == plural]

    async def _collection(self, request: web.Request, path: str, watch: bool) -> web.StreamResponse:
        field = request.query.get("fieldSelector", "").partition("metadata.name=")[2]

        def wanted(at: str) -> bool:
            folder, _, name = at.rpartition("/")
            return folder == path and field in ("", name)

        if not watch:
            items = [o for at, o in self.objects.items() if wanted(at)]
            found = {"metadata": {"resourceVersion": str(self.version)}, "items": items}
            return web.json_response(found)
        response = web.StreamResponse()
        await response.prepare(request)
        sent = int(request.query["resourceVersion"] or 0)
        while True:
            news = self._news
            for version, kind, change in list(self.history):
                if version > sent:
                    sent = version
                    if wanted(change["path"]):
                        event = {"type": kind, "object": change["object"]}
                        await response.write(json.dumps(event).encode() + b"\n")
            await news.wait()

    async def _labelled_pods(self, request: web.Request, watch: bool) -> web.StreamResponse:
        items = [
            pod
            for pod in self.pods.values()
            if (pod["metadata"].get("labels") or {}).get("podlink.dev/inject") == "enabled"
        ]
        if not watch:
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": items})
        response = web.StreamResponse()
        await response.prepare(request)
        for pod in items:
            event = {"type": "ADDED", "object": pod}
            await response.write(json.dumps(event).encode() + b"\n")
        await asyncio.Event().wait()
        return response

    def _ring(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def _review(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.review_specs.append(asked["spec"])
        unknown = {"authenticated": False, "error": "invalid bearer token"}
        status = self.reviews.get(asked["spec"]["token"], unknown)
        return web.json_response({**asked, "status": status}, status=201)

    async def _object(self, request: web.Request, method: str, path: str) -> web.Response:
        if method == "POST":
            made = await request.json()
            key = f"{path}/{made['metadata']['name']}"
            if key in self.objects:
                return _failure(409, "AlreadyExists")
            self.put(key, made)
            return web.json_response(made, status=201)
        if path not in self.objects:
            return _failure(404, "NotFound")
        old = self.objects[path]
        if method == "DELETE":
            self.put(path, None)
            return web.json_response(old)
        if method == "PUT":
            new = await request.json()
            claimed = new["metadata"].get("resourceVersion")
            if claimed and claimed != old["metadata"].get("resourceVersion"):
                return _failure(409, "Conflict")
            self.put(path, new)
        if method == "PATCH":
            assert request.content_type == "application/merge-patch+json"
            new = copy.deepcopy(old)
            for field, found in (await request.json()).items():
                merged = new.get(field) or {}
                merged.update(found)
                new[field] = {k: v for k, v in merged.items() if v is not None}
            self.put(path, new)
        return web.json_response(self.objects[path])

    def _list_namespaces(self) -> web.Response:
        items = [n for n in self.namespaces.values() if _enrolled(n)]
        version = max(
            (int(e["object"]["metadata"]["resourceVersion"]) for e in self.events), default=0
        )
        listed = {"metadata": {"resourceVersion": str(max(version, self.oldest))}, "items": items}
        return web.json_response(listed)

    async def _watch_namespaces(self, request: web.Request) -> web.StreamResponse:
        after = int(request.query["resourceVersion"])
        response = web.StreamResponse()
        await response.prepare(request)
        if after < self.oldest:
            gone = {"code": 410, "reason": "Expired", "message": "too old resource version"}
            await response.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            return response
        sent = 0
        while True:
            news = self._news
            for event in self.events[sent:]:
                sent += 1
                if int(event["object"]["metadata"]["resourceVersion"]) > after and _enrolled(
                    event["object"]
                ):
                    await response.write(json.dumps(event).encode() + b"\n")
            await news.wait()


def review(
    namespace: str, account: str, pod: str, uid: str, *, audiences: Any = (AUDIENCE,)
) -> Object:
    """The status of a good TokenReview."""
    return {
        "authenticated": True,
        "audiences": list(audiences),
        "user": {
            "username": f"system:serviceaccount:{namespace}:{account}",
            "uid": "account-uid",
            "groups": ["system:serviceaccounts", "system:authenticated"],
            "extra": {POD_NAME: [pod], POD_UID: [uid]},
        },
    }


def _enrolled(namespace: Object) -> bool:
    labels: dict[str, str] = namespace["metadata"]["labels"]
    return labels.get("podlink.dev/inject") == "enabled"


def _failure(code: int, reason: str) -> web.Response:
    body = {"kind": "Status", "code": code, "reason": reason, "message": reason}
    return web.json_response(body, status=code)
