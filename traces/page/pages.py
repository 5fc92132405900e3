"""The review page over HTTP: views, their exports, log in and log out, static files."""

import datetime as dt
import re
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from aiohttp import web

from kit.clock import unix_ns
from traces import views
from traces.page import session
from traces.page.asked import REFRESH, SINCE, Asked, QueryMalformed, stamp
from traces.page.export import as_csv, as_json
from traces.page.packed import pack
from traces.page.questions import QUESTIONS, Answer, replay_view
from traces.page.render import render, static_files
from traces.query import Reader

if TYPE_CHECKING:
    from multidict import MultiDictProxy

    from traces.policies import Known

TITLES: Final = {
    "overview": "Needs a decision",
    "graph": "Graph",
    "plaintext": "Plaintext",
    "denied": "Denied",
    "new": "First seen",
    "certificates": "Certificates",
    "replay": "Policy replay",
}
"""The views in the order of the page's menu, and what each is called there."""
_OTHER_TITLES: Final = {"trace": "Link", "failed": "Failed"}
_DEFAULT_SINCE: Final = {"new": "7d", "replay": "7d"}
_NEXT = re.compile(r"[a-z]{0,20}(\?[A-Za-z0-9%&=._~+:-]{0,4000})?", re.ASCII)
MAX_FORM_BYTES: Final = 256 * 1024
READER = web.AppKey("reader", Reader)
TOKEN: web.AppKey[Callable[[], bytes]] = web.AppKey("token")
POLICIES: web.AppKey[Callable[[], Awaitable["Known | None"]]] = web.AppKey("policies")
"""Asks what is in force; None if nobody can say."""


def add_pages(app: web.Application) -> None:
    app.router.add_get("/", _view)
    app.router.add_get("/login", _show_login)
    app.router.add_post("/login", _login)
    app.router.add_post("/logout", _logout)
    app.router.add_get("/static/{name}", _static)
    app.router.add_post("/replay", _replay)
    names = "|".join((*QUESTIONS,))
    app.router.add_get(f"/{{view:{names}}}", _view)
    app.router.add_get(f"/{{view:{names}}}.{{format:csv|json}}", _view)


OPEN: Final = re.compile(r"/healthz|/login|/static/[^/]+")
"""Paths that answer anybody: they hold no data."""


def is_authenticated(request: web.Request, header: str, token: bytes) -> bool:
    if header in request.headers:
        return session.is_token(request.headers[header], token)
    return session.is_session(request.cookies.get(session.COOKIE, ""), token, unix_ns() / 1e9)


def wants_html(request: web.Request) -> bool:
    return "text/html" in request.headers.get("Accept", "")


def login_page(request: web.Request, said: str = "") -> web.Response:
    """401 with the form, where somebody came without a session."""
    here = request.path.lstrip("/") + (f"?{request.query_string}" if request.query_string else "")
    if request.path == "/login":
        here = request.query.get("next", "")
    page = render("login.html", {"next": _next(here), "said": said, "title": "Log in"})
    return web.Response(text=page, content_type="text/html", status=401)


async def _show_login(request: web.Request) -> web.Response:
    page = login_page(request)
    page.set_status(200)
    return page


async def _form(request: web.Request) -> "MultiDictProxy[Any]":
    """What a form sends. Raises QueryMalformed for what no browser would."""
    try:
        return await request.post()
    except (UnicodeError, LookupError, ValueError, AssertionError) as e:
        raise QueryMalformed("the form cannot be read") from e


async def _login(request: web.Request) -> web.Response:
    """A form from another site may not log anybody in (login CSRF): browsers say where it is from."""
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        return login_page(request, "the form came from another site")
    form = await _form(request)
    token = request.app[TOKEN]()
    if not session.is_token(str(form.get("token", "")), token):
        return login_page(request, "that is not the token")
    answer = web.Response(status=303, headers={"Location": _next(str(form.get("next", ""))) or "."})
    answer.set_cookie(
        session.COOKIE,
        session.session_cookie(token, unix_ns() / 1e9),
        max_age=session.LIFETIME_S,
        httponly=True,
        # Lax: a link that somebody was sent opens; nothing here changes anything.
        samesite="Lax",
        secure=request.headers.get("X-Forwarded-Proto") == "https",
    )
    return answer


