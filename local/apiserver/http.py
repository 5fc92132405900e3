"""The wire of the API server: who asks, for which object and verb; watches as JSON lines."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, Protocol

import yaml
from aiohttp import web

from kit.checked import is_deep
from kit.clock import monotonic, utcnow
from kit.tasks import spawn, stop
from local.apiserver import discovery, exec, forward, resources
from local.apiserver.api import Api
from local.apiserver.resources import Resource, Target, read_path
from local.apiserver.selectors import Match, fields_from_query, labels_from_query
from local.apiserver.tables import table
from local.apiserver.tokens import TokenRefused, User
from local.apiserver.watch import changes
from local.errors import ApiError
from local.objects import Object

MAX_BODY_BYTES = 3 << 20
_STREAMED = ("attach", "portforward")
_BOOKMARK_EVERY_S = 15.0
_DEFAULT_WATCH_S = 1800.0
_DEEPEST = 200
"""Levels of an object: it is copied and compared by recursion, and Python has room for a thousand."""


class Logs(exec.Commands, Protocol):
    """Whoever can stream a container's log and start commands in it; the kubelet."""

    async def stream(
        self, pod: Object, container: str, options: dict[str, str], write: "Write"
    ) -> None: ...


Write = Callable[[bytes], Awaitable[None]]


