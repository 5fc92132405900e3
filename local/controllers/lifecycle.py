"""Namespaces that end take their objects with them; objects whose owner is gone go as well."""

import asyncio
from contextlib import suppress

from local.apiserver import resources
from local.apiserver.api import Api
from local.apiserver.resources import Resource
from local.errors import ApiError
from local.objects import Object, is_terminating, name_of, namespace_of, uid_of

_NOTICE_S = 0.3


class LifecycleController:
    """Deletes what should not be there any more."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._ending: set[str] = set()

    async def reconcile(self) -> None:
        await self._give_notice()
        ending = {
            name_of(n): n
            for n in self._api.store.select(resources.NAMESPACES.key)
            if is_terminating(n)
        }
        left = dict.fromkeys(ending, 0)
        living = self._living()
        seen = set()
        for resource in self._api.registry.all():
            if resource.key in seen or not resource.stored:
                continue
            seen.add(resource.key)
            for obj in self._api.store.select(resource.key):
                namespace = namespace_of(obj)
                if namespace in ending or _orphaned(obj, living):
                    await self._delete(resource, obj)
                    if self._api.store.get(resource.key, namespace, name_of(obj)) is not None:
                        left[namespace] = left.get(namespace, 0) + 1
        for name, namespace_object in ending.items():
            if left[name] == 0:
                self._api.finalise(resources.NAMESPACES, namespace_object)

    async def _give_notice(self) -> None:
        """Let a namespace's objects be there a moment longer.

        `kubectl delete -f` names the namespace first and its objects right after; a real cluster is
        never so quick that it would not find them.
        """
        namespaces = self._api.store.select(resources.NAMESPACES.key)
        ending = {uid_of(n) for n in namespaces if is_terminating(n)}
        if ending - self._ending:
            await asyncio.sleep(_NOTICE_S)
        self._ending = ending

    def _living(self) -> set[str]:
        store = self._api.store
        return {uid_of(obj) for key in store.kinds() for obj in store.select(key)}

    async def _delete(self, resource: Resource, obj: Object) -> None:
        if not is_terminating(obj):
            with suppress(ApiError):
                await self._api.delete(
                    resource, namespace_of(obj), name_of(obj), uid=obj["metadata"].get("uid")
                )


def _orphaned(obj: Object, living: set[str]) -> bool:
    """Every owner it names is gone (garbage collection, background)."""
    owners = obj["metadata"].get("ownerReferences") or []
    return bool(owners) and all(owner.get("uid") not in living for owner in owners)
