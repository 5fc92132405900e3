"""What the CAs and the operators tell each other through ConfigMaps of the system namespace.

    podlink-bans           who is banned: one entry per ban, written by `podlink certs ban`
    podlink-rotation       the operator's last order, and what the CAs say of the rotation
    podlink-ca-ledger-*    one CA's book of living leaves, and its heartbeat

Who may write there may ban and rotate: RBAC on ConfigMaps of this namespace decides. A ban that cannot
be read is told of and left out; it does not take the others with it.
"""

import base64
import binascii
import datetime as dt
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from certs.authority.rotation import RotationMalformed, RotationOrder
from certs.names import BANS_CONFIG_MAP, LEDGER_PREFIX, ROTATION_CONFIG_MAP
from certs.server.ledger import BookMalformed, Entry, from_bytes
from certs.trust.bans import Ban, BanMalformed, Bans
from kit.informer import Informer
from kit.kube import Kube, Object

LIVES_S = 60.0
"""A CA whose heartbeat is older counts as gone; its book does not."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BanNote:
    """One ban with who asked for it and why, as it stands in the ConfigMap."""

    ban: Ban
    by: str = ""
    why: str = ""
    at: str = ""

    def to_json(self) -> str:
        found = {"kind": self.ban.kind, "value": self.ban.value}
        return json.dumps({**found, "by": self.by, "why": self.why, "at": self.at}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "BanNote":
        """Raises BanMalformed."""
        try:
            found = json.loads(text)
            ban = Ban(found["kind"], found["value"])
            notes = [str(found.get(name, ""))[:256] for name in ("by", "why", "at")]
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            raise BanMalformed(f"{type(e).__name__}: {e}"[:256]) from e
        return cls(ban, *notes)


@dataclass(frozen=True, slots=True)
class Book:
    """What one CA has told of itself."""

    replica: str
    heartbeat: dt.datetime
    generation: int
    """Of the bundle it serves."""
    issuer: str
    """SHA-256 of the certificate that it signs with."""
    entries: tuple[Entry, ...]

    def lives(self, now: dt.datetime) -> bool:
        return (now - self.heartbeat).total_seconds() < LIVES_S


class ClusterState:
    """Follows these ConfigMaps. The callbacks are called in the loop when something has changed."""

    def __init__(
        self,
        kube: Kube,
        namespace: str,
        on_bans: Callable[[Bans], None],
        on_trouble: Callable[[str, str], None],
    ) -> None:
        self._on_bans, self._on_trouble = on_bans, on_trouble
        self._informer: Informer[Object] = Informer(
            kube, f"/api/v1/namespaces/{namespace}/configmaps", self._changed, _trim
        )
        self.books: dict[str, Book] = {}
        """By the name of their ConfigMap."""
        self.bans = Bans()
        self.notes: dict[Ban, BanNote] = {}
        self.order: RotationOrder | None = None
        self.status: str = ""
        """What was last written of the rotation."""

    @property
    def synced(self) -> bool:
        return self._informer.synced.is_set()

    async def wait_synced(self) -> None:
        await self._informer.synced.wait()

    async def run(self) -> None:
        await self._informer.run()

    def _changed(self, key: str, old: Object | None, new: Object | None) -> None:
        name = key.partition("/")[2]
        data = new or {}
        if name == BANS_CONFIG_MAP:
            self._bans_changed(data.get("data") or {})
        elif name == ROTATION_CONFIG_MAP:
            self._rotation_changed(data.get("data") or {})
        elif name.startswith(LEDGER_PREFIX):
            if new is None:
                self.books.pop(name, None)
            else:
                self._book_changed(name, data)

    def _bans_changed(self, data: dict[str, Any]) -> None:
        notes: dict[Ban, BanNote] = {}
        for key, text in sorted(data.items()):
            try:
                note = BanNote.from_json(text)
            except BanMalformed as e:
                self._on_trouble("BanMalformed", f"{BANS_CONFIG_MAP}: {key} bans nobody: {e}")
                continue
            notes[note.ban] = note
        try:
            bans = Bans.of(notes)
        except BanMalformed as e:
            self._on_trouble("TooManyBans", f"{BANS_CONFIG_MAP}: {e}; the last list stays in force")
            return
        self.notes = notes
        if bans != self.bans:
            self.bans = bans
            self._on_bans(bans)

    def _rotation_changed(self, data: dict[str, Any]) -> None:
        self.status = str(data.get("status", ""))
        text = data.get("order")
        try:
            self.order = RotationOrder.from_json(text) if text else None
        except RotationMalformed as e:
            self.order = None
            self._on_trouble("RotationOrderMalformed", f"{ROTATION_CONFIG_MAP}: {e}")

    def _book_changed(self, name: str, found: Object) -> None:
        try:
            self.books[name] = read_book(found)
        except BookMalformed as e:
            # Keep what it said before: a leaf must not be forgotten because a write went wrong.
            self._on_trouble("LedgerMalformed", f"{name}: {e}")


def read_book(found: Object) -> Book:
    """A book's ConfigMap; raises BookMalformed."""
    try:
        state = json.loads(found["data"]["state"])
        raw = base64.b64decode((found.get("binaryData") or {}).get("leaves", ""), validate=True)
        return Book(
            replica=str(state["replica"]),
            heartbeat=dt.datetime.fromisoformat(state["heartbeat"]),
            generation=int(state["generation"]),
            issuer=str(state["issuer"]),
            entries=tuple(from_bytes(raw)) if raw else (),
        )
    except (AttributeError, KeyError, TypeError, ValueError, binascii.Error) as e:
        raise BookMalformed(f"{type(e).__name__}: {e}"[:256]) from e


def _trim(raw: Object) -> Object:
    """Only what is ours: the bundle's copies and others' ConfigMaps are not kept."""
    name = raw["metadata"]["name"]
    if name in (BANS_CONFIG_MAP, ROTATION_CONFIG_MAP) or name.startswith(LEDGER_PREFIX):
        return {"data": raw.get("data"), "binaryData": raw.get("binaryData")}
    return {}
