"""Which pods would undermine their own sidecar, or are something else than they seem. Pure.

A pod that is refused here is refused admission, with the reason: letting it in without a sidecar
would only be found out later.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from injector.container import (
    BUNDLE_VOLUME,
    OTLP_VOLUME,
    RUN_VOLUME,
    TOKEN_VOLUME,
    Injected,
)
from kit import contract

Raw = Mapping[str, Any]

_OUR_CONTAINERS = frozenset(
    {contract.CAPTURE_CONTAINER, contract.VALIDATE_CONTAINER, contract.PROXY_CONTAINER}
)
OUR_VOLUMES = frozenset({TOKEN_VOLUME, BUNDLE_VOLUME, RUN_VOLUME, OTLP_VOLUME})
_OUR_IDS = frozenset({contract.PROXY_UID, contract.PROXY_GID})
_CAPABILITY = re.compile(r"[A-Za-z_]+")
"""Runtimes fold case by Unicode, where letters that are no ASCII become some that are."""
REWRITING = ("NET_ADMIN", "SYS_ADMIN", "ALL")
"""Capabilities with which a container could take the redirection away."""
_ONCE = {"timeoutSeconds": (1,), "successThreshold": (1,)}
FILLED_IN: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "container": {
        "imagePullPolicy": ("IfNotPresent", "Always"),
        "terminationMessagePath": ("/dev/termination-log",),
        "terminationMessagePolicy": ("File",),
    },
    "ports": {"protocol": ("TCP",)},
    "httpGet": {"scheme": ("HTTP",)},
    "startupProbe": _ONCE,
    "readinessProbe": _ONCE,
    "fieldRef": {"apiVersion": ("v1",)},
    "configMap": {"defaultMode": (420,)},
    "projected": {"defaultMode": (420,)},
    "secret": {"defaultMode": (420,)},
}
"""What the API server fills in between two calls of a webhook, by the field in which it does (Kubernetes
API defaulting). The guard's CEL is made from the same table."""
FREE: Mapping[str, tuple[str, ...]] = {"resources": ("requests", "limits")}
"""What of a container is not compared but for the fields it has: amounts are the pod's own to set, and
what a LimitRange or a VerticalPodAutoscaler sets at admission."""


