"""The trust bundle as it stands, who watches it, and which generation each watcher uses.

Roots may only be rotated once every watcher has acknowledged the bundle that holds the new one, so
this is also where a laggard is known by name.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from certs.server.refusals import TooMany
from certs.trust.bundle import TrustBundle

MAX_STREAMS_PER_POD = 4
"""A proxy needs one; during a reconnect the old one may linger."""


class Watcher:
    """One stream of one pod. `acked` is the generation it last said it uses; 0: none yet."""

    def __init__(self, feed: "BundleFeed", pod_uid: str, name: str) -> None:
        self._feed, self.pod_uid, self.name, self.acked = feed, pod_uid, name, 0

    async def bundles(self) -> AsyncIterator[TrustBundle]:
        """The present bundle at once, then each later one; a slow reader gets only the newest."""
        sent = -1
        while True:
            changed = self._feed.changed
            if (bundle := self._feed.current).generation != sent:
                sent = bundle.generation
                yield bundle
            else:
                await changed.wait()

    def ack(self, generation: int) -> None:
        """Note what the watcher uses now. It cannot have what was never sent."""
        if self.acked < generation <= self._feed.current.generation:
            self.acked = generation


class BundleFeed:
    def __init__(self, bundle: TrustBundle) -> None:
        self.current = bundle
        self.changed = asyncio.Event()
        self._watchers: set[Watcher] = set()

    def publish(self, bundle: TrustBundle) -> None:
        """Make `bundle` the present one; its generation must be higher."""
        if bundle.generation <= self.current.generation:
            raise ValueError("a bundle's generation only grows")
        self.current = bundle
        passed, self.changed = self.changed, asyncio.Event()
        passed.set()

    @contextmanager
    def watcher(self, pod_uid: str, name: str) -> Iterator[Watcher]:
        """Count a stream for as long as it lives; raises TooMany for one pod with many."""
        if sum(w.pod_uid == pod_uid for w in self._watchers) >= MAX_STREAMS_PER_POD:
            raise TooMany("streams_per_pod", name)
        watcher = Watcher(self, pod_uid, name)
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    def lagging(self, generation: int) -> tuple[str, ...]:
        """The names of the pods that watch and do not use `generation` yet, sorted."""
        return tuple(sorted({w.name for w in self._watchers if w.acked < generation}))

    def using(self, generation: int) -> tuple[str, ...]:
        """The names of the pods that watch and use `generation` or a later one, sorted."""
        return tuple(sorted({w.name for w in self._watchers if w.acked >= generation}))
