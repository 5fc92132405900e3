"""Metrics of several workers, made one, and on their way between processes. Pure."""

from collections.abc import Iterable, Mapping, Sequence

from kit.exposition import Family, Labels, Merge, Metric


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
