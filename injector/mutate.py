"""Decides how a pod changes: pod, namespace and settings in, JSON patch out. Pure.

The patch only adds, element by element, so that whatever other webhooks put into the same pod
stays (RFC 6902; Kubernetes "Admission webhook good practices").
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from injector.annotations import PodSettings, read_settings
from injector.container import (
    RUN_VOLUME,
    MeshSettings,
    sidecar_containers,
    sidecar_volumes,
)
from injector.guard import PodRefused, carries_ours, check_ours, check_pod
from sidecar import contract

Raw = Mapping[str, Any]
Patch = list[dict[str, Any]]

_EVICT_ANNOTATION = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"
_MIRROR_ANNOTATION = "kubernetes.io/config.mirror"
_CHOICES = ("enabled", "disabled")


@dataclass(frozen=True, slots=True)
class Mutation:
    """What to do with a pod that is let in: `patch` may be empty, `warnings` are for its owner."""

    patch: Patch
    warnings: tuple[str, ...] = ()
    skipped: str = ""
    """Why there is no sidecar: a slug, or empty if there is one."""


def mutate(pod: Raw, namespace: Raw, mesh: MeshSettings) -> Mutation:
    """How `pod`, about to be created in `namespace` (both raw objects), is to change.

    Raises PodRefused or AnnotationRefused, whose text is for whoever applied the pod.
    """
    metadata, spec = pod.get("metadata") or {}, pod["spec"]
    annotations, labels = metadata.get("annotations") or {}, metadata.get("labels") or {}
    skipped, warning = _skip(annotations, labels, spec, namespace)
    if skipped:
        return Mutation([], (warning,) if warning else (), skipped)
    settings = read_settings(
        annotations, (namespace.get("metadata") or {}).get("annotations") or {}
    )
    check_pod(spec, settings.mode)
    containers, volumes = sidecar_containers(mesh, settings), sidecar_volumes()
    present = carries_ours(spec)
    if present:
        check_ours(spec, containers, volumes)
    patch: Patch = []
    if not present:
        patch += _prepend(spec, "initContainers", containers)
        patch += _append(spec, "volumes", volumes)
    patch += _entries(metadata, "labels", {contract.INJECTED_LABEL: "true"})
    status = _status(mesh, settings)
    evictable = _evictable(annotations.get(_EVICT_ANNOTATION, ""))
    wanted = {contract.STATUS_ANNOTATION: status, _EVICT_ANNOTATION: evictable}
    patch += _entries(metadata, "annotations", wanted)
    return Mutation(patch)


def _skip(annotations: Raw, labels: Raw, spec: Raw, namespace: Raw) -> tuple[str, str]:
    """Why this pod gets no sidecar ("" if it does), and a warning for its owner."""
    if _MIRROR_ANNOTATION in annotations:
        return "static_pod", ""  # the kubelet runs it from a file; the API only mirrors it
    wish = labels.get(contract.INJECT_LABEL)
    if wish is not None and wish not in _CHOICES:
        raise PodRefused(
            "label_malformed",
            f"pod label {contract.INJECT_LABEL} must be enabled or disabled, not {wish[:63]!r}",
        )
    near = ((namespace.get("metadata") or {}).get("labels") or {}).get(contract.INJECT_LABEL)
    if (wish or near) != "enabled":
        return "not_enrolled", ""
    if spec.get("hostNetwork"):
        return "host_network", (
            "podlink: no sidecar, since the pod uses the host's network and has no address of "
            "its own; peers treat it as unmeshed"
        )
    system = (spec.get("os") or {}).get("name") or (spec.get("nodeSelector") or {}).get(
        "kubernetes.io/os"
    )
    if system == "windows":
        return "windows", "podlink: no sidecar, since the pod is for Windows nodes"
    return "", ""


def _prepend(spec: Raw, field: str, items: list[dict[str, Any]]) -> Patch:
    if not spec.get(field):
        return [_add(f"/spec/{field}", items)]
    return [_add(f"/spec/{field}/{number}", item) for number, item in enumerate(items)]


def _append(spec: Raw, field: str, items: list[dict[str, Any]]) -> Patch:
    if not spec.get(field):
        return [_add(f"/spec/{field}", items)]
    return [_add(f"/spec/{field}/-", item) for item in items]


def _entries(metadata: Raw, field: str, wanted: Mapping[str, str]) -> Patch:
    present = metadata.get(field) or {}
    missing = {key: value for key, value in wanted.items() if present.get(key) != value}
    if not missing:
        return []
    if not present:
        return [_add(f"/metadata/{field}", missing)]
    return [_add(f"/metadata/{field}/{_escape(key)}", value) for key, value in missing.items()]


def _add(path: str, value: Any) -> dict[str, Any]:
    return {"op": "add", "path": path, "value": value}


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")  # RFC 6901, section 3


def _evictable(present: str) -> str:
    """Our volume holds a socket only, so it must not keep the autoscaler from a node."""
    names = [name for name in present.split(",") if name]
    return ",".join(names if RUN_VOLUME in names else [*names, RUN_VOLUME])


def _status(mesh: MeshSettings, settings: PodSettings) -> str:
    both = json.dumps([asdict(mesh), asdict(settings)], sort_keys=True)
    digest = hashlib.sha256(both.encode()).hexdigest()[:16]
    said = {"version": contract.VERSION, "mode": settings.mode, "settings": digest}
    return json.dumps(said, separators=(",", ":"))
