"""An SvidSource whose Svid a test sets by hand."""

import asyncio

from certs.client.source import BansSubscriber, Subscriber, Svid
from certs.trust.bans import NO_BANS, Bans
from certs.trust.contexts import TlsMaterial
from certs.trust.svid import check_leaf
from kit.clock import monotonic, utcnow
from tests.certs.forge import Forge, Pair


class FakeSource:
    """`FakeSource(forge, pair)` has that leaf in force; `show` puts another one there."""

    def __init__(self, forge: Forge, pair: Pair | None = None) -> None:
        self._forge = forge
        self._ready = asyncio.Event()
        self._subscribers: list[Subscriber] = []
        self._bans_subscribers: list[BansSubscriber] = []
        self.bans: Bans = NO_BANS
        self._generation = 0
        self.current: Svid | None = None
        if pair is not None:
            self.show(pair)

    def show(self, pair: Pair, bundle_pem: bytes | None = None) -> Svid:
        facts = check_leaf(pair.der, trust_domain=self._forge.trust_domain, now=utcnow())
        self._generation += 1
        left_s = (facts.not_after - utcnow()).total_seconds()
        self.current = svid = Svid(
            material=TlsMaterial(pair.key_pem, pair.chain_pem, bundle_pem or self._forge.root_pem),
            facts=facts,
            generation=self._generation,
            expires_at=facts.not_after,
            deadline=monotonic() + left_s,
            bundle_generation=1,
        )
        self._ready.set()
        for callback in self._subscribers:
            callback(svid)
        return svid

    def expire(self) -> None:
        self.current = None

    def subscribe(self, callback: Subscriber) -> None:
        self._subscribers.append(callback)

    def ban(self, bans: Bans) -> None:
        self.bans = bans
        for callback in self._bans_subscribers:
            callback(bans)

    @property
    def refreshes(self) -> dict[str, int]:
        return {"ok": self._generation, "failed": 0}

    def told_banned(self, by: str) -> None:
        pass

    def subscribe_bans(self, callback: BansSubscriber) -> None:
        self._bans_subscribers.append(callback)

    async def wait_ready(self) -> None:
        await self._ready.wait()

    async def run(self) -> None:
        await asyncio.Event().wait()