class PodRefused(Exception):
    """The pod must not run as it is. `reason` is a stable slug, the text for who applied it."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(f"{text} ({reason})")
        self.reason = reason


def check_pod(spec: Raw, mode: str) -> None:
    """Raise PodRefused if the pod's own containers could pass for its proxy or take its rules away.

    Our own containers are not looked at; `check_ours` does that.
    """
    if spec.get("shareProcessNamespace"):
        raise PodRefused(
            "shared_processes",
            "spec.shareProcessNamespace lets the app reach into the proxy, which holds the key",
        )
    if spec.get("hostPID"):
        raise PodRefused("host_pid", "spec.hostPID lets the app reach into every proxy of its node")
    _check_ids("spec.securityContext", spec.get("securityContext") or {})
    for volume in spec.get("volumes") or ():
        if volume.get("name") != TOKEN_VOLUME and _is_token(volume):
            raise PodRefused(
                "token_foreign",
                f"volume {volume.get('name')} holds a token of audience {contract.TOKEN_AUDIENCE}, "
                "which is for the proxy alone",
            )
    for where, container in containers(spec):
        if container.get("name") in _OUR_CONTAINERS:
            continue
        _check_container(where, container, mode)


def check_ephemeral(spec: Raw) -> None:
    """Raise PodRefused if a debug container added to a meshed pod could pass for its proxy, or shares
    its processes: with SYS_PTRACE, which common debug profiles add, it would read the key."""
    for number, container in enumerate(spec.get("ephemeralContainers") or ()):
        target = container.get("targetContainerName")
        if target in _OUR_CONTAINERS:
            raise PodRefused(
                "shared_processes",
                f"spec.ephemeralContainers[{number}].targetContainerName {target} lets it reach into "
                "the proxy, which holds the key",
            )
        _check_container(f"spec.ephemeralContainers[{number}]", container, "redirect")


def containers(spec: Raw) -> Iterable[tuple[str, Raw]]:
    """Every container with where it stands."""
    for kind in ("initContainers", "containers"):
        for number, container in enumerate(spec.get(kind) or ()):
            yield f"spec.{kind}[{number}]", container


def carries_ours(spec: Raw) -> bool:
    """Something in the pod is called as what we inject. Says nothing of whether it is ours."""
    named = any(container.get("name") in _OUR_CONTAINERS for _, container in containers(spec))
    return named or any(one.get("name") in OUR_VOLUMES for one in spec.get("volumes") or ())


def check_ours(spec: Raw, wanted: Injected, volumes: list[dict[str, Any]]) -> None:
    """Raise PodRefused unless what is called as ours is exactly what we inject, and stands first.

    Names and markers prove nothing, so the whole specs are compared; only values that the API
    server itself fills in may be there in addition.
    """
    own = [*wanted.init_containers, *wanted.containers]
    first = [
        *list(spec.get("initContainers") or ())[: len(wanted.init_containers)],
        *list(spec.get("containers") or ())[: len(wanted.containers)],
    ]
    found = [container for _, container in containers(spec) if container["name"] in _OUR_CONTAINERS]
    if found != first or len(found) != len(own):
        raise PodRefused(
            "container_foreign",
            f"a container is called {' or '.join(sorted(_OUR_CONTAINERS))}, "
            "but the pod is not as podlink injects it",
        )
    for container, ours in zip(found, own, strict=True):
        _check_same(f"container {ours['name']}", container, ours, "container")
    carried = [one for one in spec.get("volumes") or () if one["name"] in OUR_VOLUMES]
    by_name = {one["name"]: one for one in carried}
    if foreign := sorted(by_name.keys() - {volume["name"] for volume in volumes}):
        raise PodRefused("container_foreign", f"volume {foreign[0]} is not as podlink injects it")
    for volume in volumes:
        _check_same(f"volume {volume['name']}", by_name.get(volume["name"]), volume, "volume")
    if len(carried) != len(by_name):
        raise PodRefused("container_foreign", "a volume of podlink's is there twice")


def _check_container(where: str, container: Raw, mode: str) -> None:
    security = container.get("securityContext") or {}
    _check_ids(f"{where}.securityContext", security)
    for mount in container.get("volumeMounts") or ():
        if mount.get("name") in OUR_VOLUMES:
            raise PodRefused("volume_shared", f"{where} mounts the proxy's {mount['name']}")
    if mode != "redirect":
        return
    added = (security.get("capabilities") or {}).get("add") or ()
    if security.get("privileged"):
        raise PodRefused("privileged", f"{where} is privileged: it could take the redirection away")
    for capability in added:
        if not _CAPABILITY.fullmatch(capability) or _plain(capability) in REWRITING:
            raise PodRefused(
                "capability", f"{where} adds {capability}: it could take the redirection away"
            )


def _plain(capability: str) -> str:
    """As a runtime reads it: in any case, with or without `CAP_`."""
    return capability.upper().removeprefix("CAP_")


def _is_token(volume: Raw) -> bool:
    sources = (volume.get("projected") or {}).get("sources") or ()
    tokens = (one.get("serviceAccountToken") or {} for one in sources)
    return any(token.get("audience") == contract.TOKEN_AUDIENCE for token in tokens)


def _check_ids(where: str, security: Raw) -> None:
    for field in ("runAsUser", "runAsGroup", "fsGroup"):
        if security.get(field) in _OUR_IDS:
            raise PodRefused("proxy_id", f"{where}.{field} {security[field]} is the proxy's own")
    for group in security.get("supplementalGroups") or ():
        if group in _OUR_IDS:
            raise PodRefused("proxy_id", f"{where}.supplementalGroups has {group}, the proxy's own")


def _check_same(what: str, found: Any, own: Any, key: str) -> None:
    if found is None or not _same(found, own, key):
        raise PodRefused("container_foreign", f"{what} is not as podlink injects it")


def _same(found: Any, own: Any, key: str = "") -> bool:
    if isinstance(own, Mapping):
        return (
            isinstance(found, Mapping)
            and all(
                name in FREE or (name in found and _same(found[name], own[name], name))
                for name in own
            )
            and all(
                name in own or value in FILLED_IN.get(key, {}).get(name, ())
                for name, value in found.items()
            )
            and all(_is_free(found.get(name), fields) for name, fields in FREE.items())
        )
    if isinstance(own, list):
        return (
            isinstance(found, list)
            and len(found) == len(own)
            and all(_same(f, o, key) for f, o in zip(found, own, strict=True))
        )
    return bool(found == own and type(found) is type(own))


def _is_free(found: Any, fields: Iterable[str]) -> bool:
    return found is None or (isinstance(found, Mapping) and set(found) <= set(fields))
