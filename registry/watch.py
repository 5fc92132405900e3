"""Feeds the model: one informer per kind, each change handed on to the hub.

The registry watches on behalf of every sidecar, so that the API server has one client more and not
one per pod.
"""

import asyncio
import logging
from typing import Any

from kit.backoff import Backoff
from kit.informer import Informer
from kit.kube import Kube
from kit.tasks import spawn, stop
from registry.facts import (
    NamespaceFacts,
    NodeFacts,
    PodFacts,
    PolicyObject,
    ServiceFacts,
    SliceFacts,
    read_namespace,
    read_node,
    read_pod,
    read_policy,
    read_service,
    read_slice,
)
from registry.hub import Hub
from registry.model import Model
from registry.policy_status import POLICIES, StatusWriter
from registry.refused import RefusedFields

PODS = "/api/v1/pods"
SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
NAMESPACES = "/api/v1/namespaces"
NODES = "/api/v1/nodes"

_LONGEST_WAIT_S = 5.0
"""Before a CRD that was just installed is seen; a policy must not wait longer for its registry."""
_log = logging.getLogger(__name__)


class ClusterWatch:
    """Keeps `model` equal to the cluster, and tells `hub` what changed."""

    def __init__(self, kube: Kube, model: Model, hub: Hub, refused: RefusedFields) -> None:
        self._model, self._hub, self._refused = model, hub, refused
        policies = Informer(
            kube,
            POLICIES,
            self._policy,
            read_policy,
            Backoff(longest_s=_LONGEST_WAIT_S),
            may_be_absent=True,
        )
        self._status = StatusWriter(kube, model, lambda: policies.items)
        self._by_kind: dict[str, Informer[Any]] = {
            "linkpolicies": policies,
            "namespaces": Informer(kube, NAMESPACES, self._namespace, read_namespace),
            "nodes": Informer(kube, NODES, self._node, read_node),
            "pods": Informer(kube, PODS, self._pod, read_pod),
            "services": Informer(kube, SERVICES, self._service, read_service),
            "endpointslices": Informer(kube, SLICES, self._slice, read_slice),
        }
        self._informers = list(self._by_kind.values())

    def unreadable(self) -> dict[tuple[str, ...], float]:
        """How many objects of each kind count as absent, since nothing can be said of them."""
        return {(kind,): len(one.unreadable) for kind, one in self._by_kind.items()}

    @property
    def synced(self) -> bool:
        """Every kind has been listed once; before that an answer could be wrong."""
        return all(informer.synced.is_set() for informer in self._informers)

    async def wait_synced(self) -> None:
        await asyncio.gather(*(informer.synced.wait() for informer in self._informers))

    async def run(self) -> None:
        """Watch until cancelled."""
        tasks = [
            spawn(informer.run(), name=f"informer {number}")
            for number, informer in enumerate(self._informers)
        ]
        tasks.append(spawn(self._status.run(), name="status of policies"))
        try:
            await asyncio.gather(*tasks)
        finally:
            await stop(*tasks)

    def _pod(self, key: str, old: PodFacts | None, new: PodFacts | None) -> None:
        self._refused.changed("pods", key, old, new)
        self._hub.changed(self._model.change_pod(old, new))

    def _service(self, key: str, old: ServiceFacts | None, new: ServiceFacts | None) -> None:
        self._refused.changed("services", key, old, new)
        self._hub.changed(self._model.change_service(old, new))

    def _slice(self, key: str, old: SliceFacts | None, new: SliceFacts | None) -> None:
        self._refused.changed("endpointslices", key, old, new)
        self._hub.changed(self._model.change_slice(key, old, new))

    def _policy(self, key: str, old: PolicyObject | None, new: PolicyObject | None) -> None:
        self._refused.changed("linkpolicies", key, old, new)
        self._hub.changed(self._model.change_policy(old, new))
        if new is not None:
            _log_unreadable(old, new, self._model)
        self._status.changed()

    def _node(self, key: str, old: NodeFacts | None, new: NodeFacts | None) -> None:
        self._refused.changed("nodes", key, old, new)
        self._hub.changed(self._model.change_node(old, new))

    def _namespace(self, key: str, old: NamespaceFacts | None, new: NamespaceFacts | None) -> None:
        self._refused.changed("namespaces", key, old, new)
        self._hub.changed(self._model.change_namespace(old, new))


def _log_unreadable(old: PolicyObject | None, new: PolicyObject, model: Model) -> None:
    standing = model.policies.standing(new.namespace, new.name)
    told = old is not None and old.raw_spec == new.raw_spec
    if standing is not None and standing.error is not None and not told:
        extra = {
            "policy": f"{new.namespace}/{new.name}",
            "error": str(standing.error),
            "in_force": standing.state,
        }
        _log.warning("LinkPolicy cannot be read", extra=extra)
