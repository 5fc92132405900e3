"""The figures that the bench reports, their goals, and how samples become a verdict. Pure.

A goal is a ratio to Envoy in the same run, because a ratio survives a noisy or slow machine; a few
are absolute. They are the ones of the design note, "Figures to reach".
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

PROXIES = ("none", "podlink", "envoy", "haproxy")
"""The order of the columns."""

Samples = Mapping[str, Mapping[str, Sequence[float]]]
"""Figure name to proxy name to one value per round."""


@dataclass(frozen=True)
class Kind:
    """One figure: what it is called, in which unit, and what podlink must reach."""

    name: str
    title: str
    unit: str
    better: Literal["lower", "higher"] = "lower"
    of_envoy: float | None = None
    """The ratio podlink / Envoy that must be reached."""
    absolute: float | None = None
    """The value in `unit` that must be reached."""

    @property
    def goal(self) -> str:
        """The goal as a person reads it; empty where there is none."""
        sign = "<=" if self.better == "lower" else ">="
        parts = []
        if self.of_envoy is not None:
            parts.append(f"{sign} {self.of_envoy:g} x Envoy")
        if self.absolute is not None:
            parts.append(f"{sign} {self.absolute:g} {self.unit}")
        return ", ".join(parts)


KINDS: tuple[Kind, ...] = (
    Kind("cpu_per_request", "CPU per request", "us", of_envoy=0.8),
    Kind("cpu_per_connection", "CPU per new connection", "us", of_envoy=0.25),
    Kind("connections_per_second", "New connections", "1/s", better="higher", of_envoy=3.0),
    Kind("cpu_per_gb", "CPU per GB, one stream", "s", of_envoy=1.0),
    Kind("p50_added", "p50 added at 1,000 requests/s", "us"),
    Kind("p99_added", "p99 added at 1,000 requests/s", "us", of_envoy=1.0),
    Kind("memory_idle", "Resident memory, idle", "MiB", of_envoy=0.65, absolute=45.0),
    Kind("memory_idle_anonymous", "of it anonymous", "MiB"),
    Kind("memory_loaded", "Resident memory after all loads", "MiB"),
    Kind("memory_per_link", "Memory per idle open link", "KiB", absolute=20.0),
    Kind("seconds_to_ready", "Process start to listening", "s", absolute=0.5),
    Kind("syscalls_per_request", "System calls per request", "1"),
    Kind("requests_per_second", "Requests, 64 connections", "1/s", better="higher"),
    Kind("p50", "p50 at 1,000 requests/s", "us"),
    Kind("p99", "p99 at 1,000 requests/s", "us"),
)


@dataclass(frozen=True)
class Value:
    """One proxy's figure: the median of its rounds, and half their range as a share of it."""

    median: float
    spread: float | None


class FigureJson(TypedDict):
    """One figure in bench/out/latest.json."""

    name: str
    title: str
    unit: str
    better: str
    none: float | None
    podlink: float | None
    envoy: float | None
    haproxy: float | None
    spread: dict[str, float]
    ratio: float | None
    goal: str
    met: bool | None


@dataclass(frozen=True)
class Figure:
    """A figure measured: a value for each proxy that ran."""

    kind: Kind
    values: Mapping[str, Value]

    @property
    def ratio(self) -> float | None:
        """podlink / Envoy; None where one is missing or a ratio would mean nothing.

        Added latency is a difference of two measurements: with nothing measurable added by Envoy,
        it may be zero or less.
        """
        ours, theirs = self.values.get("podlink"), self.values.get("envoy")
        if ours is None or theirs is None or ours.median <= 0 or theirs.median <= 0:
            return None
        return ours.median / theirs.median

    @property
    def met(self) -> bool | None:
        """Whether podlink reached every goal of this figure; None if that was not measured."""
        kind, ours, theirs = self.kind, self.values.get("podlink"), self.values.get("envoy")
        bounds = [] if kind.absolute is None else [kind.absolute]
        if kind.of_envoy is not None:
            if theirs is None:
                return None
            bounds.append(kind.of_envoy * theirs.median)
        if ours is None or not bounds:
            return None
        if kind.better == "lower":
            return all(ours.median <= bound for bound in bounds)
        return all(ours.median >= bound for bound in bounds)

    def as_json(self) -> FigureJson:
        medians = {
            name: _rounded(self.values[name].median) if name in self.values else None
            for name in PROXIES
        }
        ratio = self.ratio
        return {
            "name": self.kind.name,
            "title": self.kind.title,
            "unit": self.kind.unit,
            "better": self.kind.better,
            "none": medians["none"],
            "podlink": medians["podlink"],
            "envoy": medians["envoy"],
            "haproxy": medians["haproxy"],
            "spread": {
                name: round(value.spread, 3)
                for name, value in self.values.items()
                if value.spread is not None
            },
            "ratio": None if ratio is None else _rounded(ratio),
            "goal": self.kind.goal,
            "met": self.met,
        }


def summarise(samples: Sequence[float]) -> Value:
    """The median and the spread of one proxy's rounds; at least one sample is needed."""
    median = statistics.median(samples)
    if len(samples) < 2 or median == 0:
        return Value(median, None)
    return Value(median, (max(samples) - min(samples)) / 2 / abs(median))


def figures(samples: Samples) -> list[Figure]:
    """Every figure of KINDS that has a sample, in that order."""
    return [
        Figure(kind, {proxy: summarise(got) for proxy, got in samples[kind.name].items() if got})
        for kind in KINDS
        if samples.get(kind.name)
    ]


def added(latency: Sequence[float], bare: Sequence[float]) -> list[float]:
    """Latency that a proxy adds, round by round: each round is compared with its own bare path."""
    return [whole - without for whole, without in zip(latency, bare, strict=True)]


def _rounded(value: float) -> float:
    """Three significant digits below 100, whole numbers from 100 on: all that a run supports."""
    return round(value) if abs(value) >= 100 else float(f"{value:.3g}")
