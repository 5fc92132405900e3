"""Deployments, ReplicaSets and StatefulSets, as far as a demo needs them.

A Deployment's new template gets a ReplicaSet of its own; the old one is scaled down when the new
one is ready. A StatefulSet makes its pods in order, each when the one before is ready.
"""

from local.apiserver import events, resources
from local.apiserver.api import Api
from local.apiserver.defaults import random_suffix
from local.apiserver.resources import Resource
from local.apiserver.tokens import CONTROLLER
from local.errors import LocalError
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

_HASH_LABEL = "pod-template-hash"
_ORDINAL_LABEL = "apps.kubernetes.io/pod-index"
_POD_NAME_LABEL = "statefulset.kubernetes.io/pod-name"
_REVISION_LABEL = "controller-revision-hash"


def owner_reference(owner: Object) -> Object:
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": name_of(owner),
        "uid": uid_of(owner),
        "controller": True,
        "blockOwnerDeletion": True,
    }


def pod_from(template: Object, owner: Object, labels: dict[str, str]) -> Object:
    """A pod of a template, owned by `owner`; its name is the caller's to give."""
    metadata = dict(template.get("metadata") or {})
    metadata["labels"] = {**(metadata.get("labels") or {}), **labels}
    metadata["ownerReferences"] = [owner_reference(owner)]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