class HttpApi:
    """Routes every request of the API server."""

    def __init__(self, api: Api, logs: Logs) -> None:
        self._api, self._logs = api, logs

    def application(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._serve)
        return app

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._answer(request)
        except ApiError as e:
            return _refusal(e)
        except web.HTTPRequestEntityTooLarge:
            return _refusal(ApiError(413, "RequestEntityTooLarge", "the body is too large"))

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.path in ("/healthz", "/livez", "/readyz"):
            return web.Response(text="ok")
        user = self._authenticate(request)
        found = discovery.answer(request.path, self._api.registry)
        if found is not None and request.method == "GET":
            return web.json_response(found)
        target = read_path(request.path)
        if target is None:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        resource = self._api.registry.find(target.group, target.version, target.plural)
        if resource is None:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        if resource.plural == "services" and target.name and target.subresource == "proxy":
            return await forward.to_service(self._api.store, target, request)
        return await self._dispatch(request, user, resource, target)

    def _authenticate(self, request: web.Request) -> User:
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        try:
            if kind.lower() != "bearer":
                raise TokenRefused("no bearer token")
            return self._api.tokens.authenticate(token.strip())
        except TokenRefused as e:
            raise ApiError(401, "Unauthorized", f"Unauthorized: {e}") from e

    async def _dispatch(
        self, request: web.Request, user: User, resource: Resource, target: Target
    ) -> web.StreamResponse:
        sub = target.subresource
        if resource.key == resources.PODS.key and sub in _STREAMED:
            raise ApiError(
                501,
                "NotImplemented",
                f"pods/{sub} is not implemented by podlink local: use `podlink local exec`"
                " (for a port: `podlink local up --publish`)",
            )
        if resource.key == resources.PODS.key and sub == "exec" and target.name:
            return await exec.serve(request, self._find(resource, target), self._logs)
        if sub and sub not in resource.subresources:
            raise ApiError(404, "NotFound", f"there is no {resource.plural}/{sub}")
        match request.method, bool(target.name), sub:
            case "GET", True, "log":
                return await self._log(request, target)
            case "GET", True, "scale":
                return web.json_response(_scale(self._find(resource, target)))
            case "GET", True, _:
                found = self._find(resource, target)
                return self._shown(request, resource, [found], found)
            case "GET", False, _:
                return await self._list(request, resource, target)
            case "POST", False, "":
                return await self._create(request, user, resource, target)
            case "POST", True, "token":
                body = await _body(request)
                answer = self._api.tokens.request(target.namespace, target.name, body)
                return web.json_response(answer, status=201)
            case "PUT" | "PATCH", True, _:
                return await self._change(request, user, resource, target)
            case "DELETE", _, "":
                return await self._delete(request, user, resource, target)
        raise ApiError(405, "MethodNotAllowed", f"{request.method} is not supported here")

    def _find(self, resource: Resource, target: Target) -> Object:
        return self._api.find(resource, target.namespace, target.name)

    async def _list(
        self, request: web.Request, resource: Resource, target: Target
    ) -> web.StreamResponse:
        match = _selection(request)
        if request.query.get("watch", "").lower() in ("true", "1"):
            return await self._watch(request, resource, target, match)
        found = [o for o in self._api.store.select(resource.key, target.namespace) if match(o)]
        listed = {
            "kind": f"{resource.kind}List",
            "apiVersion": resource.api_version,
            "metadata": {"resourceVersion": str(self._api.store.version)},
            "items": found,
        }
        return self._shown(request, resource, found, listed)

    def _shown(
        self, request: web.Request, resource: Resource, found: list[Object], plain: Object
    ) -> web.Response:
        if "as=Table" in request.headers.get("Accept", ""):
            version = str(self._api.store.version)
            return web.json_response(table(resource, found, version, utcnow()))
        return web.json_response(plain)

    async def _watch(
        self, request: web.Request, resource: Resource, target: Target, match: Match
    ) -> web.StreamResponse:
        if "sendInitialEvents" in request.query:
            raise ApiError(
                422, "Invalid", "sendInitialEvents: Forbidden: watch lists are not supported"
            )
        raw = request.query.get("resourceVersion", "")
        if raw and not raw.isdigit():
            raise ApiError(400, "BadRequest", f"resourceVersion: {raw[:40]!r} is not a number")
        seconds = request.query.get("timeoutSeconds", "")
        deadline = monotonic() + (float(seconds) if seconds.isdigit() else _DEFAULT_WATCH_S)
        as_table = "as=Table" in request.headers.get("Accept", "")
        bookmarks = request.query.get("allowWatchBookmarks") in ("true", "1")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        stream = changes(
            self._api.store, resource, target.namespace, match, int(raw) if raw else None
        )
        try:
            async with aclosing(stream):
                await self._pump(stream, response, resource, deadline, bookmarks, as_table)
        except ApiError as e:
            await response.write(_line({"type": "ERROR", "object": _status(e)}))
        except ConnectionError:
            return response
        with suppress(ConnectionError):
            await response.write_eof()
        return response

    async def _pump(
        self,
        stream: AsyncGenerator[Object, None],
        response: web.StreamResponse,
        resource: Resource,
        deadline: float,
        bookmarks: bool,
        as_table: bool,
    ) -> None:
        waiting = spawn(_next(stream), name="watch")
        try:
            while (left_s := deadline - monotonic()) > 0:
                await asyncio.wait({waiting}, timeout=min(left_s, _BOOKMARK_EVERY_S))
                if waiting.done():
                    event = waiting.result()
                    if as_table:
                        version = event["object"]["metadata"]["resourceVersion"]
                        shown = table(resource, [event["object"]], version, utcnow())
                        event = {"type": event["type"], "object": shown}
                    await response.write(_line(event))
                    waiting = spawn(_next(stream), name="watch")
                elif bookmarks:
                    await response.write(_line(self._bookmark(resource)))
        finally:
            await stop(waiting)

    def _bookmark(self, resource: Resource) -> Object:
        metadata = {"resourceVersion": str(self._api.store.version)}
        head = {"kind": resource.kind, "apiVersion": resource.api_version}
        return {"type": "BOOKMARK", "object": {**head, "metadata": metadata}}

    async def _create(
        self, request: web.Request, user: User, resource: Resource, target: Target
    ) -> web.Response:
        body = await _body(request)
        if resource.key == resources.TOKEN_REVIEWS.key:
            return web.json_response(self._api.tokens.review(body), status=201)
        if not resource.stored:  # access reviews: whoever holds a token may do anything here
            return web.json_response({**body, "status": {"allowed": True}}, status=201)
        warnings: list[str] = []
        made = await self._api.create(
            resource,
            target.namespace,
            body,
            user=user,
            dry_run=_dry_run(request),
            warnings=warnings,
        )
        return web.json_response(made, status=201, headers=_warned(warnings))

    async def _change(
        self, request: web.Request, user: User, resource: Resource, target: Target
    ) -> web.Response:
        body = await _body(request)
        where = resource, target.namespace, target.name
        warnings: list[str] = []
        dry_run = _dry_run(request)
        if target.subresource == "scale":
            replicas = (body.get("spec") or {}).get("replicas") if isinstance(body, dict) else None
            change = {"spec": {"replicas": replicas}}
            made = await self._api.patch(
                *where, "application/merge-patch+json", change, user=user, dry_run=dry_run
            )
            return web.json_response(_scale(made))
        if request.method == "PUT":
            made = await self._api.update(
                *where,
                body,
                subresource=target.subresource,
                user=user,
                dry_run=dry_run,
                warnings=warnings,
            )
        else:
            made = await self._api.patch(
                *where,
                request.content_type,
                body,
                subresource=target.subresource,
                user=user,
                dry_run=dry_run,
                warnings=warnings,
            )
        return web.json_response(made, headers=_warned(warnings))

    async def _delete(
        self, request: web.Request, user: User, resource: Resource, target: Target
    ) -> web.Response:
        options = await _body(request) if request.can_read_body else {}
        grace = request.query.get("gracePeriodSeconds", options.get("gracePeriodSeconds"))
        grace_s = int(grace) if grace is not None else None
        uid = (options.get("preconditions") or {}).get("uid")
        dry_run = _dry_run(request) or bool(options.get("dryRun"))
        if target.name:
            gone = await self._api.delete(
                resource,
                target.namespace,
                target.name,
                grace_s=grace_s,
                uid=uid,
                user=user,
                dry_run=dry_run,
            )
            return web.json_response(gone)
        match = _selection(request)
        found = [o for o in self._api.store.select(resource.key, target.namespace) if match(o)]
        for obj in found:
            with suppress(ApiError):
                namespace = obj["metadata"].get("namespace", "")
                await self._api.delete(
                    resource, namespace, obj["metadata"]["name"], grace_s=grace_s, user=user
                )
        return web.json_response(
            {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        )

    async def _log(self, request: web.Request, target: Target) -> web.StreamResponse:
        pod = self._find(resources.PODS, target)
        names = [c["name"] for c in pod["spec"]["containers"]]
        names += [c["name"] for c in pod["spec"].get("initContainers") or ()]
        container = request.query.get("container") or names[0]
        if container not in names:
            raise ApiError(
                400, "BadRequest", f"container {container!r} is not valid for pod {target.name}"
            )
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        with suppress(ConnectionError):
            await self._logs.stream(pod, container, dict(request.query), response.write)
            await response.write_eof()
        return response


async def _next(stream: AsyncGenerator[Object, None]) -> Object:
    return await anext(stream)


def _selection(request: web.Request) -> Match:
    labels = labels_from_query(request.query.get("labelSelector", ""))
    fields = fields_from_query(request.query.get("fieldSelector", ""))
    return lambda obj: labels(obj) and fields(obj)


def _dry_run(request: web.Request) -> bool:
    return "dryRun" in request.query


async def _body(request: web.Request) -> Any:
    raw = await request.read()
    try:
        is_yaml = request.content_type == "application/yaml"
        found = yaml.safe_load(raw) if is_yaml else json.loads(raw or b"{}")
        if is_deep(found, _DEEPEST):
            raise ValueError(f"nested deeper than {_DEEPEST}")
    except (ValueError, yaml.YAMLError, RecursionError) as e:
        raise ApiError(400, "BadRequest", f"the body is not {request.content_type}: {e}") from e
    return found


def _scale(obj: Object) -> Object:
    replicas = obj["spec"].get("replicas", 1)
    metadata = {
        key: obj["metadata"][key]
        for key in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    }
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {"replicas": replicas},
        "status": {"replicas": obj.get("status", {}).get("replicas", 0)},
    }


def _status(error: ApiError) -> Object:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": str(error),
        "reason": error.reason,
        "code": error.code,
    }


def _refusal(error: ApiError) -> web.Response:
    return web.json_response(_status(error), status=error.code)


def _warned(warnings: list[str]) -> dict[str, str]:
    if not warnings:
        return {}
    quoted = (w.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") for w in warnings)
    return {"Warning": ", ".join(f'299 - "{w[:256]}"' for w in quoted)}


def _line(event: Object) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"
