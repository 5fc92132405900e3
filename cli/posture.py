"""What the API says of a cluster's protection, for the report: pods that go without a sidecar though
their namespace is enrolled, pods whose sidecar is another than the injector makes, annotations that open
a way around, and the LinkPolicies. Pure but for `read`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cli.checks.sidecars import carrying, mesh_of, others
from cli.cluster import ClusterUnavailable, explained
from cli.installed import Installation, find_installation
from cli.pods import is_meshed
from kit.contract import SYSTEM_NAMESPACE
from kit.kube import Kube, KubeError
from kit.settings import ConfigInvalid

Json = dict[str, Any]
INJECT: Final = "podlink.dev/inject"
_CONFIG: Final = "config.podlink.dev/"
BYPASSES: Final[Mapping[str, frozenset[str] | None]] = {
    "skip-inbound-ports": None,
    "skip-outbound-ports": None,
    "skip-subnets": None,
    "plaintext": frozenset({"allow"}),
}
"""Annotations that let something past capture or policy, and the values that do; None: any."""
_PAGE: Final = 500
_LISTED: Final = 1000
"""Pods whose sidecar differs; the store takes a bounded `cluster`, and an upgrade makes all differ."""
_MAX_WHY: Final = 300


async def read(kube: Kube, since: str, now: str) -> Json:
    """Everything below, of the whole cluster; `since` and `now` are RFC 3339 times in UTC. Raises
    ClusterUnavailable."""
    namespaces = await _all(kube, "/api/v1/namespaces", "namespaces")
    pods = await _all(kube, "/api/v1/pods", "pods")
    try:
        policies = await _all(kube, "/apis/podlink.dev/v1alpha1/linkpolicies", "linkpolicies")
    except KubeError as e:
        if e.status != 404:
            raise explained(e, "read linkpolicies", "`list` on linkpolicies") from e
        policies = []
    return {
        "read_at": now,
        "not_injected": not_injected(namespaces, pods),
        "other_sidecars": await _other_sidecars(kube, namespaces, pods),
        "bypasses": bypasses(namespaces, pods),
        "policies": policies_of(policies, since),
    }


async def _other_sidecars(kube: Kube, namespaces: Sequence[Json], pods: Sequence[Json]) -> Json:
    """As `other_sidecars`. What the injector would make cannot always be known: then `unread` says why,
    and a report is made all the same."""
    try:
        found = await find_installation(kube)
    except ClusterUnavailable as e:
        return _not_compared(str(e))
    return other_sidecars(found, namespaces, pods)


def other_sidecars(
    found: Installation | None, namespaces: Sequence[Json], pods: Sequence[Json]
) -> Json:
    """Pods whose sidecar is another than the injector would make now, by its own code and settings:
    what such a pod's proxy tells, and whom it lets in, podlink cannot vouch for."""
    if found is None or not found.injector_env:
        return _not_compared("no injector is installed")
    try:
        mesh = mesh_of(found)
    except ConfigInvalid as e:
        return _not_compared(f"the injector's settings cannot be read: {e}")
    only = found.injector_env.get("PODLINK_ONLY_NAMESPACE")
    judged = [one for one in carrying(pods) if only in (None, "", one["metadata"]["namespace"])]
    near = {_name(one): one for one in namespaces}
    rows = [
        {"pod": pod, "why": why[:_MAX_WHY]}
        for pod, why in sorted(others(judged, near, mesh, found.namespace))
    ]
    return {
        "compared": len(judged),
        "count": len(rows),
        "left_out": max(0, len(rows) - _LISTED),
        "rows": rows[:_LISTED],
        "unread": "",
    }


def _not_compared(why: str) -> Json:
    return {"compared": 0, "count": 0, "left_out": 0, "rows": [], "unread": why[:_MAX_WHY]}


async def _all(kube: Kube, path: str, what: str) -> list[Json]:
    found: list[Json] = []
    query = {"limit": str(_PAGE)}
    while True:
        try:
            page = await kube.get(path, **query)
        except KubeError as e:
            if e.status == 404:
                raise
            raise explained(e, f"read {what}", f"`list` on {what}") from e
        found += page.get("items") or ()
        more = (page.get("metadata") or {}).get("continue")
        if not more:
            return found
        query["continue"] = more


def not_injected(namespaces: Sequence[Json], pods: Sequence[Json]) -> list[Json]:
    """Pods of enrolled namespaces that run without our proxy in their spec, and why if that shows."""
    enrolled = {_name(n) for n in namespaces if _labels(n).get(INJECT) == "enabled"}
    found = []
    for pod in pods:
        namespace = str(pod["metadata"].get("namespace"))
        wanted = _labels(pod).get(INJECT) or ("enabled" if namespace in enrolled else "")
        over = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        if namespace == SYSTEM_NAMESPACE or over or is_meshed(pod):
            continue
        if wanted == "enabled" or namespace in enrolled:
            spec = pod["spec"]
            if wanted == "disabled":
                why = f"label {INJECT}: disabled"
            elif spec.get("hostNetwork"):
                why = "on its node's network"
            else:
                why = "no reason shows: created while the injector was away?"
            found.append({"pod": f"{namespace}/{_name(pod)}", "why": why})
    return sorted(found, key=lambda one: str(one["pod"]))


def bypasses(namespaces: Sequence[Json], pods: Sequence[Json]) -> list[Json]:
    """Annotations in use that open a way past capture or policy."""
    found = []
    for kind, objects in (("namespace", namespaces), ("pod", pods)):
        for one in objects:
            annotations = one["metadata"].get("annotations") or {}
            for name, values in BYPASSES.items():
                value = annotations.get(_CONFIG + name)
                if value is not None and (values is None or value in values):
                    own = one["metadata"].get("namespace")
                    who = f"{own}/{_name(one)}" if own else _name(one)
                    found.append(
                        {"kind": kind, "name": who, "annotation": name, "value": str(value)}
                    )
    return sorted(found, key=lambda one: (one["annotation"], one["kind"], one["name"]))


def policies_of(policies: Sequence[Json], since: str) -> list[Json]:
    """Every LinkPolicy, when it was last changed, and whether that is in this time. One that was
    deleted is not here: it is among the record's policy changes."""
    found = []
    for one in policies:
        metadata = one["metadata"]
        spec = one.get("spec") or {}
        created = str(metadata.get("creationTimestamp") or "")
        times = [
            str(f.get("time") or "")
            for f in metadata.get("managedFields") or ()
            if f.get("subresource") != "status"
        ]
        changed = max([created, *times])
        found.append(
            {
                "policy": f"{metadata.get('namespace')}/{metadata.get('name')}",
                "mode": str(spec.get("mode") or "Enforce"),
                "allow_rules": len(spec.get("allow") or ()),
                "deny_rules": len(spec.get("deny") or ()),
                "generation": metadata.get("generation"),
                "created": created,
                "changed": changed,
                "changed_in_this_time": changed >= since,
            }
        )
    return sorted(found, key=lambda one: str(one["policy"]))


def _name(one: Json) -> str:
    return str(one["metadata"].get("name"))


def _labels(one: Json) -> Mapping[str, str]:
    labels = one["metadata"].get("labels")
    return labels if isinstance(labels, dict) else {}
