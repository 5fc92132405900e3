"""Port 24114: links and traces as JSON, and the review page, for whoever holds the token or has logged
in with it; /healthz for anybody."""

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from certs.client.source import Svid, SvidSource
from certs.evidence.signed import WorkloadSigner
from certs.trust.bundle import TrustBundle
from kit.checked import MAX_DEPTH, is_deep
from kit.clock import unix_ns
from kit.json_text import loads
from traces import report as evidence
from traces.config import MeshConfig, TracesConfig
from traces.page.asked import Asked, QueryMalformed
from traces.page.headers import HEADERS
from traces.page.pages import (
    MAX_FORM_BYTES,
    OPEN,
    POLICIES,
    READER,
    TOKEN,
    add_pages,
    is_authenticated,
    login_page,
    single,
    wants_html,
)
from traces.page.render import render
from traces.policies import PolicyWatch
from traces.query import MAX_LINKS, LinkFilter, QueryTooSlow, Reader
from traces.rollups import traffic
from traces.writer import Writer

TOKEN_HEADER = "X-Podlink-Token"  # noqa: S105 - the name of a header
_WRITER = web.AppKey("writer", Writer)
_SIGNER: web.AppKey[Callable[[], tuple[Svid | None, MeshConfig | None]]] = web.AppKey("signer")
_CHOICES = {
    "verdict": frozenset({"allowed", "denied", "audited", "failed"}),
    "security": frozenset({"mtls", "plaintext", "self", "none"}),
}
_KNOWN = frozenset({"since", "namespace", "identity", "verdict", "security", "limit"})
_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_MAX_NAME = 2048
_REPORT_DEADLINE_S = 50.0
"""Of a report: 20,000 records are judged one by one. An API server waits for a minute."""

_log = logging.getLogger(__name__)


def review_app(
    config: TracesConfig,
    reader: Reader,
    writer: Writer,
    source: SvidSource | None = None,
    policies: PolicyWatch | None = None,
) -> web.Application:
    """`source` lends the store's own leaf, which signs reports; without one it signs none.
    `policies` knows what is in force; without it the page asks its reader."""
    app = web.Application(
        middlewares=[_guard], client_max_size=max(MAX_FORM_BYTES, evidence.MAX_CLUSTER_BYTES)
    )
    app[READER], app[_WRITER] = reader, writer
    app[TOKEN] = lambda: _token(config.token_path)
    app[POLICIES] = _nobody_knows if policies is None else policies.ask
    app.router.add_get("/healthz", _healthz)
    app.router.add_get("/api/links", _links)
    app.router.add_get("/api/traffic", _traffic)
    app.router.add_get("/api/traces/{trace_id}", _trace)
    app.router.add_post("/api/report", _report)
    app[_SIGNER] = lambda: (None if source is None else source.current, config.mesh)
    add_pages(app)
    return app


async def _nobody_knows() -> None:
    """There is no registry to ask."""


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """No data without the token or a session; no answer that a browser may do more with than show."""
    response = await _answer(request, handler)
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    if not OPEN.fullmatch(request.path) and not is_authenticated(
        request, TOKEN_HEADER, request.app[TOKEN]()
    ):
        if wants_html(request):
            return login_page(request)
        said = f"send the token of the Secret podlink-traces-token as {TOKEN_HEADER}"
        return _error(401, "token_refused", said)
    try:
        return await handler(request)
    except QueryMalformed as e:
        return _refused(request, 400, e.reason, str(e))
    except QueryTooSlow as e:
        said = "this takes too long; ask for a shorter time or a namespace"
        return _refused(request, 503, e.reason, said)
    except web.HTTPException as e:
        return _refused(request, e.status, "not_found" if e.status == 404 else "refused", e.reason)


def _token(path: Path) -> bytes:
    """Read at each request, so that a new one counts at once. Fails closed: no token file, or an
    empty one, means that nobody holds it."""
    try:
        return path.read_bytes().strip()
    except OSError:
        _log.exception("token file cannot be read")
        return b""


async def _healthz(http: web.Request) -> web.Response:
    if not http.app[_WRITER].is_running:
        return _error(503, "store_failed", "the writer has ended")
    return web.json_response({"status": "ok"})


async def _links(http: web.Request) -> web.Response:
    links = await http.app[READER].links(read_filter(http.query))
    return web.json_response({"links": links})


async def _traffic(http: web.Request) -> web.Response:
    """Links to one namespace added up by who, to whom and how: for the replay of policies. `sides`
    says who told of a row; both sides tell of each link."""
    for name in http.query:
        if name not in ("since", "destination_namespace"):
            raise QueryMalformed("unknown parameter; there are destination_namespace, since")
    since_s = _number("since", http.query.get("since") or "3600", high=10**9)
    namespace = http.query.get("destination_namespace", "")
    if not namespace or len(namespace) > _MAX_NAME:
        raise QueryMalformed("destination_namespace is missing or too long")
    now_s = unix_ns() // 1_000_000_000
    rows = await http.app[READER].ask(
        lambda db: [
            {**dataclasses.asdict(row), "last_trace": row.last_trace.hex()}
            for row in traffic(
                db, now_s - since_s, now_s + 60, "destination_namespace = ?", (namespace,)
            )
        ]
    )
    return web.json_response({"traffic": rows})


async def _trace(http: web.Request) -> web.Response:
    trace_id = http.match_info["trace_id"]
    if not _TRACE_ID.fullmatch(trace_id):
        raise QueryMalformed("a trace id is 32 lower-case hex digits")
    trace = await http.app[READER].trace(bytes.fromhex(trace_id))
    if not trace.spans:
        return _error(404, "trace_unknown", "no span of this trace is kept")
    return web.json_response({"spans": trace.spans, "left_out": trace.left_out})


async def _report(http: web.Request) -> web.Response:
    """A report on the time asked about, signed with the store's own leaf. The body may hold what the
    operator read of the cluster."""
    now_ns = unix_ns()
    asked = Asked.parse(single(http), now_ns, "7d")
    raw = await http.read()
    try:
        body = loads(raw) if raw else {}
        cluster = body.get("cluster") if isinstance(body, dict) else None
    except ValueError as e:
        raise QueryMalformed("the body is no JSON") from e
    if cluster is not None and not isinstance(cluster, dict):
        raise QueryMalformed("cluster must be an object")
    if is_deep(cluster):
        raise QueryMalformed(f"cluster has values nested deeper than {MAX_DEPTH}")
    svid, mesh = http.app[_SIGNER]()
    if svid is None or mesh is None:
        said = "the store holds no certificate to sign with; it takes spans over mutual TLS?"
        return _error(503, "no_certificate", said)
    bundle = TrustBundle.from_pem(
        mesh.trust_domain, svid.bundle_generation, svid.material.bundle_pem
    )
    found = await http.app[READER].ask(
        lambda db: evidence.record(db, asked.since_s, asked.until_s, now_ns, bundle),
        _REPORT_DEADLINE_S,
    )
    whole = evidence.report(
        found, cluster, asked.since_s, asked.until_s, now_ns, str(svid.facts.identity)
    )
    return web.json_response(evidence.sign(whole, WorkloadSigner(svid.material), now_ns))


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


def _refused(request: web.Request, status: int, reason: str, message: str) -> web.Response:
    if not wants_html(request):
        return _error(status, reason, message)
    page = render("refused.html", {"title": "Not shown", "said": message, "status": status})
    return web.Response(text=page, content_type="text/html", status=status)
