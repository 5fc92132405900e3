"""The trust bundle and the bans as they stand, who watches them, and what each watcher uses.

Roots may only be rotated once every watcher has acknowledged the bundle that holds the new one, so
this is also where a laggard is known by name.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from certs.server.refusals import TooMany
from certs.trust.bans import NO_BANS, Bans
from certs.trust.bundle import TrustBundle

MAX_STREAMS_PER_POD = 4
"""A proxy needs one; during a reconnect the old one may linger."""


@dataclass(frozen=True, slots=True)
class News:
    """What a watcher is told. `revision` grows with every change of either."""

    bundle: TrustBundle
    bans: Bans
    revision: int
    bans_known: bool = False
    """False until the ban list could be read: then nobody is told that there are none."""


class Watcher:
    """One stream of one pod. `acked` is the generation it last said it uses; 0: none yet."""

    def __init__(self, feed: "BundleFeed", pod_uid: str, name: str) -> None:
        self._feed, self.pod_uid, self.name, self.acked = feed, pod_uid, name, 0
        self.revision = 0
        """The newest revision that it said it uses."""

    async def news(self) -> AsyncGenerator[News, None]:
        """The present state at once, then each later one; a slow reader gets only the newest."""
        sent = -1
        while True:
            changed = self._feed.changed
            if (news := self._feed.news).revision != sent:
                sent = news.revision
                yield news
            else:
                await changed.wait()

    def ack(self, generation: int, revision: int = 0) -> None:
        """Note what the watcher uses now. It cannot have what was never sent."""
        if self.acked < generation <= self._feed.current.generation:
            self.acked = generation
        if self.revision < revision <= self._feed.news.revision:
            self.revision = revision


class BundleFeed:
    def __init__(self, bundle: TrustBundle, bans: Bans = NO_BANS) -> None:
        self.news = News(bundle, bans, 1)
        self.changed = asyncio.Event()
        self.watchers: set[Watcher] = set()

    @property
    def current(self) -> TrustBundle:
        return self.news.bundle

    def publish(self, bundle: TrustBundle) -> None:
        """Make `bundle` the present one; its generation must be higher."""
        if bundle.generation <= self.current.generation:
            raise ValueError("a bundle's generation only grows")
        news = self.news
        self._tell(News(bundle, news.bans, news.revision + 1, news.bans_known))

    def ban(self, bans: Bans) -> None:
        """Make these the bans in force."""
        self._tell(News(self.news.bundle, bans, self.news.revision + 1, True))

    def _tell(self, news: News) -> None:
        self.news = news
        passed, self.changed = self.changed, asyncio.Event()
        passed.set()

    @contextmanager
    def watcher(self, pod_uid: str, name: str) -> Iterator[Watcher]:
        """Count a stream for as long as it lives; raises TooMany for one pod with many."""
        if sum(w.pod_uid == pod_uid for w in self.watchers) >= MAX_STREAMS_PER_POD:
            raise TooMany("streams_per_pod", name)
        watcher = Watcher(self, pod_uid, name)
        self.watchers.add(watcher)
        try:
            yield watcher
        finally:
            self.watchers.discard(watcher)

    def lagging(self, generation: int) -> tuple[str, ...]:
        """The names of the pods that watch and do not use `generation` yet, sorted."""
        return self._names(lambda w: w.acked < generation)

    def using(self, generation: int) -> tuple[str, ...]:
        """The names of the pods that watch and use `generation` or a later one, sorted."""
        return self._names(lambda w: w.acked >= generation)

    def _names(self, wanted: Callable[[Watcher], bool]) -> tuple[str, ...]:
        return tuple(sorted({w.name for w in self.watchers if wanted(w)}))
