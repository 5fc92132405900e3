"""The last run as the table of README.md and docs/performance.md: `python -m bench.markdown`."""

import json
from typing import Final

from bench.__main__ import OUT
from bench.figures import FigureJson

ROWS: Final = {
    "cpu_per_connection": ("CPU per new connection", "us", "0.25"),
    "connections_per_second": ("new connections per second", "", "3"),
    "cpu_per_request": ("CPU per request, 64 kept-alive connections", "us", "0.8"),
    "cpu_per_gb": ("CPU per GB, one bulk stream", "s", "1.0"),
    "p99_added": ("p99 added at 1,000 requests/s", "us", "1.0"),
    "memory_idle": ("resident memory of an idle sidecar", "MiB", "0.65"),
    "memory_loaded": ("resident memory after all loads", "MiB", ""),
    "memory_per_link": ("memory per idle open link", "KiB", "20 KiB"),
    "seconds_to_ready": ("start to listening", "s", "0.5 s"),
}


def row(figure: FigureJson) -> str:
    """One line of the table."""
    title, unit, goal = ROWS[figure["name"]]
    values = (figure["podlink"], figure["envoy"], figure["haproxy"])
    names = ("podlink", "envoy", "haproxy")
    cells = [_cell(v, unit, figure["spread"].get(n)) for v, n in zip(values, names, strict=True)]
    ratio = figure["ratio"]
    told = "" if ratio is None or figure["name"] == "seconds_to_ready" else f"**{ratio:.2f}**"
    return f"| {title} | {' | '.join(cells)} | {told} | {goal} |"


def _cell(value: float | None, unit: str, spread: float | None) -> str:
    if value is None:
        return "-"
    number = f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return f"{number} {unit}".strip() + (
        "" if spread is None else f" ±{spread:.0%}".replace("%", " %")
    )


if __name__ == "__main__":
    measured = {figure["name"]: figure for figure in json.loads(OUT.read_text())["figures"]}
    print("| | podlink | Envoy | HAProxy | podlink / Envoy | goal |\n|---|---|---|---|---|---|")
    for name in ROWS:
        if name in measured:
            print(row(measured[name]))
