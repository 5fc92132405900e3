"""An SvidSource whose certificate a test chooses, and may change."""

import asyncio

from certs.client.source import BansSubscriber, Subscriber, Svid
from certs.trust.bans import NO_BANS, Bans
from certs.trust.contexts import TlsMaterial
from certs.trust.svid import check_leaf
from kit.clock import monotonic, utcnow
from tests.certs.forge import Forge, Pair


class FixedSource:
    def __init__(self, forge: Forge, pair: Pair) -> None:
        self._forge, self._subscribers = forge, list[Subscriber]()
        self._bans_subscribers: list[BansSubscriber] = []
        self.bans: Bans = NO_BANS
        self.current: Svid | None = None
        self.show(pair)

    def show(self, pair: Pair) -> None:
        facts = check_leaf(pair.der, trust_domain=self._forge.trust_domain, now=utcnow())
        self.current = svid = Svid(
            material=TlsMaterial(pair.key_pem, pair.chain_pem, self._forge.root_pem),
            facts=facts,
            generation=self.current.generation + 1 if self.current else 1,
            expires_at=facts.not_after,
            deadline=monotonic() + 3600,
        )
        for callback in self._subscribers:
            callback(svid)

    def subscribe(self, callback: Subscriber) -> None:
        self._subscribers.append(callback)

    def ban(self, bans: Bans) -> None:
        self.bans = bans
        for callback in self._bans_subscribers:
            callback(bans)

    @property
    def refreshes(self) -> dict[str, int]:
        return {"ok": self.current.generation if self.current else 0, "failed": 0}

    def told_banned(self, by: str) -> None:
        pass

    def subscribe_bans(self, callback: BansSubscriber) -> None:
        self._bans_subscribers.append(callback)

    async def wait_ready(self) -> None:
        return None

    async def run(self) -> None:
        await asyncio.Event().wait()
