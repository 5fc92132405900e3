"""Decides how a pod changes: pod, namespace and settings in, JSON patch out. Pure.

The patch only adds, element by element, so that whatever other webhooks put into the same pod
stays (RFC 6902; Kubernetes "Admission webhook good practices").
"""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from injector.annotations import AnnotationRefused, PodSettings, read_settings
from injector.container import (
    RUN_VOLUME,
    MeshSettings,
    capture_annotation,
    fitting,
    sidecar_containers,
    sidecar_volumes,
)
from injector.guard import PodRefused, carries_ours, check_ours, check_pod
from injector.probes import rewritten
from injector.shape import check_shape
from kit import contract

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
    check_shape(pod)
    metadata, spec = pod.get("metadata") or {}, pod["spec"]
    annotations, labels = metadata.get("annotations") or {}, metadata.get("labels") or {}
    skipped, warning = _skip(annotations, labels, spec, namespace)
    if skipped:
        return Mutation([], (warning,) if warning else (), skipped)
    settings = read_settings(
        annotations,
        (namespace.get("metadata") or {}).get("annotations") or {},
        dict(mesh.defaults),
        mesh.cluster_cidrs,
    )
    settings = fitting(mesh, settings)
    check_pod(spec, settings.mode)
    if not mesh.native_sidecars:
        _check_goes_on(metadata, spec)
    changed: Raw = spec
    probes, paths = "", list[str]()
    if settings.mode == "redirect":  # else nothing is captured, and the kubelet reaches the app
        changed, probes, paths = rewritten(spec)
    containers, volumes = sidecar_containers(mesh, settings, probes), sidecar_volumes(mesh)
    present = carries_ours(spec)
    patch: Patch = []
    if present:
        patch += _set_probes(spec, probes)
        check_ours(_with_probes(spec, probes), containers, volumes)
    # First, while the pod's own containers are where they were.
    patch += [_add(f"/spec{path}", _at(changed, path)) for path in paths]
    if not present:
        patch += _prepend(spec, "initContainers", containers.init_containers)
        patch += _prepend(spec, "containers", containers.containers)
        patch += _append(spec, "volumes", volumes)
    patch += _entries(metadata, "labels", {contract.INJECTED_LABEL: "true"})
    status = _status(mesh, settings)
    evictable = _evictable(annotations.get(_EVICT_ANNOTATION, ""))
    wanted = {contract.STATUS_ANNOTATION: status, _EVICT_ANNOTATION: evictable}
    if mesh.capture_by == "cni" and settings.mode == "redirect":
        wanted[contract.CAPTURE_ANNOTATION] = capture_annotation(settings)
    patch += _entries(metadata, "annotations", wanted)
    return Mutation(patch, () if mesh.native_sidecars else _plain_warnings(spec))


def difference(pod: Raw, namespace: Raw, mesh: MeshSettings) -> str:
    """Why the injector would not leave `pod` as it is, in one line; "" if it would, or gives it no
    sidecar. What it writes for people alone (`podlink.dev/status`, the autoscaler's hint) is none.
    """
    try:
        mutation = mutate(pod, namespace, mesh)
    except (PodRefused, AnnotationRefused) as refused:
        return str(refused)
    for operation in mutation.patch:
        path, value = operation["path"], operation["value"]
        written = value if path == "/metadata/annotations" else [path.replace("~1", "/")]
        if not path.startswith("/metadata/annotations") or any(
            contract.CAPTURE_ANNOTATION in one for one in written
        ):
            return f"the injector would still change {path}"
    return ""


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


def _check_goes_on(metadata: Raw, spec: Raw) -> None:
    """Without native sidecars a pod that should end never would: its proxy goes on."""
    owners = metadata.get("ownerReferences") or ()
    job = any(owner.get("kind") == "Job" for owner in owners)
    if job or spec.get("restartPolicy", "Always") != "Always":
        what = "a Job" if job else f"a pod with restartPolicy {spec['restartPolicy']}"
        raise PodRefused(
            "never_ends",
            f"{what} would never end beside its proxy on this cluster, which has no native sidecars "
            f"(Kubernetes 1.29); label its pods {contract.INJECT_LABEL}: disabled, or upgrade",
        )


def _plain_warnings(spec: Raw) -> tuple[str, ...]:
    said = (
        "podlink: this cluster has no native sidecars (Kubernetes 1.29), so the proxy is an "
        "ordinary container: at the pod's end it may stop before the app"
    )
    if not spec.get("initContainers"):
        return (said,)
    return (
        said,
        "podlink: init containers run before the proxy here, and have no TCP connections",
    )


def _set_probes(spec: Raw, wanted: str) -> Patch:
    """Have the proxy that is there already run what other webhooks have added since."""
    return [
        _add(f"{path}/value", wanted)
        for path, entry in _probes_entries(spec)
        if entry.get("value", "") != wanted
    ]


def _with_probes(spec: Raw, wanted: str) -> Raw:
    """The spec as `_set_probes` leaves it, for the comparison with what we inject."""
    made = copy.deepcopy(dict(spec))
    for _, entry in _probes_entries(made):
        if set(entry) <= {"name", "value"}:
            entry.pop("value", None)
            entry.update(_probes_entry(wanted))
    return made


def _probes_entries(spec: Raw) -> Iterator[tuple[str, Any]]:
    for field in ("initContainers", "containers"):
        for number, one in enumerate(spec.get(field) or ()):
            if one.get("name") == contract.PROXY_CONTAINER:
                for place, entry in enumerate(one.get("env") or ()):
                    if entry.get("name") == contract.PROBES_VARIABLE:
                        yield f"/spec/{field}/{number}/env/{place}", entry


def _probes_entry(text: str) -> dict[str, str]:
    name = {"name": contract.PROBES_VARIABLE}
    return {**name, "value": text} if text else name


def _at(spec: Raw, path: str) -> Any:
    found: Any = spec
    for step in path.split("/")[1:]:
        found = found[int(step)] if isinstance(found, list) else found[step]
    return found


def _prepend(spec: Raw, field: str, items: list[dict[str, Any]]) -> Patch:
    if not items:
        return []
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
