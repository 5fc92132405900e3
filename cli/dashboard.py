"""`podlink dashboard`: the review page in a browser, through the API server's service proxy.

A small server on loopback hands requests on, with the operator's credentials and the page's token.
Others on this machine can reach loopback too, and so can any web page by a name that leads there (DNS
rebinding): so it answers only a browser that came in by the one-time address, under a loopback name,
and forwards to the review page and nowhere else.
"""

import asyncio
import hmac
import secrets
import webbrowser
from contextlib import suppress
from typing import Final

import click
from aiohttp import web

from cli.cluster import ClusterUnavailable, open_kube
from cli.terminal import printable
from cli.traces_client import SERVICE, TOKEN_HEADER, TracesClient, TracesUnavailable
from kit.contract import REVIEW_PORT
from kit.kube import Kube, KubeError

_COOKIE: Final = "podlink_dashboard"
_ENTER: Final = "/enter"
_HOSTS: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
_SENT_ON: Final = ("Accept", "Content-Type", "Sec-Fetch-Site")
_TAKEN_BACK: Final = (
    "Cache-Control",
    "Content-Disposition",
    "Content-Security-Policy",
    "Content-Type",
    "Cross-Origin-Opener-Policy",
    "Cross-Origin-Resource-Policy",
    "Location",
    "Referrer-Policy",
    "X-Content-Type-Options",
    "X-Frame-Options",
)
_MAX_FORM_BYTES: Final = 256 * 1024


class Forwarder:
    """One browser's way to the review page."""

    def __init__(self, kube: Kube, token: str, system_namespace: str) -> None:
        self._kube, self._token = kube, token
        self._base = f"/api/v1/namespaces/{system_namespace}/services/{SERVICE}:{REVIEW_PORT}/proxy"
        self._key: str | None = secrets.token_urlsafe(32)
        self._session = secrets.token_urlsafe(32)

    @property
    def entrance(self) -> str:
        """Path and query by which one browser may come in, once."""
        return f"{_ENTER}?key={self._key}"

    def app(self) -> web.Application:
        app = web.Application(client_max_size=_MAX_FORM_BYTES)
        app.router.add_route("*", "/{path:.*}", self._answer)
        return app

    async def _answer(self, request: web.Request) -> web.Response:
        if request.host.rpartition(":")[0] not in _HOSTS:
            return _refuse("this is reached by its own address only")
        if request.path == _ENTER:
            return self._enter(request.query.get("key", ""))
        if not hmac.compare_digest(
            request.cookies.get(_COOKIE, "").encode(), self._session.encode()
        ):
            return _refuse("come in by the address that `podlink dashboard` printed; it holds once")
        if request.method not in ("GET", "POST"):
            return _refuse("only GET and POST are handed on")
        return await self._forward(request)

    def _enter(self, key: str) -> web.Response:
        if self._key is None or not hmac.compare_digest(key.encode(), self._key.encode()):
            return _refuse("this address was used already, or never given; start the command again")
        self._key = None
        answer = web.Response(status=303, headers={"Location": "/"})
        answer.set_cookie(_COOKIE, self._session, httponly=True, samesite="Lax")
        return answer

    async def _forward(self, request: web.Request) -> web.Response:
        headers = {name: request.headers[name] for name in _SENT_ON if name in request.headers}
        headers[TOKEN_HEADER] = self._token
        raw = request.raw_path  # as the browser encoded it; it begins with a slash
        if not raw.startswith("/") or "/../" in f"{request.path}/":
            return _refuse("no such path")
        try:
            status, said, body = await self._kube.forward(
                request.method, self._base + raw, headers, await request.read()
            )
        except KubeError as e:
            return web.Response(status=502, text=f"{e}\n")
        kept = {name: said[name] for name in _TAKEN_BACK if name in said}
        return web.Response(status=status, headers=kept, body=body)


def _refuse(why: str) -> web.Response:
    return web.Response(status=403, text=f"{why}\n")


@click.command()
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Port on 127.0.0.1; 0: any free one."
)
@click.option("--browser/--no-browser", default=True, help="Open a browser, or only print.")
@click.option(
    "--kubeconfig", type=click.Path(), help="As kubectl: else $KUBECONFIG, ~/.kube/config."
)
@click.option("--context", help="The kubeconfig's context to use.")
def dashboard(port: int, browser: bool, kubeconfig: str | None, context: str | None) -> None:
    """Open the review page, through the API server, until Ctrl-C."""
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(port, browser, kubeconfig, context))


async def _serve(port: int, browser: bool, kubeconfig: str | None, context: str | None) -> None:
    client = TracesClient(kubeconfig=kubeconfig, context=context)
    try:
        await client.links(since="60", limit="1")  # else the browser would show the refusal, raw
        async with await open_kube(kubeconfig, context) as kube:
            forwarder = Forwarder(kube, await client.token(kube), client.system_namespace)
            runner = web.AppRunner(forwarder.app(), access_log=None, shutdown_timeout=1.0)
            await runner.setup()
            try:
                await web.TCPSite(runner, "127.0.0.1", port).start()
                address = f"http://127.0.0.1:{runner.addresses[0][1]}{forwarder.entrance}"
                click.echo(f"review page, for one browser, until Ctrl-C:\n\n  {address}\n")
                if browser:
                    await asyncio.to_thread(webbrowser.open, address)
                await asyncio.Event().wait()
            finally:
                await runner.cleanup()
    except (TracesUnavailable, ClusterUnavailable) as e:
        raise click.ClickException(printable(e)) from e
    except OSError as e:
        raise click.ClickException(f"cannot listen on 127.0.0.1:{port}: {e.strerror}") from e
