"""Whether an object that was applied is ready, and what it lacks. Pure: objects in, words out.

"Ready" is what `kubectl wait` and `kubectl rollout status` mean by it: a pod is Ready or has done its
work, a workload has all its replicas in their newest form and no others, and a Service with pods has
endpoints.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from local.objects import (
    Object,
    condition,
    dig,
    is_terminating,
    labels_of,
    name_of,
    namespace_of,
    template_hash,
    uid_of,
)

WORKLOADS = ("Deployment", "ReplicaSet", "StatefulSet")
"""Kinds that make pods here."""
AWAITED = ("Pod", *WORKLOADS, "Service")
"""The other kinds are ready as soon as they are stored."""
_REVISION_LABEL = "controller-revision-hash"


@dataclass(frozen=True, slots=True)
class Lack:
    """What an object lacks. `final`: waiting cannot bring it."""

    words: str
    final: bool = False


def called(obj: Object) -> str:
    """`deployment/web`, as kubectl names it."""
    return f"{obj['kind'].lower()}/{name_of(obj)}"


def lack_of_pod(pod: Object) -> Lack | None:
    """What a pod lacks; None for one that is ready or has done its work."""
    phase = dig(pod, "status", "phase", default="Pending")
    if phase == "Succeeded" or (condition(pod, "Ready") and not is_terminating(pod)):
        return None
    return Lack(why_not_ready(pod), final=phase == "Failed")


def lack_of_workload(owner: Object, pods: Iterable[Object]) -> Lack | None:
    """What a Deployment, ReplicaSet or StatefulSet lacks. `pods` are those of its namespace."""
    wanted = dig(owner, "spec", "replicas", default=1)
    status = dig(owner, "status", default={})
    own = [pod for pod in pods if _selects(dig(owner, "spec", "selector", "matchLabels"), pod)]
    if status.get("observedGeneration", 0) < owner["metadata"].get("generation", 1):
        return Lack(f"0 of {wanted} replicas are ready")
    if owner["kind"] == "StatefulSet":
        digest = template_hash(owner["spec"]["template"])
        own = [p for p in own if any(o.get("uid") == uid_of(owner) for o in _owners(p))]
        new = [p for p in own if labels_of(p).get(_REVISION_LABEL) == digest]
        ready, total = sum(lack_of_pod(p) is None for p in new), len(own)
    else:
        ready, total = status.get("availableReplicas", 0), status.get("replicas", 0)
        ready = min(ready, status.get("updatedReplicas", ready))
    if ready == wanted == total:
        return None
    words = f"{min(ready, wanted)} of {wanted} replicas are ready"
    if total > wanted:
        words = f"{words}, {total - wanted} old ones are ending"
    for pod in own:
        if not is_terminating(pod) and (lack := lack_of_pod(pod)) is not None:
            return Lack(f"{words}; pod {namespace_of(pod)}/{name_of(pod)}: {lack.words}")
    return Lack(words)


def lack_of_service(
    service: Object, pods: Iterable[Object], slices: Iterable[Object]
) -> Lack | None:
    """What a Service with a selector lacks until each of its ready pods is an endpoint of it.

    One that selects no pod lacks nothing: nobody says that there will be one.
    """
    selector = dig(service, "spec", "selector")
    if not selector or dig(service, "spec", "type") == "ExternalName":
        return None
    own = [p for p in pods if _selects(selector, p) and _counts(p)]
    ready = {name_of(pod) for pod in own if condition(pod, "Ready")}
    if own and not ready:
        return Lack("no pod of it is ready")
    mine = [s for s in slices if labels_of(s).get("kubernetes.io/service-name") == name_of(service)]
    known = {
        dig(endpoint, "targetRef", "name")
        for one in mine
        for endpoint in one.get("endpoints") or ()
        if dig(endpoint, "conditions", "ready", default=True)
    }
    if ready - known:
        return Lack(f"{len(ready & known)} of {len(ready)} ready pods are endpoints")
    return _lack_of_port(service, mine) if ready else None


def _lack_of_port(service: Object, slices: Sequence[Object]) -> Lack | None:
    """A port whose name no pod knows leads nowhere, and no waiting changes that."""
    served = {p.get("name", "") for one in slices for p in one.get("ports") or ()}
    for port in dig(service, "spec", "ports", default=[]):
        if port.get("name", "") not in served:
            target = port.get("targetPort", port["port"])
            return Lack(f"no pod of it has a port named {target!r}", final=True)
    return None


def addresses(service: Object, slices: Iterable[Object]) -> list[tuple[str, int]]:
    """The ClusterIPs and TCP ports that must lead somewhere, as far as there are endpoints."""
    mine = [s for s in slices if labels_of(s).get("kubernetes.io/service-name") == name_of(service)]
    families = {s["addressType"] for s in mine if s.get("endpoints")}
    return [
        (ip, port["port"])
        for ip in dig(service, "spec", "clusterIPs", default=[])
        if ip not in ("", "None") and ("IPv6" if ":" in ip else "IPv4") in families
        for port in dig(service, "spec", "ports", default=[])
        if port.get("protocol", "TCP") == "TCP"
    ]


def _counts(pod: Object) -> bool:
    over = dig(pod, "status", "phase") in ("Succeeded", "Failed")
    return not over and not is_terminating(pod)


def _selects(labels: dict[str, str] | None, pod: Object) -> bool:
    return bool(labels) and all(labels_of(pod).get(k) == v for k, v in (labels or {}).items())


def _owners(pod: Object) -> list[Object]:
    found: list[Object] = pod["metadata"].get("ownerReferences") or []
    return found


def why_not_ready(pod: Object) -> str:
    """Why a pod is not ready, as far as its status says."""
    words = [str(dig(pod, "status", "phase", default="Pending"))]
    if message := dig(pod, "status", "message"):
        words.append(str(message))
    for field in ("initContainerStatuses", "containerStatuses"):
        for status in dig(pod, "status", field, default=[]):
            if status["ready"]:
                continue
            for kind, state in status["state"].items():
                reason = state.get("reason", "not ready")
                detail = f" ({state['message']})" if state.get("message") else ""
                words.append(f"{status['name']} is {kind}: {reason}{detail}")
    return "; ".join(words)
