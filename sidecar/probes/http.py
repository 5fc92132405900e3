"""One HTTP or HTTPS probe, as a kubelet makes it (kubernetes/pkg/probe/http, its behaviour).

200 to 399 is success; redirects to the same host are followed, others count as success; the server's
certificate is not verified. Only the head of the answer is read. HTTP/1.1 alone is offered.
"""

import asyncio
import ssl
from contextlib import closing
from typing import Final
from urllib.parse import quote, urljoin, urlsplit

from kit.contract import OWN_PORTS
from sidecar import sockets
from sidecar.probes.spec import HttpProbe
from sidecar.source_address import Source

_MAX_HEAD: Final = 64 << 10
_MAX_REDIRECTS: Final = 10
_SAFE: Final = "/%:@!$&'()*+,;=?~[]"
_DEFAULTS: Final = {"user-agent": "kube-probe/podlink", "accept": "*/*"}


class ProbeFailed(Exception):
    """The app did not answer as it must. `status` is its HTTP status, 503 if it gave none."""

    def __init__(self, text: str, status: int = 503) -> None:
        super().__init__(text)
        self.status = status


async def ask_http(probe: HttpProbe, ip: str, mark: int, source: Source | None = None) -> None:
    """Ask once, without a time limit; the app sees `source` if that can be.

    Raises ProbeFailed, and OSError if there is no connection."""
    url = f"{probe.scheme.lower()}://{_bracketed(ip)}:{probe.port}/{probe.path.lstrip('/')}"
    for _ in range(_MAX_REDIRECTS + 1):
        status, location = await _get(url, probe, mark, source)
        if not 200 <= status < 400:
            raise ProbeFailed(f"status {status}", status if status >= 400 else 503)
        onward = urljoin(url, location)
        if status < 300 or not location or urlsplit(onward).hostname != urlsplit(url).hostname:
            return
        url = onward
    raise ProbeFailed(f"more than {_MAX_REDIRECTS} redirects")


async def _get(url: str, probe: HttpProbe, mark: int, source: Source | None) -> tuple[int, str]:
    """The status, and the Location or ""."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ProbeFailed(f"a redirect to the scheme {parts.scheme!r}")
    secure = parts.scheme == "https"
    host = parts.hostname or ""
    port = parts.port or (443 if secure else 80)
    if port in OWN_PORTS:  # the app answers with where to ask next, and asking ourselves is a loop
        raise ProbeFailed(f"a redirect to podlink's own port {port}")
    reader, writer = await connect(host, port, mark, _context() if secure else None, source)
    with closing(writer):
        writer.write(_request(probe, parts.path, parts.query, f"{_bracketed(host)}:{port}"))
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as e:
            raise ProbeFailed("the connection ended before an answer") from e
        except asyncio.LimitOverrunError as e:
            raise ProbeFailed(f"an answer's head of more than {_MAX_HEAD} bytes") from e
    return _read(head)


async def connect(
    ip: str,
    port: int,
    mark: int,
    context: ssl.SSLContext | None = None,
    source: Source | None = None,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that capture lets pass; raises OSError."""
    try:
        sock = sockets.start_connect(ip, port, mark, source)
    except sockets.NotBound:
        sock = sockets.start_connect(ip, port, mark)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (ip, port))
        hostname = "" if context else None
        return await asyncio.open_connection(
            sock=sock, ssl=context, server_hostname=hostname, limit=_MAX_HEAD
        )
    except BaseException:
        sock.close()
        raise


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # as a kubelet: the probe asks whether the app lives
    return context


def _request(probe: HttpProbe, path: str, query: str, host: str) -> bytes:
    """(RFC 9112, section 3.) The probe's own headers replace those that a kubelet would send."""
    headers = {"host": host, **_DEFAULTS}
    own = [(name, value) for name, value in probe.headers if name.lower() != "host"]
    for name, value in probe.headers:
        if name.lower() == "host" and value:
            headers["host"] = value
        elif name.lower() in _DEFAULTS:
            headers.pop(name.lower(), None)
            if not value:  # an empty one says: send none
                own.remove((name, value))
    target = quote(path or "/", safe=_SAFE) + (f"?{quote(query, safe=_SAFE)}" if query else "")
    lines = [f"GET {target} HTTP/1.1", *(f"{n}: {v}" for n, v in [*headers.items(), *own])]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("utf-8")


def _read(head: bytes) -> tuple[int, str]:
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    code = rest[:3]
    if not version.startswith("HTTP/1.") or not (code.isascii() and code.isdigit()):
        raise ProbeFailed(f"no HTTP/1 answer: {first[:80]!r}")
    location = ""
    for line in lines:
        name, _, value = line.partition(":")
        if name.lower() == "location":
            location = value.strip()
    return int(code), location


def _bracketed(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip
