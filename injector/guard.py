"""Which pods would undermine their own sidecar, or are something else than they seem. Pure.

A pod that is refused here is refused admission, with the reason: letting it in without a sidecar
would only be found out later.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from injector.container import (
    API_TOKEN_PATH,
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
_OUR_VOLUMES = frozenset({TOKEN_VOLUME, BUNDLE_VOLUME, RUN_VOLUME, OTLP_VOLUME})
_OUR_IDS = frozenset({contract.PROXY_UID, contract.PROXY_GID})
_DEFAULTS: Mapping[str, Any] = {
    "imagePullPolicy": ("IfNotPresent", "Always"),
    "terminationMessagePath": ("/dev/termination-log",),
    "terminationMessagePolicy": ("File",),
    "apiVersion": ("v1",),
    "scheme": ("HTTP",),
    "protocol": ("TCP",),
    "timeoutSeconds": (1,),
    "successThreshold": (1,),
    "defaultMode": (420,),
}
"""What the API server fills in between two calls of a webhook (Kubernetes API defaulting)."""


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
    return named or any(one.get("name") in _OUR_VOLUMES for one in spec.get("volumes") or ())


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
        _check_same(f"container {ours['name']}", container, ours)
    carried = {one["name"]: one for one in spec.get("volumes") or () if one["name"] in _OUR_VOLUMES}
    for volume in volumes:
        _check_same(f"volume {volume['name']}", carried.get(volume["name"]), volume)


def _check_container(where: str, container: Raw, mode: str) -> None:
    security = container.get("securityContext") or {}
    _check_ids(f"{where}.securityContext", security)
    for mount in container.get("volumeMounts") or ():
        if mount.get("name") in _OUR_VOLUMES:
            raise PodRefused("volume_shared", f"{where} mounts the proxy's {mount['name']}")
    if mode != "redirect":
        return
    added = (security.get("capabilities") or {}).get("add") or ()
    if security.get("privileged"):
        raise PodRefused("privileged", f"{where} is privileged: it could take the redirection away")
    for capability in added:
        if str(capability).upper().removeprefix("CAP_") in ("NET_ADMIN", "SYS_ADMIN", "ALL"):
            raise PodRefused(
                "capability", f"{where} adds {capability}: it could take the redirection away"
            )


def _check_ids(where: str, security: Raw) -> None:
    for field in ("runAsUser", "runAsGroup", "fsGroup"):
        if security.get(field) in _OUR_IDS:
            raise PodRefused("proxy_id", f"{where}.{field} {security[field]} is the proxy's own")
    for group in security.get("supplementalGroups") or ():
        if group in _OUR_IDS:
            raise PodRefused("proxy_id", f"{where}.supplementalGroups has {group}, the proxy's own")


def _check_same(what: str, found: Any, own: Any) -> None:
    if found is None or not _same(found, own):
        raise PodRefused("container_foreign", f"{what} is not as podlink injects it")


def _same(found: Any, own: Any, key: str = "") -> bool:
    if isinstance(own, Mapping):
        return (
            isinstance(found, Mapping)
            and all(name in found and _same(found[name], own[name], name) for name in own)
            and all(_may_be_added(key, name, found[name]) for name in found if name not in own)
        )
    if isinstance(own, list):
        kept = [one for one in found if not _is_api_token(key, one)] if _is_list(found) else found
        return (
            _is_list(kept)
            and len(kept) == len(own)
            and all(_same(f, o, key) for f, o in zip(kept, own, strict=True))
        )
    return bool(found == own and type(found) is type(own))


def _may_be_added(key: str, name: str, value: Any) -> bool:
    if name == "volumeMounts":
        return _is_list(value) and all(_is_api_token(name, mount) for mount in value)
    if key in ("limits", "requests"):  # a LimitRange of the namespace
        return True
    return value in _DEFAULTS.get(name, ())


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_api_token(key: str, mount: Any) -> bool:
    """The mount that the ServiceAccount admission plugin gives to every container."""
    return (
        key == "volumeMounts"
        and isinstance(mount, Mapping)
        and mount.get("mountPath") == API_TOKEN_PATH
        and mount.get("name") not in _OUR_VOLUMES
        and mount.get("readOnly") is True
        and set(mount) <= {"name", "mountPath", "readOnly"}
    )
