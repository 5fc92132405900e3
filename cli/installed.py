"""What of podlink a cluster holds: found by what it is called and how it is labelled."""

import json
from dataclasses import dataclass
from typing import Any

from cli.cluster import explained
from cli.objects import PROGRAMS
from kit.contract import BUNDLE_CONFIG_MAP, DEFAULT_TRUST_DOMAIN
from kit.kube import Kube, KubeError, Object

SELECTOR = "app.kubernetes.io/part-of=podlink"
_CLUSTER_KINDS = (
    ("admissionregistration.k8s.io/v1", "mutatingwebhookconfigurations",
     "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io/v1", "validatingadmissionpolicybindings",
     "ValidatingAdmissionPolicyBinding"),
    ("admissionregistration.k8s.io/v1", "validatingadmissionpolicies",
     "ValidatingAdmissionPolicy"),
    ("rbac.authorization.k8s.io/v1", "clusterrolebindings", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io/v1", "clusterroles", "ClusterRole"),
    ("scheduling.k8s.io/v1", "priorityclasses", "PriorityClass"),
)  # fmt: skip
_NAMESPACED_KINDS = (
    ("rbac.authorization.k8s.io/v1", "rolebindings", "RoleBinding"),
    ("rbac.authorization.k8s.io/v1", "roles", "Role"),
)
CRD = ("apiextensions.k8s.io/v1", "customresourcedefinitions", "CustomResourceDefinition")


@dataclass(frozen=True, slots=True)
class Installation:
    """`deployments` by name; the rest as the injector's Deployment says it."""

    namespace: str
    deployments: dict[str, Object]

    @property
    def injector_env(self) -> dict[str, str]:
        return self.env("podlink-injector")

    def env(self, program: str) -> dict[str, str]:
        spec = self.deployments.get(program, {}).get("spec", {})
        containers = spec.get("template", {}).get("spec", {}).get("containers") or [{}]
        return {e["name"]: e.get("value", "") for e in containers[0].get("env") or ()}

    @property
    def image(self) -> str:
        return self.injector_env.get("PODLINK_IMAGE", "")

    @property
    def trust_domain(self) -> str:
        return self.injector_env.get("PODLINK_TRUST_DOMAIN", DEFAULT_TRUST_DOMAIN)

    def version(self, program: str) -> str:
        labels = self.deployments.get(program, {}).get("metadata", {}).get("labels") or {}
        return str(labels.get("app.kubernetes.io/version", ""))


async def find_installation(kube: Kube) -> Installation | None:
    """The one installation of the cluster, or None. Raises ClusterUnavailable."""
    try:
        found = await kube.get("/apis/apps/v1/deployments", labelSelector=SELECTOR)
    except KubeError as e:
        raise explained(e, "look for podlink", "`list` on deployments") from e
    ours = [one for one in found["items"] if one["metadata"]["name"] in PROGRAMS]
    for one in ours:
        if one["metadata"]["name"] == "podlink-injector":
            namespace = one["metadata"]["namespace"]
            mine = {
                o["metadata"]["name"]: o for o in ours if o["metadata"]["namespace"] == namespace
            }
            return Installation(namespace, mine)
    if ours:
        namespace = ours[0]["metadata"]["namespace"]
        return Installation(namespace, {o["metadata"]["name"]: o for o in ours})
    return None


async def everything(kube: Kube, namespace: str, crds: bool) -> list[Object]:
    """A reference to each object that podlink made or was made of, in the order of taking down: first
    what admission asks, so that nothing waits for it. Raises ClusterUnavailable."""
    try:
        found: list[Object] = []
        for version, plural, kind in _CLUSTER_KINDS:
            found += await _labelled(kube, f"/apis/{version}/{plural}", version, kind)
        for version, plural, kind in _NAMESPACED_KINDS:
            outside = await _labelled(kube, f"/apis/{version}/{plural}", version, kind)
            found += [o for o in outside if o["metadata"].get("namespace") != namespace]
        bundles = await kube.get(
            "/api/v1/configmaps", fieldSelector=f"metadata.name={BUNDLE_CONFIG_MAP}"
        )
        for one in bundles["items"]:
            if one["metadata"]["name"] == BUNDLE_CONFIG_MAP:
                where = one["metadata"]["namespace"]
                if where != namespace:
                    found.append(_reference("v1", "ConfigMap", BUNDLE_CONFIG_MAP, where))
        if crds:
            version, plural, kind = CRD
            found += await _labelled(kube, f"/apis/{version}/{plural}", version, kind)
        if await _exists(kube, f"/api/v1/namespaces/{namespace}"):
            found.append(_reference("v1", "Namespace", namespace))
    except KubeError as e:
        raise explained(e, "list podlink's objects", "`list` on each of their kinds") from e
    return found


async def meshed_pods(kube: Kube) -> list[Object]:
    """Pods that carry a sidecar and still run. Raises ClusterUnavailable."""
    try:
        pods = await kube.get("/api/v1/pods", labelSelector="podlink.dev/injected=true")
    except KubeError as e:
        raise explained(e, "look for meshed pods", "`list` on pods") from e
    return [p for p in pods["items"] if p.get("status", {}).get("phase") in ("Pending", "Running")]


async def _labelled(kube: Kube, path: str, version: str, kind: str) -> list[Object]:
    try:
        found = await kube.get(path, labelSelector=SELECTOR)
    except KubeError as e:
        if e.status == 404:  # the cluster does not know the kind
            return []
        raise
    return [
        _reference(version, kind, o["metadata"]["name"], o["metadata"].get("namespace", ""))
        for o in found["items"]
    ]


async def _exists(kube: Kube, path: str) -> bool:
    try:
        await kube.get(path)
    except KubeError as e:
        if e.status == 404:
            return False
        raise
    return True


def _reference(version: str, kind: str, name: str, namespace: str = "") -> Object:
    metadata: dict[str, Any] = {"name": name}
    if namespace:
        metadata["namespace"] = namespace
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


def status_version(pod: Object) -> str:
    """The version of podlink that injected the pod, as its annotation says; "" if it does not."""
    raw = (pod["metadata"].get("annotations") or {}).get("podlink.dev/status", "{}")
    try:
        return str(json.loads(raw).get("version", ""))
    except (ValueError, AttributeError):
        return ""
