"""What the API says of a cluster's protection, for the report: pods that go without a sidecar though
their namespace is enrolled, annotations that open a way around, and the LinkPolicies. Pure but for
`read`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cli.cluster import explained
from cli.pods import is_meshed
from kit.contract import SYSTEM_NAMESPACE
from kit.kube import Kube, KubeError

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
        "bypasses": bypasses(namespaces, pods),
        "policies": policies_of(policies, since),
    }


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
