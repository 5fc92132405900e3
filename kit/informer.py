"""List and watch one kind of object, and keep what matters of it (control plane only).

The state is the last known one at any moment: it stays while the API server is away and while a
new list is fetched, and a list that replaces it is reported as the differences, never as an empty
moment in between. (Kubernetes, "API concepts": efficient detection of changes, 410 Gone and
bookmarks.)
"""

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import aclosing
from typing import Generic, TypeVar

from kit.backoff import Backoff
from kit.clock import monotonic
from kit.kube import SILENCE_S, Kube, KubeError, Object
from kit.limited_log import LimitedLog

T = TypeVar("T")
_log = logging.getLogger(__name__)
_GONE, _NOT_FOUND = 410, 404
_PAGE = 500
_WATCH_S = (240.0, 300.0)
RESYNC_S = 1800.0
"""Between lists that nothing asked for: they would heal what a lost event had spoilt."""
_SHORT_WATCH_S = 1.0
_FAILURES_BEFORE_LIST = 3


class Informer(Generic[T]):
    """Keeps `items` equal to what the API server has under `path`, by "namespace/name".

    `trim` makes of each raw object the small value that is kept; it should compare equal when
    nothing that matters has changed, for then nobody is told. An object that it cannot read (it
    raises) counts as absent, stands in `unreadable` and is logged.
    `on_change(key, old, new)` is called in the loop's thread: `old` is None for an added object,
    `new` for a deleted one. It must not block. `synced` is set once the first list has been told.

    `may_be_absent`: the kind comes with a CustomResourceDefinition that may not be installed; then
    there are no objects of it, and it is asked for again now and then.
    """

    def __init__(
        self,
        kube: Kube,
        path: str,
        on_change: Callable[[str, T | None, T | None], None],
        trim: Callable[[Object], T],
        backoff: Backoff | None = None,
        *,
        may_be_absent: bool = False,
        silence_s: float = SILENCE_S,
        resync_s: float = RESYNC_S,
    ) -> None:
        self._kube, self._path, self._on_change, self._trim = kube, path, on_change, trim
        self._backoff = backoff or Backoff()
        self._may_be_absent, self._silence_s, self._resync_s = may_be_absent, silence_s, resync_s
        self._version: str | None = None
        self._list_due = 0.0
        self.items: dict[str, T] = {}
        self.unreadable: dict[str, str] = {}
        """Why each of the objects that count as absent does."""
        self._limited = LimitedLog(_log)
        self.synced = asyncio.Event()

    async def run(self) -> None:
        """List, watch, and begin again after every failure, until cancelled."""
        while True:
            try:
                if self._version is None or monotonic() >= self._list_due:
                    await self._list()
                await self._watch()
            except KubeError as error:
                await self._pause_after(error)

    async def _list(self) -> None:
        found: dict[str, T] = {}
        seen: set[str] = set()
        query = {"limit": str(_PAGE)}
        while True:
            page = await self._kube.get(self._path, **query)
            for raw in page.get("items") or ():
                self._read(raw, found)
                seen.add(_key(raw))
            metadata = page.get("metadata") or {}
            if not (more := metadata.get("continue")):
                break
            query["continue"] = more
        for key in [key for key in self.items if key not in found]:
            self._put(key, None)
        for key in self.unreadable.keys() - seen:
            del self.unreadable[key]
        for key, item in found.items():
            self._put(key, item)
        self._version = str(metadata.get("resourceVersion", ""))
        self._list_due = monotonic() + self._resync_s * random.uniform(0.8, 1.2)  # noqa: S311
        self.synced.set()

    async def _watch(self) -> None:
        assert self._version is not None
        began, heard = monotonic(), False
        lasts_s = min(random.uniform(*_WATCH_S), max(1.0, self._list_due - began))  # noqa: S311
        events = self._kube.watch(
            self._path, self._version, timeout_s=lasts_s, silence_s=self._silence_s
        )
        async with aclosing(events):
            async for event in events:
                heard = True
                if self._backoff.failures:
                    _log.info("watch works again", extra={"path": self._path})
                    self._backoff.reset()
                self._apply(event)
        if heard or monotonic() - began >= _SHORT_WATCH_S:
            self._backoff.reset()
        else:  # a server that hangs up at once must not be asked again at once
            raise KubeError(0, "WatchEnded", "the watch ended as soon as it began")

    def _apply(self, event: Object) -> None:
        kind, raw = event["type"], event["object"]
        if kind in ("ADDED", "MODIFIED"):
            read: dict[str, T] = {}
            key = self._read(raw, read)
            self._put(key, read.get(key))
        elif kind == "DELETED":
            self.unreadable.pop(_key(raw), None)
            self._put(_key(raw), None)
        elif kind != "BOOKMARK":
            self._version = None
            raise KubeError(0, "Malformed", f"unknown watch event {str(kind)[:32]!r}")
        metadata = raw.get("metadata")
        if isinstance(metadata, dict) and (version := metadata.get("resourceVersion")):
            self._version = str(version)

    def _read(self, raw: Object, into: dict[str, T]) -> str:
        key = _key(raw)
        try:
            into[key] = self._trim(raw)
        except Exception as error:  # whoever wrote it must not end the watch of all others
            self.unreadable[key] = repr(error)
            self._limited.warning(
                "object is unreadable and counts as absent",
                path=self._path,
                object=key,
                error=repr(error),
            )
        else:
            self.unreadable.pop(key, None)
        return key

    def _put(self, key: str, new: T | None) -> None:
        old = self.items.get(key)
        if new is None:
            self.items.pop(key, None)
        else:
            self.items[key] = new
        if old != new:
            self._on_change(key, old, new)

    async def _pause_after(self, error: KubeError) -> None:
        if self._may_be_absent and error.status == _NOT_FOUND:
            # Not a reason to forget what there was: objects that go away are told as deleted.
            if not self.synced.is_set():
                _log.info("this kind is not installed", extra={"path": self._path})
                self.synced.set()
            self._version = None
        if error.status == _GONE or self._backoff.failures >= _FAILURES_BEFORE_LIST:
            self._version = None  # also for a server that came back with an older history
        if not self._backoff.failures:
            _log.warning(
                "watch failed, the last known state stays",
                extra={"path": self._path, "error": str(error)},
            )
        await asyncio.sleep(self._backoff.next_s() + (error.retry_after_s or 0.0))


def _key(raw: object) -> str:
    metadata = raw.get("metadata") if isinstance(raw, dict) else None
    if not isinstance(metadata, dict):
        return "/"
    return f"{metadata.get('namespace', '')}/{metadata.get('name', '')}"
