"""Runs a reconcile function whenever the kinds it looks at have changed.

Level-triggered: changes only say that something is to be looked at, and a burst of them costs one
pass. A pass that fails is tried again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from kit.backoff import Backoff
from kit.tasks import spawn, stop
from local.apiserver.resources import Resource
from local.apiserver.store import Event, Store
from local.errors import LocalError

_log = logging.getLogger(__name__)


class Loop:
    """One controller. `start` it, and `stop` it."""

    def __init__(
        self,
        name: str,
        store: Store,
        looks_at: Iterable[Resource] | None,
        reconcile: Callable[[], Awaitable[None]],
    ) -> None:
        """`looks_at` None means every kind."""
        self._name, self._reconcile = name, reconcile
        self._keys = None if looks_at is None else {r.key for r in looks_at}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        store.listen(self._hear)

    def start(self) -> None:
        self._task = spawn(self._run(), name=self._name)

    async def stop(self) -> None:
        await stop(self._task)

    def _hear(self, event: Event) -> None:
        if self._keys is None or event.key in self._keys:
            self._changed.set()

    async def _run(self) -> None:
        backoff = Backoff(first_s=0.05, longest_s=5.0)
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._reconcile()
                backoff.reset()
            except LocalError as e:
                _log.info("controller will try again", extra={"name_": self._name, "why": str(e)})
                await asyncio.sleep(backoff.next_s())
                self._changed.set()
