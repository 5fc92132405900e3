"""The table that a run prints. Pure: figures in, text out."""

from collections.abc import Sequence

from bench.figures import PROXIES, Figure

_FOOTNOTES = (
    "Two proxies in the path, TLS 1.3, both sides verified. CPU is of whole processes, both\n"
    "  proxies of a pair together; memory is the mean of the two.",
    "Medians of the rounds; +- is half the range of the rounds.",
    "Envoy and HAProxy make a full handshake for each new connection (tcp_proxy and TCP mode do not"
    " pool;\n  resumption is off); podlink takes an idle tunnel from its pool when one is there.",
    "HAProxy checks the chain only; Envoy and podlink also check the identity in the peer's leaf.",
)


def render(figures: Sequence[Figure]) -> str:
    """A plain text table of every figure, with ratios to Envoy and verdicts, and its footnotes."""
    rows = [["figure", "unit", *PROXIES, "ratio", "goal", "met"]]
    for figure in figures:
        ratio = figure.ratio
        rows.append(
            [
                figure.kind.title,
                figure.kind.unit,
                *(_cell(figure, proxy) for proxy in PROXIES),
                "" if ratio is None else f"{ratio:.2f}",
                figure.kind.goal,
                {True: "yes", False: "NO", None: ""}[figure.met],
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [_line(row, widths) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, "", *(f"* {note}" for note in _FOOTNOTES)])


def _cell(figure: Figure, proxy: str) -> str:
    value = figure.values.get(proxy)
    if value is None:
        return "-"
    spread = "" if value.spread is None else f" +-{value.spread:.0%}"
    return _number(value.median) + spread


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    left = {0, 1, len(row) - 2, len(row) - 1}  # words to the left, numbers to the right
    cells = (
        cell.ljust(width) if column in left else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join(cells).rstrip()
