"""What the CAs and the operators tell each other through ConfigMaps (`certs.records`), followed.

Who may write there may ban and rotate: RBAC on ConfigMaps of this namespace decides. A ban that cannot
be read is told of and left out; it does not take the others with it.
"""

from collections.abc import Callable
from typing import Any

from certs.names import BANS_CONFIG_MAP, LEDGER_PREFIX, ROTATION_CONFIG_MAP
from certs.records import BanNote, Book, BookMalformed, read_book
from certs.rotation import RotationMalformed, RotationOrder
from certs.trust.bans import Ban, BanMalformed, Bans
from kit.informer import Informer
from kit.kube import Kube, Object


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


def _trim(raw: Object) -> Object:
    """Only what is ours: the bundle's copies and others' ConfigMaps are not kept."""
    name = raw["metadata"]["name"]
    if name in (BANS_CONFIG_MAP, ROTATION_CONFIG_MAP) or name.startswith(LEDGER_PREFIX):
        return {"data": raw.get("data"), "binaryData": raw.get("binaryData")}
    return {}
