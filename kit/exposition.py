"""Metrics as plain values, and as the text that Prometheus reads. Pure.

(Prometheus, "Exposition formats", text format 0.0.4.)
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Merge = Literal["sum", "max", "min"]
Labels = tuple[str, ...]
"""Values of a metric's labels, in the order in which its `Metric` names them."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A name with what it means. `merge` says how the values of several workers make one."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    merge: Merge = "sum"


@dataclass(slots=True)
class Family:
    """One metric with its samples now. A histogram's samples carry `le` as their last label, "+Inf"
    among them, and `sums` what was measured in all."""

    metric: Metric
    samples: dict[Labels, float] = field(default_factory=dict)
    sums: dict[Labels, float] = field(default_factory=dict)


Samples = float | Mapping[Labels, float]
"""A number, or one for each tuple of label values."""


def one(metric: Metric, value: float) -> Family:
    return Family(metric, {(): value})


def family(metric: Metric, found: Samples) -> Family:
    return Family(metric, dict(found) if isinstance(found, Mapping) else {(): found})


def text(families: Iterable[Family]) -> str:
    """The exposition, sorted by name."""
    lines: list[str] = []
    for family in sorted(families, key=lambda each: each.metric.name):
        metric = family.metric
        lines.append(f"# HELP {metric.name} {_escaped(metric.help, quotes=False)}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        if metric.kind == "histogram":
            lines.extend(_histogram(family))
        else:
            for labels, value in sorted(family.samples.items()):
                lines.append(f"{metric.name}{_labels(metric.labels, labels)} {_number(value)}")
    return "\n".join(lines) + "\n"


def _histogram(family: Family) -> Iterable[str]:
    name, labels = family.metric.name, family.metric.labels
    for key, count in family.samples.items():  # in the order of their buckets
        yield f"{name}_bucket{_labels((*labels, 'le'), key)} {_number(count)}"
    for key, total in sorted(family.sums.items()):
        yield f"{name}_sum{_labels(labels, key)} {_number(total)}"
        yield f"{name}_count{_labels(labels, key)} {_number(family.samples[(*key, '+Inf')])}"


def _labels(names: Sequence[str], values: Labels) -> str:
    if not names:
        return ""
    pairs = (f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))
    return "{" + ",".join(pairs) + "}"


def _escaped(raw: str, *, quotes: bool = True) -> str:
    found = raw.replace("\\", "\\\\").replace("\n", "\\n")
    return found.replace('"', '\\"') if quotes else found


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
