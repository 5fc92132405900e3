"""One CA's book: who holds which leaf, from which signer, until when, and which bundle it uses.

The books of all CAs are merged (`certs.records`) to know whom a rotation waits for. A book is kept in
the API (`ledger_writer`), so that a restart does not forget a leaf that is out there.
"""

import datetime as dt
from collections.abc import Iterable
from dataclasses import replace

from certs.records import Entry
from certs.server.issuance import Issuance


class Ledger:
    """One CA's book."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self.changes = 0
        """Counts up with every change, so that a writer knows whether to write."""

    def issued(self, issuance: Issuance) -> None:
        old = self._entries.get(issuance.pod_uid)
        self._put(
            Entry(
                pod_uid=issuance.pod_uid,
                pod=f"{issuance.namespace}/{issuance.pod_name}",
                identity=issuance.identity,
                serial=issuance.serial,
                issuer=issuance.issuer,
                node=issuance.node,
                issued_at=issuance.at,
                not_after=issuance.not_after,
                acked=old.acked if old else 0,
            )
        )

    def watches(
        self, pod_uid: str, pod: str, identity: str, now: dt.datetime, leaf: dt.timedelta
    ) -> None:
        """A pod watches the bundle. If we did not issue its leaf, it may live as long as any."""
        if pod_uid not in self._entries:
            self._put(Entry(pod_uid, pod, identity, "", "", "", now, now + leaf))

    def acked(self, pod_uid: str, generation: int, claimed_serial: str) -> None:
        """The pod uses this bundle. The serial it claims fills only what nobody knows better."""
        if (old := self._entries.get(pod_uid)) is None:
            return
        serial = old.serial or claimed_serial[:40]
        new = replace(old, acked=max(old.acked, generation), serial=serial)
        if new != old:
            self._put(new)

    def forget(self, pod_uid: str) -> None:
        if self._entries.pop(pod_uid, None) is not None:
            self.changes += 1

    def forget_ended(self, now: dt.datetime) -> None:
        for uid in [uid for uid, entry in self._entries.items() if entry.not_after <= now]:
            self.forget(uid)

    def entries(self) -> list[Entry]:
        return list(self._entries.values())

    def adopt(self, entries: Iterable[Entry]) -> None:
        """Take over what an earlier life of this CA had written."""
        for entry in entries:
            self._entries.setdefault(entry.pod_uid, entry)

    def _put(self, entry: Entry) -> None:
        self._entries[entry.pod_uid] = entry
        self.changes += 1
