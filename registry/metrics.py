"""The registry's metrics. Counts only: no name of a pod, a namespace or an identity."""

from collections.abc import Mapping

from kit.exposition import Metric, Samples, family, text

METRICS = (
    Metric(
        "podlink_registry_fields_refused",
        "gauge",
        "Fields of the cluster's objects that are left out now, by kind and reason.",
        ("kind", "reason"),
    ),
    Metric(
        "podlink_registry_objects_unreadable",
        "gauge",
        "Objects that count as absent now, by kind.",
        ("kind",),
    ),
    Metric(
        "podlink_registry_endpoints_refused",
        "gauge",
        "Addresses of Services that are no endpoints now, by reason.",
        ("reason",),
    ),
    Metric(
        "podlink_registry_keys_refused_total",
        "counter",
        "Questions of sidecars that are not answered, by reason.",
        ("reason",),
    ),
    Metric(
        "podlink_registry_answers_cut_total",
        "counter",
        "Answers that were made smaller because no message would have held them.",
    ),
    Metric("podlink_registry_streams", "gauge", "Streams of sidecars that are open."),
    Metric(
        "podlink_registry_streams_refused_total",
        "counter",
        "Streams refused, by reason.",
        ("reason",),
    ),
)
_BY_NAME = {metric.name: metric for metric in METRICS}


def render(values: Mapping[str, Samples]) -> str:
    """The page for `/metrics`, of names without `podlink_registry_`; KeyError for an unknown one."""
    return text(family(_BY_NAME[f"podlink_registry_{name}"], v) for name, v in values.items())
