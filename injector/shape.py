"""What of a pod podlink looks at, and of which type each field is. Pure.

The API server has decoded a pod before it asks; a manifest on a laptop and whoever else calls the
webhook have not. So the fields that the other modules read are checked here, once and first: after that
a container is a map with a name, and a port a number.
"""

from collections.abc import Mapping
from typing import Any, Final

from injector.guard import PodRefused
from kit.checked import MAX_DEPTH, is_deep, shown

TEXT, NUMBER, BOOL, ANY = "a text", "a whole number", "true or false", "anything"
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    TEXT: (str,),
    NUMBER: (int,),
    BOOL: (bool,),
    ANY: (object,),
}
_EVERY: Final = "*"
"""In a shape: whatever the field is called."""
_NAMED: Final = "name"
"""In an item of a list it must be there."""
_UNNAMED: Final = "name?"
"""In an item of a list it need not."""

Shape = Any
"""One of the words above; a list of one shape; or a map of fields to shapes."""

_TEXTS: Final = {_EVERY: TEXT}
_IDS: Final = {
    "runAsUser": NUMBER,
    "runAsGroup": NUMBER,
    "fsGroup": NUMBER,
    "supplementalGroups": [NUMBER],
}
_ACTIONS: Final = {
    "httpGet": {
        "path": TEXT,
        "port": ANY,
        "host": TEXT,
        "scheme": TEXT,
        "httpHeaders": [{_NAMED: TEXT, "value": TEXT}],
    },
    "tcpSocket": {"port": ANY, "host": TEXT},
    "grpc": {"port": ANY, "service": TEXT},
}
_PROBE: Final = {**_ACTIONS, "timeoutSeconds": NUMBER}
_CONTAINER: Final = {
    _NAMED: TEXT,
    "command": [TEXT],
    "env": [{_NAMED: TEXT, "value": TEXT}],
    "ports": [{_UNNAMED: TEXT, "containerPort": NUMBER, "protocol": TEXT}],
    "securityContext": {**_IDS, "privileged": BOOL, "capabilities": {"add": [TEXT]}},
    "volumeMounts": [{_NAMED: TEXT}],
    "startupProbe": _PROBE,
    "livenessProbe": _PROBE,
    "readinessProbe": _PROBE,
    "lifecycle": {"postStart": _ACTIONS, "preStop": _ACTIONS},
    "targetContainerName": TEXT,
    "resources": {"requests": {}, "limits": {}},
}
POD: Final = {
    "metadata": {
        "name": TEXT,
        "generateName": TEXT,
        "annotations": _TEXTS,
        "labels": _TEXTS,
        "ownerReferences": [{"kind": TEXT}],
    },
    "spec": {
        "containers": [_CONTAINER],
        "initContainers": [_CONTAINER],
        "ephemeralContainers": [_CONTAINER],
        "volumes": [
            {
                _NAMED: TEXT,
                "projected": {"sources": [{"serviceAccountToken": {"audience": TEXT}}]},
            }
        ],
        "securityContext": _IDS,
        "hostNetwork": BOOL,
        "hostPID": BOOL,
        "shareProcessNamespace": BOOL,
        "restartPolicy": TEXT,
        "os": {"name": TEXT},
        "nodeSelector": _TEXTS,
    },
}


def check_shape(pod: object) -> None:
    """Raise PodRefused, naming the first field that is of another type than it must be."""
    if is_deep(pod):
        raise _refused("the pod", f"has values nested deeper than {MAX_DEPTH}")
    if not isinstance(pod, Mapping) or not isinstance(pod.get("spec"), Mapping):
        raise _refused("spec", "is missing")
    _check(pod, POD, "")


def _check(raw: object, shape: Shape, at: str) -> None:
    """Absent and null are no fault. As deep as the shape is, and no deeper."""
    if raw is None:
        return
    if isinstance(shape, str):
        right = isinstance(raw, _TYPES[shape])
        if not right or (isinstance(raw, bool) and shape == NUMBER):
            raise _refused(at, f"{shown(raw)} is not {shape}")
    elif isinstance(shape, list):
        if not isinstance(raw, list):
            raise _refused(at, f"{shown(raw)} is no list")
        for number, one in enumerate(raw):
            _check_item(one, shape[0], f"{at}[{number}]")
    else:
        _check_fields(raw, shape, at)


def _check_item(raw: object, shape: Shape, at: str) -> None:
    if raw is None:
        raise _refused(at, "is empty")
    _check(raw, shape, at)
    named = isinstance(shape, Mapping) and _NAMED in shape
    if named and isinstance(raw, Mapping) and raw.get(_NAMED) is None:
        raise _refused(at, "has no name")


def _check_fields(raw: object, shape: Mapping[str, Shape], at: str) -> None:
    if not isinstance(raw, Mapping):
        raise _refused(at, f"{shown(raw)} is no map")
    every = shape.get(_EVERY)
    for key, value in raw.items():
        if not isinstance(key, str):
            raise _refused(at, f"{shown(key)} is no field's name")
        found = every or shape.get(key) or shape.get(f"{key}?")
        if found is not None:
            _check(value, found, f"{at}.{key}" if at else key)
            if every is not None and value is None:
                raise _refused(f"{at}.{key}", "is empty")


def _refused(at: str, problem: str) -> PodRefused:
    return PodRefused("pod_malformed", f"{at[:200]}: {problem}")
