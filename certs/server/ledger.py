"""Which leaves live: who holds which, from which signer, until when, and which bundle it uses.

Pure but for what is handed in. Each CA keeps the book of what it issued and of who watches it; the
books of all CAs are merged to know whom a rotation waits for. A book is kept in the API (see
`ledger_writer`), so that a restart does not forget a leaf that is out there.
"""

import datetime as dt
import gzip
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from certs.server.issuance import Issuance

_MAX_BOOK_BYTES = 64 << 20


class BookMalformed(ValueError):
    """A stored book cannot be read."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The newest leaf of one pod. Times are aware, in UTC."""

    pod_uid: str
    pod: str
    """`namespace/name`."""
    identity: str
    serial: str
    issuer: str
    """SHA-256 of the certificate that signed it, hex; empty if another CA did and told nobody."""
    node: str
    issued_at: dt.datetime
    not_after: dt.datetime
    acked: int = 0
    """The generation of the bundle that the pod last said it uses."""


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


def merged(books: Iterable[Iterable[Entry]], now: dt.datetime) -> dict[str, Entry]:
    """The living leaves by pod UID: of two entries the newer leaf, and the newest acknowledgement."""
    found: dict[str, Entry] = {}
    for book in books:
        for entry in book:
            if entry.not_after <= now:
                continue
            old = found.get(entry.pod_uid)
            if old is None:
                found[entry.pod_uid] = entry
                continue
            # An entry that only a watch made knows nothing of the leaf.
            newer = max(old, entry, key=lambda e: (bool(e.issuer), e.issued_at))
            found[entry.pod_uid] = replace(newer, acked=max(old.acked, entry.acked))
    return found


def to_bytes(entries: Iterable[Entry]) -> bytes:
    """A book as it is stored: gzip of JSON lines."""
    lines = []
    for entry in entries:
        found = asdict(entry)
        found["issued_at"], found["not_after"] = (
            entry.issued_at.isoformat(),
            entry.not_after.isoformat(),
        )
        lines.append(json.dumps(found))
    return gzip.compress("\n".join(lines).encode(), 6, mtime=0)


def from_bytes(raw: bytes) -> list[Entry]:
    """Raises BookMalformed."""
    try:
        text = gzip.decompress(raw)
        if len(text) > _MAX_BOOK_BYTES:
            raise BookMalformed(f"{len(text)} bytes")
        return [_entry(json.loads(line)) for line in text.splitlines()]
    except (OSError, EOFError, KeyError, TypeError, ValueError) as e:
        raise BookMalformed(f"{type(e).__name__}: {e}"[:256]) from e


def _entry(found: Any) -> Entry:
    return Entry(
        pod_uid=str(found["pod_uid"]),
        pod=str(found["pod"]),
        identity=str(found["identity"]),
        serial=str(found["serial"]),
        issuer=str(found["issuer"]),
        node=str(found["node"]),
        issued_at=dt.datetime.fromisoformat(found["issued_at"]),
        not_after=dt.datetime.fromisoformat(found["not_after"]),
        acked=int(found["acked"]),
    )
