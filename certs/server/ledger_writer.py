"""Keeps this CA's book in the API: what lives, which bundle it serves, and that it is alive.

Written when something has changed, at most every `every_s`, and at least as a heartbeat. Books of CAs
that are gone are deleted once every leaf in them has ended.
"""

import asyncio
import base64
import datetime as dt
import hashlib
import json
import logging

from certs.names import LEDGER_PREFIX
from certs.records import Entry, to_bytes
from certs.server.cluster_state import ClusterState
from certs.server.keeper import KeyKeeper
from certs.server.ledger import Ledger
from kit.backoff import Backoff
from kit.clock import Clock
from kit.kube import Kube, KubeError, Object

ENTRIES_PER_PART = 5000
"""Some 100 bytes each when packed: a ConfigMap holds a mebibyte."""
GOODBYE_S = 2.0
_LONG_AGO = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_log = logging.getLogger(__name__)


class LedgerWriter:
    def __init__(
        self,
        kube: Kube,
        namespace: str,
        replica: str,
        ledger: Ledger,
        keeper: KeyKeeper,
        cluster: ClusterState,
        clock: Clock,
        every_s: float = 20.0,
        busy_s: float = 2.0,
    ) -> None:
        self._kube, self._namespace, self._replica = kube, namespace, replica
        self._ledger, self._keeper, self._cluster, self._clock = ledger, keeper, cluster, clock
        self._every_s, self._busy_s = every_s, busy_s
        self._maps = f"/api/v1/namespaces/{namespace}/configmaps"
        self._written: dict[str, str] = {}
        self._urgent = asyncio.Event()

    def hurry(self) -> None:
        """The bundle or the signer has changed: others wait to hear of it."""
        self._urgent.set()

    async def run(self) -> None:
        """Write until cancelled."""
        backoff = Backoff(first_s=0.5, longest_s=15.0)
        while True:
            wait_s = self._busy_s if self._keeper.keyring.rotation else self._every_s
            try:
                await self.write()
                await self.delete_ended()
                backoff.reset()
            except KubeError as e:
                wait_s = backoff.next_s()
                _log.warning("the ledger was not written", extra={"error": str(e)})
            try:
                async with asyncio.timeout(wait_s):
                    await self._urgent.wait()
            except TimeoutError:
                pass
            self._urgent.clear()

    async def write(self, heartbeat: dt.datetime | None = None) -> None:
        """Write every part that has changed, and the heartbeat (now). Raises KubeError."""
        now = self._clock()
        self._ledger.forget_ended(now)
        entries = sorted(self._ledger.entries(), key=lambda e: e.pod_uid)
        parts = [
            entries[at : at + ENTRIES_PER_PART]
            for at in range(0, max(len(entries), 1), ENTRIES_PER_PART)
        ]
        for number, part in enumerate(parts):
            await self._write_part(number, part, heartbeat or now)
        for name in [n for n in self._written if self._number(n) >= len(parts)]:
            await self._delete(name)
            del self._written[name]

    async def say_goodbye(self) -> None:
        """Write once more, without a heartbeat, so that no rotation waits for us. Never fails."""
        try:
            async with asyncio.timeout(GOODBYE_S):
                await self.write(_LONG_AGO)
        except (KubeError, TimeoutError) as e:
            _log.warning("the ledger was not written", extra={"error": str(e)})

    async def delete_ended(self) -> None:
        """Delete the books of CAs that are gone, with nothing living in them."""
        now = self._clock()
        for name, book in list(self._cluster.books.items()):
            gone = book.replica != self._replica and not book.lives(now)
            if gone and all(entry.not_after <= now for entry in book.entries):
                await self._delete(name)

    async def _write_part(self, number: int, part: list[Entry], heartbeat: dt.datetime) -> None:
        name = LEDGER_PREFIX + self._replica + (f"-{number}" if number else "")
        raw = to_bytes(part)
        digest = hashlib.sha256(raw).hexdigest()
        authority = self._keeper.authority
        state = {
            "replica": self._replica,
            "heartbeat": heartbeat.isoformat(),
            "generation": authority.bundle.generation,
            "issuer": authority.issuer_sha256,
            "leaves": len(part),
        }
        body: Object = {"data": {"state": json.dumps(state, sort_keys=True)}}
        if self._written.get(name) != digest:
            body["binaryData"] = {"leaves": base64.b64encode(raw).decode("ascii")}
        try:
            await self._kube.patch(f"{self._maps}/{name}", body)
        except KubeError as e:
            if e.status != 404:
                raise
            body["binaryData"] = {"leaves": base64.b64encode(raw).decode("ascii")}
            labels = {"app.kubernetes.io/part-of": "podlink"}
            metadata = {"name": name, "namespace": self._namespace, "labels": labels}
            whole = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, **body}
            await self._kube.create(self._maps, whole)
        self._written[name] = digest

    def _number(self, name: str) -> int:
        rest = name.removeprefix(LEDGER_PREFIX + self._replica).removeprefix("-")
        return int(rest) if rest.isdigit() else 0

    async def _delete(self, name: str) -> None:
        try:
            await self._kube.delete(f"{self._maps}/{name}")
        except KubeError as e:
            if e.status != 404:
                raise