class WorkloadController:
    """Makes and deletes pods and ReplicaSets until they are what the workloads ask for."""

    LOOKS_AT = (
        resources.DEPLOYMENTS,
        resources.REPLICA_SETS,
        resources.STATEFUL_SETS,
        resources.PODS,
        resources.NAMESPACES,
        resources.SERVICE_ACCOUNTS,
        resources.MUTATING,
    )

    def __init__(self, api: Api) -> None:
        self._api = api

    async def reconcile(self) -> None:
        """Act on each workload; one that fails keeps no other waiting. Raises its LocalError."""
        failed: LocalError | None = None
        for kind, act in (
            (resources.DEPLOYMENTS, self._deployment),
            (resources.REPLICA_SETS, self._replica_set),
            (resources.STATEFUL_SETS, self._stateful_set),
        ):
            for obj in self._api.store.select(kind.key):
                if is_terminating(obj):
                    continue
                try:
                    await act(obj)
                except LocalError as e:
                    failed = e
        if failed is not None:
            raise failed

    async def _create_pod(self, owner: Object, pod: Object) -> Object:
        """Make a pod; that it was refused is told as an Event of its owner."""
        try:
            return await self._api.create(resources.PODS, namespace_of(owner), pod, user=CONTROLLER)
        except LocalError as e:
            # Each try has another name: without it the tries are one Event, counted up.
            said = str(e).replace(name_of(pod), pod["metadata"].get("generateName", name_of(pod)))
            events.record(self._api, owner, "Warning", "FailedCreate", f"Error creating: {said}")
            raise

    def _owned(self, resource: Resource, owner: Object) -> list[Object]:
        return [
            obj
            for obj in self._api.store.select(resource.key, namespace_of(owner))
            if any(
                o.get("uid") == uid_of(owner) for o in obj["metadata"].get("ownerReferences") or ()
            )
        ]

    def _set_counts(self, resource: Resource, obj: Object, counts: dict[str, int]) -> None:
        generation = obj["metadata"].get("generation", 1)
        status: Object = {"observedGeneration": generation, **counts}
        if resource.key == resources.DEPLOYMENTS.key:
            whole = counts["availableReplicas"] >= obj["spec"]["replicas"]
            status["conditions"] = [
                {"type": "Available", "status": str(whole), "reason": "MinimumReplicas"},
                {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"},
            ]
        self._api.set_status(resource, obj, status)

    async def _deployment(self, deployment: Object) -> None:
        spec, namespace = deployment["spec"], namespace_of(deployment)
        digest = template_hash(spec["template"])
        sets = self._owned(resources.REPLICA_SETS, deployment)
        current = next((s for s in sets if labels_of(s).get(_HASH_LABEL) == digest), None)
        if current is None:
            current = await self._new_replica_set(deployment, digest)
        elif current["spec"]["replicas"] != spec["replicas"]:
            await self._scale(current, spec["replicas"])
        ready = dig(current, "status", "readyReplicas", default=0)
        others = [s for s in sets if uid_of(s) != uid_of(current)]
        for old in others:
            if ready >= spec["replicas"] and old["spec"]["replicas"] > 0:
                await self._scale(old, 0)
            elif old["spec"]["replicas"] == 0 and not self._owned(resources.PODS, old):
                await self._api.delete(resources.REPLICA_SETS, namespace, name_of(old))
        old_pods = sum(dig(s, "status", "replicas", default=0) for s in others)
        updated = dig(current, "status", "replicas", default=0)
        counts = {
            "replicas": updated + old_pods,
            "updatedReplicas": updated,
            "readyReplicas": ready,
            "availableReplicas": ready,
        }
        self._set_counts(resources.DEPLOYMENTS, deployment, counts)

    async def _new_replica_set(self, deployment: Object, digest: str) -> Object:
        spec = deployment["spec"]
        own = {_HASH_LABEL: digest}
        template = spec["template"]
        metadata = dict(template.get("metadata") or {})
        metadata["labels"] = {**(metadata.get("labels") or {}), **own}
        selector = {**spec["selector"]}
        selector["matchLabels"] = {**(selector.get("matchLabels") or {}), **own}
        made = {
            "metadata": {
                "name": f"{name_of(deployment)}-{digest}",
                "labels": metadata["labels"],
                "ownerReferences": [owner_reference(deployment)],
            },
            "spec": {
                "replicas": spec["replicas"],
                "selector": selector,
                "template": {**template, "metadata": metadata},
            },
        }
        namespace = namespace_of(deployment)
        return await self._api.create(resources.REPLICA_SETS, namespace, made, user=CONTROLLER)

    async def _scale(self, replica_set: Object, replicas: int) -> None:
        await self._api.patch(
            resources.REPLICA_SETS,
            namespace_of(replica_set),
            name_of(replica_set),
            "application/merge-patch+json",
            {"spec": {"replicas": replicas}},
            user=CONTROLLER,
        )

    async def _replica_set(self, replica_set: Object) -> None:
        namespace, wanted = namespace_of(replica_set), replica_set["spec"]["replicas"]
        pods = [p for p in self._owned(resources.PODS, replica_set) if not _over(p)]
        for _ in range(wanted - len(pods)):
            pod = pod_from(replica_set["spec"]["template"], replica_set, {})
            prefix = f"{name_of(replica_set)}-"
            pod["metadata"]["generateName"] = prefix
            pod["metadata"]["name"] = f"{prefix[:57]}{random_suffix()}"
            pods.append(await self._create_pod(replica_set, pod))
        # Unready ones go first, as in the real controller.
        surplus = sorted(pods, key=lambda p: condition(p, "Ready"))[: max(0, len(pods) - wanted)]
        for pod in surplus:
            await self._api.delete(resources.PODS, namespace, name_of(pod), user=CONTROLLER)
        ready = sum(condition(p, "Ready") for p in pods)
        counts = {"replicas": len(pods), "readyReplicas": ready, "availableReplicas": ready}
        self._set_counts(resources.REPLICA_SETS, replica_set, counts)

    async def _stateful_set(self, owner: Object) -> None:
        spec, namespace = owner["spec"], namespace_of(owner)
        digest = template_hash(spec["template"])
        pods = {name_of(p): p for p in self._owned(resources.PODS, owner)}
        names = [f"{name_of(owner)}-{n}" for n in range(spec["replicas"])]
        in_order = spec.get("podManagementPolicy", "OrderedReady") == "OrderedReady"
        for ordinal, name in enumerate(names):
            if name not in pods:
                pods[name] = await self._stateful_pod(owner, ordinal, name, digest)
            if in_order and not condition(pods[name], "Ready"):
                break
        for name, pod in sorted(pods.items(), reverse=True):
            stale = labels_of(pod).get(_REVISION_LABEL) != digest
            if (name not in names or stale or _over(pod)) and not is_terminating(pod):
                await self._api.delete(resources.PODS, namespace, name, user=CONTROLLER)
                break  # one at a time
        ready = sum(condition(p, "Ready") for p in pods.values())
        counts = {"replicas": len(pods), "readyReplicas": ready, "availableReplicas": ready}
        self._set_counts(resources.STATEFUL_SETS, owner, {**counts, "currentReplicas": len(pods)})

    async def _stateful_pod(self, owner: Object, ordinal: int, name: str, digest: str) -> Object:
        labels = {
            _POD_NAME_LABEL: name,
            _ORDINAL_LABEL: str(ordinal),
            _REVISION_LABEL: digest,
        }
        pod = pod_from(owner["spec"]["template"], owner, labels)
        pod["metadata"]["name"] = name
        identity = {"hostname": name, "subdomain": owner["spec"].get("serviceName", "")}
        pod["spec"] = {**pod["spec"], **{k: v for k, v in identity.items() if v}}
        return await self._create_pod(owner, pod)


def _over(pod: Object) -> bool:
    return is_terminating(pod) or dig(pod, "status", "phase") in ("Succeeded", "Failed")
