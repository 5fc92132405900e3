"""Metrics in Prometheus' text format, for programs that have few. Pure.

(Prometheus, "Exposition formats", 0.0.4.)
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Labels = tuple[str, ...]
Samples = float | Mapping[Labels, float]
"""A number, or one for each tuple of label values."""


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: Labels = ()
    """Names, in the order of the values of a sample."""


def text(metric: Metric, found: Samples) -> str:
    """The lines of one metric."""
    head = f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {metric.kind}\n"
    if not isinstance(found, Mapping):
        return f"{head}{metric.name} {found:g}\n"
    return head + "".join(_lines(metric, found.items()))


def _lines(metric: Metric, items: Iterable[tuple[Labels, float]]) -> Iterable[str]:
    for values, number in sorted(items):
        pairs = zip(metric.labels, values, strict=True)
        said = ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)
        yield f"{metric.name}{{{said}}} {number:g}\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
