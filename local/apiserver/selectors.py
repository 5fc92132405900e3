"""Label and field selectors, in a URL and in an object. Pure."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from local.errors import ApiError
from local.objects import Object, dig, labels_of

Match = Callable[[Object], bool]

_CLAUSE = re.compile(
    r"\s*(?:(?P<absent>!)\s*(?P<gone>[\w./-]+)"
    r"|(?P<key>[\w./-]+)\s*(?:(?P<op>==|=|!=)\s*(?P<value>[\w./:-]*)"
    r"|\s+(?P<set>in|notin)\s*\((?P<values>[^)]*)\))?)\s*(?:,|$)"
)
_FIELDS = {
    "metadata.name": ("metadata", "name"),
    "metadata.namespace": ("metadata", "namespace"),
    "metadata.uid": ("metadata", "uid"),
    "spec.nodeName": ("spec", "nodeName"),
    "spec.serviceAccountName": ("spec", "serviceAccountName"),
    "spec.restartPolicy": ("spec", "restartPolicy"),
    "status.phase": ("status", "phase"),
    "status.podIP": ("status", "podIP"),
    "type": ("type",),
    "reason": ("reason",),
    "involvedObject.name": ("involvedObject", "name"),
    "involvedObject.namespace": ("involvedObject", "namespace"),
    "involvedObject.kind": ("involvedObject", "kind"),
    "involvedObject.uid": ("involvedObject", "uid"),
}


def labels_from_query(text: str) -> Match:
    """`a=b,c!=d,e in (f,g),h,!i`. Raises ApiError BadRequest for anything else."""
    clauses: list[Callable[[Mapping[str, str]], bool]] = []
    at = 0
    while at < len(text):
        found = _CLAUSE.match(text, at)
        if found is None or found.end() == at:
            raise ApiError(400, "BadRequest", f"labelSelector: cannot read {text[at:80]!r}")
        clauses.append(_clause(found))
        at = found.end()
    return lambda obj: all(clause(labels_of(obj)) for clause in clauses)


def _clause(found: re.Match[str]) -> Callable[[Mapping[str, str]], bool]:
    key, value = found["key"], found["value"]
    if found["absent"]:
        return lambda labels: found["gone"] not in labels
    if found["set"]:
        values = {v.strip() for v in found["values"].split(",")}
        if found["set"] == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if found["op"] is None:
        return lambda labels: key in labels
    if found["op"] == "!=":
        return lambda labels: labels.get(key) != value
    return lambda labels: labels.get(key) == value


def fields_from_query(text: str) -> Match:
    """`metadata.name=x,spec.nodeName!=y`, for the fields this server knows."""
    wanted: list[tuple[tuple[str, ...], str, bool]] = []
    for clause in filter(None, text.split(",")):
        field, _, value = clause.partition("=")
        equal = not field.endswith("!")
        path = _FIELDS.get(field.rstrip("!"))
        if path is None:
            raise ApiError(400, "BadRequest", f"fieldSelector: {field[:80]!r} is not supported")
        wanted.append((path, value.removeprefix("="), equal))
    return lambda obj: all(
        (str(dig(obj, *path, default="")) == value) == equal for path, value, equal in wanted
    )


def labels_from_object(selector: Any) -> Match:
    """metav1.LabelSelector (matchLabels, matchExpressions). None or empty matches everything."""
    equal = dig(selector, "matchLabels", default={})
    expressions = dig(selector, "matchExpressions", default=[])

    def match(obj: Object) -> bool:
        labels = labels_of(obj)
        return all(labels.get(k) == v for k, v in equal.items()) and all(
            _expression(e, labels) for e in expressions
        )

    return match


def _expression(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values") or ()
    match expression["operator"]:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
    raise ApiError(422, "Invalid", f"matchExpressions.operator: {expression['operator']!r}")
