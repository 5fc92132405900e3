"""The structural schema of a custom resource: what it fills in, prunes and refuses. Pure.

The subset of OpenAPI v3 that CustomResourceDefinitions allow, but for CEL rules
(`x-kubernetes-validations`), which are not evaluated here (Kubernetes, "Extend the API with
CustomResourceDefinitions": structural schemas, pruning, defaulting).
"""

import re
from collections.abc import Iterator
from typing import Any

from local.objects import Object

Schema = dict[str, Any]
_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}
_KEEP = "x-kubernetes-preserve-unknown-fields"


def conform(schema: Schema, value: Any) -> Any:
    """A copy of `value` with defaults filled in and unknown fields pruned."""
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        others = schema.get("additionalProperties")
        kept: Object = {}
        for key, inner in value.items():
            if key in properties:
                kept[key] = conform(properties[key], inner)
            elif isinstance(others, dict):
                kept[key] = conform(others, inner)
            elif schema.get(_KEEP) or not (properties or "type" in schema):
                kept[key] = inner
        for key, inner in properties.items():
            if key not in kept and "default" in inner:
                kept[key] = inner["default"]
        return kept
    if isinstance(value, list):
        return [conform(schema.get("items", {}), inner) for inner in value]
    return value


def faults(schema: Schema, value: Any, path: str) -> Iterator[tuple[str, str]]:
    """What is wrong with `value`: (field, problem), in the words of the API server."""
    expected = schema.get("type")
    if expected is not None:
        right = isinstance(value, _TYPES[expected])
        if not right or (isinstance(value, bool) and expected != "boolean"):
            yield path, f"Invalid value: {_show(value)}: must be of type {expected}"
            return
    if "enum" in schema and value not in schema["enum"]:
        listed = ", ".join(f'"{one}"' for one in schema["enum"])
        yield path, f"Unsupported value: {_show(value)}: supported values: {listed}"
    if isinstance(value, str):
        yield from _text(schema, value, path)
    elif isinstance(value, int | float):
        if value < schema.get("minimum", value) or value > schema.get("maximum", value):
            least, most = schema.get("minimum"), schema.get("maximum")
            yield path, f"Invalid value: {value}: should be from {least} to {most}"
    elif isinstance(value, list):
        yield from _size(schema, len(value), path, "Items", "items")
        for number, inner in enumerate(value):
            yield from faults(schema.get("items", {}), inner, f"{path}[{number}]")
    elif isinstance(value, dict):
        yield from _map(schema, value, path)


def _text(schema: Schema, value: str, path: str) -> Iterator[tuple[str, str]]:
    yield from _size(schema, len(value), path, "Length", "characters")
    pattern = schema.get("pattern")
    if pattern is not None and re.search(pattern.replace("$", r"\Z"), value, re.ASCII) is None:
        yield path, f"Invalid value: {_show(value)}: should match '{pattern}'"


def _map(schema: Schema, value: Object, path: str) -> Iterator[tuple[str, str]]:
    yield from _size(schema, len(value), path, "Properties", "properties")
    for key in schema.get("required", ()):
        if key not in value:
            yield f"{path}.{key}".lstrip("."), "Required value"
    properties, others = schema.get("properties", {}), schema.get("additionalProperties")
    for key, inner in value.items():
        known = properties.get(key, others if isinstance(others, dict) else None)
        if known is not None:
            yield from faults(known, inner, f"{path}.{key}".lstrip("."))


def _size(schema: Schema, size: int, path: str, what: str, words: str) -> Iterator[tuple[str, str]]:
    least, most = schema.get(f"min{what}", 0), schema.get(f"max{what}", size)
    if not least <= size <= most:
        yield path, f"Invalid value: has {size} {words}, must be from {least} to {most}"


def _show(value: Any) -> str:
    return repr(value)[:80]
