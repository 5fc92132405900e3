"""The CA's metrics in Prometheus' text format. Counts and times only: no name of a pod or identity.

(Prometheus, "Exposition formats"; docs/metrics.md lists them and a test compares.)
"""

from collections.abc import Mapping

from kit.exposition import Metric, family, text

METRICS = (
    Metric("podlink_ca_certificates_issued_total", "counter", "Leaves signed."),
    Metric("podlink_ca_calls_refused_total", "counter", "Calls refused, by reason.", ("reason",)),
    Metric("podlink_ca_calls_in_work", "gauge", "Calls in admission now."),
    Metric("podlink_ca_calls_in_work_peak", "gauge", "The most that there were at once."),
    Metric("podlink_ca_watchers", "gauge", "Streams that follow the bundle."),
    Metric("podlink_ca_watchers_behind", "gauge", "Of these, on an older bundle."),
    Metric("podlink_ca_leaves_living", "gauge", "Leaves in this CA's book that have not ended."),
    Metric("podlink_ca_leaves_overdue", "gauge", "Of these, past two thirds of their life."),
    Metric("podlink_ca_bundle_generation", "gauge", "Generation of the bundle."),
    Metric("podlink_ca_roots", "gauge", "Roots in the bundle."),
    Metric("podlink_ca_signer_expires_seconds", "gauge", "Until the signer's chain ends."),
    Metric("podlink_ca_bans", "gauge", "Bans in force."),
    Metric(
        "podlink_ca_rotation_phase", "gauge", "1 for the phase that a rotation is in.", ("phase",)
    ),
    Metric("podlink_ca_namespaces_unpublished", "gauge", "Namespaces without the present bundle."),
    Metric("podlink_ca_spans_dropped_total", "counter", "Spans that found no room."),
)
_BY_NAME = {metric.name: metric for metric in METRICS}
Values = Mapping[str, float | Mapping[str, float]]
"""Metric name without its prefix `podlink_ca_` -> a number, or one for each label value."""


def render(values: Values) -> str:
    """The page for `/metrics`; raises KeyError for a metric that is not in METRICS."""
    return text(
        family(_BY_NAME[f"podlink_ca_{name}"], _samples(found)) for name, found in values.items()
    )


def _samples(found: float | Mapping[str, float]) -> float | Mapping[tuple[str, ...], float]:
    return {(key,): n for key, n in found.items()} if isinstance(found, Mapping) else found
