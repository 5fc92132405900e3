"""The HTTPS end that the API server calls: POST /mutate, and the health checks.

Its certificate follows the CA client's (`certs.client.web`), so a renewal needs no restart.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from injector.container import MeshSettings
from injector.limits import BODY_WITHIN_S, Limits, TooMuch
from injector.review import Question, ReviewMalformed, Verdict, answer, read_review, refuse
from kit.clock import monotonic
from kit.kube import KubeError, Object
from kit.limited_log import LimitedLog

MAX_BODY_BYTES = 8 << 20
"""The API server sends the object, at most 1.5 MiB in etcd's terms, and perhaps the old one."""
_log = logging.getLogger(__name__)


class Webhook:
    """Answers admission requests; `namespace_of` finds the raw Namespace by name.

    It is told whether to ask the API server afresh, returns None for a namespace that does not
    exist and raises KubeError when it cannot know: then the pod is refused, for a guess could let
    it in without its sidecar.
    """

    def __init__(
        self,
        mesh: MeshSettings,
        namespace_of: Callable[[str, bool], Awaitable[Object | None]],
        ready: Callable[[], bool],
        limits: Limits | None = None,
    ) -> None:
        self._mesh, self._namespace_of, self._ready = mesh, namespace_of, ready
        self._limits = limits or Limits(monotonic)
        self._limited = LimitedLog(_log)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.add_routes(
            [
                web.post("/mutate", self._mutate),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
            ]
        )
        return app

    async def _mutate(self, request: web.Request) -> web.Response:
        source = request.remote or ""
        size = MAX_BODY_BYTES if request.content_length is None else request.content_length
        try:
            with self._limits.review(source, size):
                async with asyncio.timeout(BODY_WITHIN_S):
                    body = await request.read()
                return await self._review(body, source)
        except TooMuch as much:
            if much.tell:
                _log.warning("too much asked", extra={"reason": much.reason, "source": source})
            error, status = f"podlink: too much asked ({much.reason})", 429
        except TimeoutError:
            error, status = "podlink: the review did not come in time", 408
        response = web.json_response({"error": error}, status=status)
        response.force_close()  # what is left of the body is not read
        return response

    async def _review(self, body: bytes, source: str) -> web.Response:
        try:
            question = read_review(body)
        except ReviewMalformed as malformed:
            self._limited.warning("review refused", reason=malformed.reason, error=malformed)
            return web.json_response({"error": str(malformed)}, status=400)
        verdict = await self._decide(question, fresh=False)
        if verdict.reason == "not_enrolled":
            # The API server's selectors chose this pod, so our view of the namespace may be old.
            self._limits.ask_afresh(source)
            verdict = await self._decide(question, fresh=True)
        fields: Mapping[str, Any] = {
            "namespace": question.namespace,
            "pod": question.pod_name,
            "outcome": verdict.outcome,
            "reason": verdict.reason,
            "error": verdict.text,
        }
        if verdict.outcome == "refused":
            self._limited.warning("pod reviewed", **fields)
        else:
            _log.info("pod reviewed", extra=dict(fields))
        return web.json_response(verdict.response)

    async def _decide(self, question: Question, fresh: bool) -> Verdict:
        try:
            namespace = await self._namespace_of(question.namespace, fresh)
        except KubeError as error:
            return refuse(question.uid, "namespace_unknown", f"namespace unread: {error}", 503)
        if namespace is None:
            text = f"namespace {question.namespace!r} does not exist"
            return refuse(question.uid, "namespace_unknown", text)
        return answer(question, namespace, self._mesh)

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        if self._ready():
            return web.Response(text="ok\n")
        return web.Response(status=503, text="not ready\n")
