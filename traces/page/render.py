"""Templates to HTML. Everything is escaped, and what no eye should meet is spelled out."""

import datetime as dt
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

import jinja2
from markupsafe import Markup

from kit.printable import printable
from traces.edges import Edge, Way
from traces.page.graph import short
from traces.page.reasons import in_words
from traces.shortfalls import ago, counted
from traces.views import Bar

FOLDER: Final = Path(__file__).parent
STATIC: Final = FOLDER / "static"
KINDS: Final = {
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".LICENSE": "text/plain",
}
MARKS: Final = {
    "mtls": ("■", "mTLS"),
    "self": ("○", "self"),
    "mixed": ("◐", "mixed"),
    "plaintext": ("▲", "plaintext"),
    "denied": ("✕", "denied"),
    "failed": ("!", "failed"),
    "audited": ("◇", "audited"),
    "certificate": ("§", "certificate"),
    "no sidecar": ("▲", "no sidecar"),
    "first seen": ("✳", "first seen"),
    "valid": ("■", "valid"),
    "due": ("!", "renewal overdue"),
    "expired": ("✕", "expired"),
    "refused": ("✕", "refused"),
    "banned": ("✕", "banned"),
    "kept": ("■", "kept"),
    "cut": ("✕", "cut"),
    "opened": ("✳", "newly allowed"),
    "still": ("✕", "still denied"),
    "audit": ("◇", "audit only"),
}
"""Sign and word of each badge: colour is never the only mark."""


def finalize(value: object) -> object:
    """Escaping keeps text from being markup; this keeps it from turning the line around."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def lines(text: str) -> Markup:
    """Text of several lines, each made printable; for `pre` and `textarea`."""
    return Markup("\n").join(printable(line) for line in text.replace("\t", "    ").split("\n"))


def badge(state: str) -> Markup:
    mark, word = MARKS.get(state, ("?", printable(state)))
    return Markup('<span class="badge {}"><span aria-hidden="true">{}</span> {}</span>').format(
        state.replace(" ", "-") if state in MARKS else "unknown", mark, word
    )


def when(unix_ns: int) -> Markup:
    """A moment, to the second, in UTC."""
    try:
        at = dt.datetime.fromtimestamp(int(unix_ns) // 10**9, dt.UTC)
    except (ValueError, OverflowError, OSError):
        return Markup("<span>{}</span>").format(unix_ns)
    return Markup('<time datetime="{}Z">{}</time>').format(
        f"{at:%Y-%m-%dT%H:%M:%S}", f"{at:%Y-%m-%d %H:%M:%S}"
    )


def size(count: float) -> str:
    number = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def grouped(count: int) -> Markup:
    """12 345, with a thin space that does not break."""
    return Markup(f"{int(count):,}".replace(",", "&#8239;"))  # noqa: S704 - a number


def pct(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} %" if value in (0, 100) else f"{value:.1f} %"


def bars(found: list[Bar], height: int = 64) -> list[dict[str, object]]:
    """Rectangles of the timeline: what needs a look stands at the bottom, where it shows."""
    most = max((sum(bar.links.values()) for bar in found), default=0) or 1
    drawn: list[dict[str, object]] = []
    for i, bar in enumerate(found):
        top = float(height)
        for state in ("denied", "plaintext", "failed", "mtls", "self"):
            count = bar.links.get(state, 0)
            if not count:
                continue
            tall = max(2.0, height * count / most)
            top -= tall
            drawn.append({"x": i * 10, "y": round(top, 1), "h": round(tall, 1), "state": state})
    return drawn


def bar_label(bar: Bar) -> str:
    said = ", ".join(f"{count} {state}" for state, count in bar.links.items()) or "nothing"
    return f"{dt.datetime.fromtimestamp(bar.start_s, dt.UTC):%Y-%m-%d %H:%M}: {said}"


@cache
def static_files() -> Mapping[str, tuple[bytes, str, str]]:
    """Name to content, kind and a short hash, which stands in the address."""
    return {
        path.name: (
            content := path.read_bytes(),
            KINDS[path.suffix],
            hashlib.sha256(content).hexdigest()[:16],
        )
        for path in sorted(STATIC.iterdir())
        if path.suffix in KINDS
    }


def static(name: str) -> str:
    """The address of a static file, beside whatever page is shown."""
    return f"static/{name}?{static_files()[name][2]}"


def _environment() -> jinja2.Environment:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalize,
        cache_size=50,
        auto_reload=False,
    )
    env.globals.update(static=static, badge=badge, bars=bars, bar_label=bar_label)
    env.filters.update(
        lines=lines,
        when=when,
        ago=ago,
        counted=counted,
        size=size,
        grouped=grouped,
        pct=pct,
        short=short,
        in_words=in_words,
    )
    return env


_ENV: Final = _environment()


def render(template: str, context: Mapping[str, object]) -> str:
    return _ENV.get_template(template).render(context)


def edge_row(edge: Edge) -> dict[str, object]:
    """An edge as a row of CSV or JSON."""
    coverage = edge.protected_percent
    return {
        "source": edge.source.name,
        "source_kind": edge.source.kind,
        "source_namespace": edge.source.namespace,
        "destination": edge.destination.name,
        "destination_kind": edge.destination.kind,
        "destination_namespace": edge.destination.namespace,
        "services": list(edge.services),
        "port": edge.port,
        "state": edge.state,
        "mtls_percent": coverage,
        "links": edge.links,
        **{f"links_{s}": edge.count(s) for s in ("mtls", "plaintext", "denied", "failed", "self")},
        "bytes": edge.size_bytes,
        "first": iso_second(edge.first_ns),
        "last": iso_second(edge.last_ns),
        "last_trace": edge.last_trace,
    }


def way_row(edge: Edge, way: Way) -> dict[str, object]:
    """One way of an edge as a row of CSV or JSON."""
    return {
        "source": edge.source.name,
        "source_namespace": edge.source.namespace,
        "destination": edge.destination.name,
        "destination_namespace": edge.destination.namespace,
        "services": list(edge.services),
        "port": edge.port,
        "security": way.security,
        "verdict": way.verdict,
        "reasons": list(way.reasons),
        "policies": list(way.policies),
        "nearest_rules": list(way.nearest),
        "links": way.count,
        "bytes_sent": way.bytes_sent,
        "bytes_received": way.bytes_received,
        "first": iso_second(way.first_ns),
        "last": iso_second(way.last_ns),
        "last_trace": way.last_trace,
    }


def iso_second(unix_ns: int) -> str:
    try:
        return f"{dt.datetime.fromtimestamp(unix_ns // 10**9, dt.UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):
        return str(unix_ns)
