"""The three ways to patch an object: JSON patch, merge patch and a strategic merge patch. Pure.

Strategic merge follows the Kubernetes document "Strategic Merge Patch" for the lists that have a
merge key there; lists without one are replaced. Its `$patch`, `$setElementOrder`, `$retainKeys` and
`$deleteFromPrimitiveList` directives are understood.
"""

import copy
from typing import Any

from local.errors import ApiError

_MERGE_KEYS = {
    "containers": ("name",),
    "initContainers": ("name",),
    "ephemeralContainers": ("name",),
    "volumes": ("name",),
    "env": ("name",),
    "volumeMounts": ("mountPath",),
    "imagePullSecrets": ("name",),
    "hostAliases": ("ip",),
    "ports": ("containerPort", "port"),  # a container's, a Service's
    "conditions": ("type",),
    "webhooks": ("name",),
    "ownerReferences": ("uid",),
    "secrets": ("name",),
    "addresses": ("type",),
}
_PRIMITIVE_LISTS = frozenset({"finalizers"})


def json_patch(obj: Any, operations: Any) -> Any:
    """RFC 6902. Raises ApiError Invalid naming the operation that failed."""
    if not isinstance(operations, list):
        raise ApiError(400, "BadRequest", "a JSON patch must be a list of operations")
    result = copy.deepcopy(obj)
    for number, operation in enumerate(operations):
        try:
            result = _operate(result, operation)
        except (KeyError, IndexError, ValueError, TypeError) as e:
            raise ApiError(422, "Invalid", f"JSON patch operation {number}: {e!r}") from e
    return result


def _operate(document: Any, operation: dict[str, Any]) -> Any:
    kind, path = operation["op"], _pointer(operation["path"])
    if kind == "test":
        if _at(document, path) != operation["value"]:
            raise ValueError(f"test failed at {operation['path']}")
        return document
    if kind in ("move", "copy"):
        origin = _pointer(operation["from"])
        value = copy.deepcopy(_at(document, origin))
        if kind == "move":
            document = _remove(document, origin)
        return _add(document, path, value)
    if kind == "remove":
        return _remove(document, path)
    if kind == "replace":
        _at(document, path)
        return _add(_remove(document, path), path, operation["value"])
    if kind == "add":
        return _add(document, path, operation["value"])
    raise ValueError(f"unknown op {kind!r}")


def _pointer(text: str) -> list[str]:
    """RFC 6901."""
    if text and not text.startswith("/"):
        raise ValueError(f"path {text!r} must begin with /")
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _at(document: Any, path: list[str]) -> Any:
    for part in path:
        document = document[int(part)] if isinstance(document, list) else document[part]
    return document


def _add(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent, last = _at(document, path[:-1]), path[-1]
    if isinstance(parent, list):
        index = len(parent) if last == "-" else int(last)
        if not 0 <= index <= len(parent):
            raise IndexError(f"index {last} is out of bounds")
        parent.insert(index, value)
    else:
        parent[last] = value
    return document


def _remove(document: Any, path: list[str]) -> Any:
    if not path:
        return None
    parent, last = _at(document, path[:-1]), path[-1]
    if isinstance(parent, list):
        del parent[int(last)]
    else:
        del parent[last]
    return document


def merge_patch(obj: Any, change: Any) -> Any:
    """RFC 7386."""
    if not isinstance(change, dict):
        return change
    result = dict(obj) if isinstance(obj, dict) else {}
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def strategic_merge(obj: Any, change: Any) -> Any:
    """Merge as kubectl apply asks for with built-in kinds."""
    if not isinstance(change, dict):
        return change
    if change.get("$patch") == "replace":
        return {k: v for k, v in change.items() if k != "$patch"}
    if change.get("$patch") == "delete":
        return {}
    result = dict(obj) if isinstance(obj, dict) else {}
    if "$retainKeys" in change:
        result = {k: v for k, v in result.items() if k in change["$retainKeys"]}
    for key, value in change.items():
        if key.startswith("$"):
            _directive(result, key, value)
        elif value is None:
            result.pop(key, None)
        elif isinstance(value, list):
            result[key] = _merge_list(key, result.get(key), value)
        else:
            result[key] = strategic_merge(result.get(key), value)
    return result


def _directive(result: dict[str, Any], key: str, value: Any) -> None:
    name, _, field = key.partition("/")
    if name == "$deleteFromPrimitiveList":
        result[field] = [item for item in result.get(field) or [] if item not in value]


def _merge_list(key: str, old: Any, change: list[Any]) -> list[Any]:
    if key in _PRIMITIVE_LISTS:
        present = list(old or [])
        return present + [item for item in change if item not in present]
    merge_key = _merge_key(key, [*(old or []), *change])
    if merge_key is None:
        return change
    replaced = any(isinstance(item, dict) and item.get("$patch") == "replace" for item in change)
    result = [] if replaced else list(old or [])
    for item in change:
        if "$patch" in item and item["$patch"] == "replace":
            continue
        found = next(
            (n for n, o in enumerate(result) if o.get(merge_key) == item.get(merge_key)), None
        )
        if item.get("$patch") == "delete":
            if found is not None:
                del result[found]
        elif found is None:
            result.append(strategic_merge({}, item))
        else:
            result[found] = strategic_merge(result[found], item)
    return result


def _merge_key(key: str, items: list[Any]) -> str | None:
    if not all(isinstance(item, dict) for item in items):
        return None
    named = [item for item in items if item.get("$patch") != "replace"]
    for candidate in _MERGE_KEYS.get(key, ()):
        if all(candidate in item for item in named):
            return candidate
    return None
