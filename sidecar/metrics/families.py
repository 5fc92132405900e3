"""Metrics as plain values: added up over workers, and as the text that Prometheus reads. Pure.

Format: Prometheus text exposition 0.0.4.
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


def one(metric: Metric, value: float) -> Family:
    return Family(metric, {(): value})


def merged(families: Iterable[Family]) -> list[Family]:
    """The families of several workers as those of one process."""
    found: dict[str, Family] = {}
    for family in families:
        into = found.setdefault(family.metric.name, Family(family.metric))
        for labels, value in family.samples.items():
            old = into.samples.get(labels)
            into.samples[labels] = value if old is None else _join(family.metric.merge, old, value)
        for labels, value in family.sums.items():
            into.sums[labels] = into.sums.get(labels, 0.0) + value
    return list(found.values())


def _join(merge: Merge, a: float, b: float) -> float:
    return a + b if merge == "sum" else max(a, b) if merge == "max" else min(a, b)


def to_wire(families: Iterable[Family]) -> list[object]:
    """Values that JSON can carry from a worker."""
    return [
        [
            family.metric.name,
            [[list(labels), value] for labels, value in family.samples.items()],
            [[list(labels), value] for labels, value in family.sums.items()],
        ]
        for family in families
    ]


def from_wire(raw: Iterable[Sequence[object]], known: Mapping[str, Metric]) -> list[Family]:
    """What `to_wire` made; a metric that is not known is left out."""
    found = []
    for name, samples, sums in raw:
        metric = known.get(str(name))
        if metric is not None:
            found.append(Family(metric, _values(samples), _values(sums)))
    return found


def _values(raw: object) -> dict[Labels, float]:
    assert isinstance(raw, list)
    return {tuple(map(str, labels)): float(value) for labels, value in raw}


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
