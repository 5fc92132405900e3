"""An SvidSource over the files of `bench.certificates`: no CA is part of this bench."""

import asyncio
import ssl
from collections.abc import Mapping
from pathlib import Path

from certs.client.source import BansSubscriber, Subscriber, Svid
from certs.trust.bans import NO_BANS, Bans
from certs.trust.contexts import TlsMaterial
from certs.trust.svid import check_leaf
from kit.clock import monotonic, utcnow

TRUST_DOMAIN = "cluster.local"


class FileSource:
    def __init__(self, folder: Path, name: str) -> None:
        key, chain = (folder / f"{name}.key").read_bytes(), (folder / f"{name}.pem").read_bytes()
        der = ssl.PEM_cert_to_DER_cert(chain.decode("ascii"))
        facts = check_leaf(der, trust_domain=TRUST_DOMAIN, now=utcnow())
        material = TlsMaterial(key, chain, (folder / "ca.pem").read_bytes())
        self.current: Svid | None = Svid(material, facts, 1, facts.not_after, monotonic() + 3600)

    @property
    def bans(self) -> Bans:
        return NO_BANS

    @property
    def refreshes(self) -> Mapping[str, int]:
        return {"ok": 1, "failed": 0}

    def subscribe(self, callback: Subscriber) -> None:
        """It never changes."""

    def told_banned(self, by: str) -> None:
        pass

    def subscribe_bans(self, callback: BansSubscriber) -> None:
        """There are none."""

    async def wait_ready(self) -> None:
        return None

    async def run(self) -> None:
        await asyncio.Event().wait()
