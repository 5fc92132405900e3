"""Kubernetes objects as plain dictionaries, and the few questions everybody asks of them."""

import datetime as dt
import hashlib
import json
from typing import Any

Object = dict[str, Any]
"""One Kubernetes object as the API sends it. What the store holds is shared: never change it."""


def name_of(obj: Object) -> str:
    return str(obj["metadata"]["name"])


def namespace_of(obj: Object) -> str:
    """The namespace, or "" for what has none."""
    return str(obj["metadata"].get("namespace", ""))


def uid_of(obj: Object) -> str:
    return str(obj["metadata"].get("uid", ""))


def labels_of(obj: Object) -> dict[str, str]:
    found: dict[str, str] = obj["metadata"].get("labels") or {}
    return found


def path_of(obj: Object) -> str:
    """`namespace/name` for messages."""
    namespace = namespace_of(obj)
    return f"{namespace}/{name_of(obj)}" if namespace else name_of(obj)


def dig(obj: Any, *keys: str, default: Any = None) -> Any:
    """The value below `keys`, or `default` where any of them is missing or null."""
    for key in keys:
        if not isinstance(obj, dict) or obj.get(key) is None:
            return default
        obj = obj[key]
    return obj


def is_terminating(obj: Object) -> bool:
    return "deletionTimestamp" in obj["metadata"]


def condition(obj: Object, kind: str) -> bool:
    """True if the status condition `kind` is "True"."""
    found = dig(obj, "status", "conditions", default=[])
    return any(c.get("type") == kind and c.get("status") == "True" for c in found)


def timestamp(when: dt.datetime) -> str:
    """metav1.Time: RFC 3339 in UTC, whole seconds."""
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def annotations_of(obj: Object) -> dict[str, str]:
    found: dict[str, str] = obj["metadata"].get("annotations") or {}
    return found


def template_hash(template: Object) -> str:
    """What a pod template is told apart by, in the labels of the pods made from it."""
    text = json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