async def _logout(_: web.Request) -> web.Response:
    answer = web.Response(status=303, headers={"Location": "login"})
    answer.del_cookie(session.COOKIE, httponly=True, samesite="Lax")
    return answer


def _next(raw: str) -> str:
    """Where to go after logging in: a view of this page, never another address."""
    return raw if _NEXT.fullmatch(raw) and not raw.startswith(("login", "logout")) else ""


async def _static(request: web.Request) -> web.Response:
    found = static_files().get(request.match_info["name"])
    if found is None:
        raise web.HTTPNotFound
    content, kind, digest = found
    answer = web.Response(body=content, content_type=kind, charset="utf-8")
    if request.query_string == digest:
        answer.headers["Cache-Control"] = "private, max-age=31536000, immutable"
    return answer


async def _replay(request: web.Request) -> web.Response:
    """The form, as an address: so the answer can be shared. Too long for one, it is answered here."""
    sent = await _form(request)
    text = str(sent.get("policy", "")).replace("\r\n", "\n")
    pods = [str(pod) for pod in sent.getall("pod", [])]
    query = {
        k: v for k, v in single(request).items() if k not in ("policy", "text", "pods", "pick")
    }
    packed = pack(text)
    if pods:
        query["pods"] = "\n".join(pods)
    address = "replay?" + urlencode({**query, "policy": packed})
    if packed and len(address) < 7500:
        return web.Response(status=303, headers={"Location": address})
    return await _answer(request, "replay", "", {**query, "text": text})


async def _view(request: web.Request) -> web.Response:
    name = request.match_info.get("view", "overview")
    query = single(request)
    if "text" in query:
        raise QueryMalformed("text is taken from the form only")
    return await _answer(request, name, request.match_info.get("format", ""), query)


async def _answer(
    request: web.Request, name: str, form: str, query: Mapping[str, str]
) -> web.Response:
    now_ns = unix_ns()
    asked = Asked.parse(query, now_ns, _DEFAULT_SINCE.get(name, "24h"))
    question = QUESTIONS[name]
    if name == "replay":
        question = partial(replay_view, known=await request.app[POLICIES]())

    def both(db: sqlite3.Connection) -> tuple[Answer, list[str]]:
        return question(db, asked), [] if form else views.namespaces(db)

    answer, namespaces = await request.app[READER].ask(both)
    if form:
        return _export(name, form, asked, answer)
    missing = name == "trace" and not answer.rows
    return page(name, asked, namespaces, answer.context, 404 if missing else 200)


def page(
    name: str,
    asked: Asked,
    namespaces: list[str],
    context: Mapping[str, object],
    status: int = 200,
) -> web.Response:
    shown = {
        "view": name,
        "title": TITLES.get(name) or _OTHER_TITLES[name],
        "titles": TITLES,
        "asked": asked,
        "query": asked.raw,
        "since_choices": SINCE,
        "refresh_choices": REFRESH,
        "from_value": stamp(asked.since_s)[:16],
        "to_value": stamp(asked.until_s)[:16],
        "namespaces": namespaces,
        "now_ns": asked.now_ns,
        "own_words": {
            k: v
            for k, v in asked.raw.items()
            if k in ("open", "expand", "id", "policy", "pods", "pick")
        },
        **context,
    }
    return web.Response(text=render(f"{name}.html", shown), content_type="text/html", status=status)


def _export(name: str, form: str, asked: Asked, answer: Answer) -> web.Response:
    at = f"{dt.datetime.fromtimestamp(asked.now_ns // 10**9, dt.UTC):%Y-%m-%dT%H%M%SZ}"
    if form == "csv":
        text, kind = as_csv(answer.rows, answer.columns), "text/csv"
    else:
        about = {
            "view": name,
            "from": stamp(asked.since_s) + "Z",
            "to": stamp(asked.until_s) + "Z",
            "namespace": asked.namespace,
            **answer.about,
        }
        text, kind = as_json(answer.rows, about), "application/json"
    file = f'attachment; filename="podlink-{name}-{at}.{form}"'
    return web.Response(text=text, content_type=kind, headers={"Content-Disposition": file})


def single(request: web.Request) -> dict[str, str]:
    """The query, in which a word may stand once only: two would mean something to one reader and
    something else to the next."""
    found: dict[str, str] = {}
    for name, value in request.query.items():
        if name in found:
            raise QueryMalformed(f"{name[:50]} is there twice")
        found[name] = value
    return found
