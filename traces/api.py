"""The review API: links and traces as JSON, for whoever holds the token; /healthz for anybody."""

import hmac
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from traces.config import TracesConfig
from traces.query import MAX_LINKS, LinkFilter, QueryTooSlow, Reader
from traces.writer import Writer

TOKEN_HEADER = "X-Podlink-Token"  # noqa: S105 - the name of a header
_READER = web.AppKey("reader", Reader)
_WRITER = web.AppKey("writer", Writer)
_TOKEN_PATH = web.AppKey("token_path", Path)
_CHOICES = {
    "verdict": frozenset({"allowed", "denied", "audited", "failed"}),
    "security": frozenset({"mtls", "plaintext", "self", "none"}),
}
_KNOWN = frozenset({"since", "namespace", "identity", "verdict", "security", "limit"})
_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_MAX_NAME = 2048

_log = logging.getLogger(__name__)


class QueryMalformed(ValueError):
    """A parameter of the question is wrong; the message names it."""

    reason = "query_malformed"


def review_app(config: TracesConfig, reader: Reader, writer: Writer) -> web.Application:
    app = web.Application(middlewares=[_guard])
    app[_READER], app[_TOKEN_PATH], app[_WRITER] = reader, config.token_path, writer
    app.router.add_get("/healthz", _healthz)
    app.router.add_get("/api/links", _links)
    app.router.add_get("/api/traces/{trace_id}", _trace)
    return app


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Nothing but /healthz without the token; every answer in JSON, none to be kept by a cache."""
    if request.path != "/healthz" and not _holds_token(request):
        said = f"send the token of the Secret podlink-traces-token as {TOKEN_HEADER}"
        return _error(401, "token_refused", said)
    try:
        response = await handler(request)
    except QueryMalformed as e:
        return _error(400, e.reason, str(e))
    except QueryTooSlow as e:
        return _error(503, e.reason, "this takes too long; ask for a shorter time or a namespace")
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _holds_token(http: web.Request) -> bool:
    """Fails closed: no token file, or an empty one, means that nobody does."""
    try:
        token = http.app[_TOKEN_PATH].read_bytes().strip()
    except OSError:
        _log.exception("token file cannot be read")
        return False
    said = http.headers.get(TOKEN_HEADER, "").encode("utf-8", "surrogateescape")
    return bool(token) and hmac.compare_digest(token, said)


async def _healthz(http: web.Request) -> web.Response:
    if not http.app[_WRITER].is_running:
        return _error(503, "store_failed", "the writer has ended")
    return web.json_response({"status": "ok"})


async def _links(http: web.Request) -> web.Response:
    links = await http.app[_READER].links(read_filter(http.query))
    return web.json_response({"links": links})


async def _trace(http: web.Request) -> web.Response:
    trace_id = http.match_info["trace_id"]
    if not _TRACE_ID.fullmatch(trace_id):
        raise QueryMalformed("a trace id is 32 lower-case hex digits")
    spans = await http.app[_READER].trace(bytes.fromhex(trace_id))
    if not spans:
        return _error(404, "trace_unknown", "no span of this trace is kept")
    return web.json_response({"spans": spans})


def read_filter(query: Mapping[str, str]) -> LinkFilter:
    """The parameters of /api/links; raises QueryMalformed, naming the one that is wrong."""
    for name in query:
        if name not in _KNOWN:
            raise QueryMalformed(f"unknown parameter; there are {', '.join(sorted(_KNOWN))}")
    for name, choices in _CHOICES.items():
        if query.get(name) and query[name] not in choices:
            raise QueryMalformed(f"{name} must be one of {', '.join(sorted(choices))}")
    for name in ("namespace", "identity"):
        if len(query.get(name, "")) > _MAX_NAME:
            raise QueryMalformed(f"{name} is too long")
    since = query.get("since") or None
    return LinkFilter(
        since_s=_number("since", since, high=10**9) if since else None,
        namespace=query.get("namespace") or None,
        identity=query.get("identity") or None,
        verdict=query.get("verdict") or None,
        security=query.get("security") or None,
        limit=_number("limit", query.get("limit") or "100", high=MAX_LINKS),
    )


def _number(name: str, raw: str, *, high: int) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", raw, re.ASCII) or not 1 <= int(raw) <= high:
        raise QueryMalformed(f"{name} must be a whole number from 1 to {high}")
    return int(raw)


def _error(status: int, reason: str, message: str) -> web.Response:
    """In two words of a Kubernetes Status, since the CLI hears us through the API server."""
    return web.json_response({"reason": reason, "message": message}, status=status)
