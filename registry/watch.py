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
from registry.endpoints import Dropped
from registry.facts import (
    NamespaceFacts,
    PodFacts,
    PolicyObject,
    ServiceFacts,
    SliceFacts,
    read_namespace,
    read_pod,
    read_policy,
    read_service,
    read_slice,
)
from registry.hub import Hub
from registry.model import Model
from registry.policy_status import POLICIES, StatusWriter

PODS = "/api/v1/pods"
SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
NAMESPACES = "/api/v1/namespaces"

_QUIET = frozenset({"stale_target"})  # each pod's end passes through it
_MAX_LOGGED = 5
_LONGEST_WAIT_S = 5.0
"""Before a CRD that was just installed is seen; a policy must not wait longer for its registry."""
_log = logging.getLogger(__name__)


class ClusterWatch:
    """Keeps `model` equal to the cluster, and tells `hub` what changed."""

    def __init__(self, kube: Kube, model: Model, hub: Hub) -> None:
        self._model, self._hub = model, hub
        policies = Informer(
            kube,
            POLICIES,
            self._policy,
            read_policy,
            Backoff(longest_s=_LONGEST_WAIT_S),
            may_be_absent=True,
        )
        self._status = StatusWriter(kube, model, lambda: policies.items)
        self._informers: list[Informer[Any]] = [
            policies,
            Informer(kube, NAMESPACES, self._namespace, read_namespace),
            Informer(kube, PODS, self._pod, read_pod),
            Informer(kube, SERVICES, self._service, read_service),
            Informer(kube, SLICES, self._slice, read_slice),
        ]

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

    def _pod(self, _: str, old: PodFacts | None, new: PodFacts | None) -> None:
        self._hub.changed(self._model.change_pod(old, new))

    def _service(self, _: str, old: ServiceFacts | None, new: ServiceFacts | None) -> None:
        self._hub.changed(self._model.change_service(old, new))

    def _slice(self, key: str, old: SliceFacts | None, new: SliceFacts | None) -> None:
        self._hub.changed(self._model.change_slice(key, old, new))

    def _policy(self, _: str, old: PolicyObject | None, new: PolicyObject | None) -> None:
        self._hub.changed(self._model.change_policy(old, new))
        if new is not None:
            _log_unreadable(old, new, self._model)
        self._status.changed()

    def _namespace(self, _: str, old: NamespaceFacts | None, new: NamespaceFacts | None) -> None:
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


def log_dropped(service: str, dropped: list[Dropped]) -> None:
    """One line per Service whose refused addresses changed, with a few of them."""
    worth = [one for one in dropped if one.reason not in _QUIET]
    if worth:
        shown = ", ".join(f"{one.claimed_ip!r} {one.reason}" for one in worth[:_MAX_LOGGED])
        extra = {"service": service, "count": len(worth), "addresses": shown}
        _log.warning("endpoint addresses refused", extra=extra)
