"""One watch: the changes to a kind, as a selector sees them, from a version on."""

import asyncio
from collections.abc import AsyncGenerator

from local.apiserver.resources import Resource
from local.apiserver.selectors import Match
from local.apiserver.store import Event, Store
from local.errors import ApiError
from local.objects import Object, namespace_of

_MAX_BEHIND = 10_000
"""Events that may wait for a slow reader; after that it is told to list anew."""


def seen(event: Event, namespace: str, match: Match) -> Object | None:
    """The event as a watcher with this selector sees it: what leaves the selection is deleted."""
    if namespace not in ("", namespace_of(event.object)):
        return None
    now = event.type != "DELETED" and match(event.object)
    before = event.before is not None and match(event.before)
    if now:
        return {"type": "MODIFIED" if before else "ADDED", "object": event.object}
    return {"type": "DELETED", "object": event.object} if before else None


async def changes(
    store: Store, resource: Resource, namespace: str, match: Match, version: int | None
) -> AsyncGenerator[Object, None]:
    """Watch events, without end. `version` None or 0 begins with what there is now.

    Raises ApiError Expired at once if `version` is forgotten. Close the iterator to end the watch.
    """
    queue: asyncio.Queue[Event] = asyncio.Queue(_MAX_BEHIND)
    lost = asyncio.Event()

    def hear(event: Event) -> None:
        if event.key == resource.key:
            try:
                queue.put_nowait(event)
            except asyncio.QueueFull:
                lost.set()

    # The past is taken and the listener set without a wait in between, so nothing falls through.
    past = list(store.since(resource.key, version)) if version else []
    present = [] if version else store.select(resource.key, namespace)
    stop = store.listen(hear)
    try:
        for obj in present:
            if match(obj):
                yield {"type": "ADDED", "object": obj}
        for event in past:
            if (shown := seen(event, namespace, match)) is not None:
                yield shown
        while not lost.is_set():
            event = await queue.get()
            if (shown := seen(event, namespace, match)) is not None:
                yield shown
        raise ApiError(410, "Expired", "the watch fell too far behind")
    finally:
        stop()
