"""What the CAs and the operators write to each other in ConfigMaps of the system namespace. Pure.

    podlink-bans           who is banned: one entry per ban, written by `podlink certs ban`
    podlink-rotation       the operator's last order, and what the CAs say of the rotation
    podlink-ca-ledger-*    one CA's book: which leaves live, which bundle it serves, its heartbeat

No secret is in any of them. (Orders and the state of a rotation: `certs.rotation`.)
"""

import base64
import binascii
import datetime as dt
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from certs.trust.bans import Ban, BanMalformed

LIVES_S = 60.0
"""A CA whose heartbeat is older counts as gone; its book does not."""
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
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            text = file.read(_MAX_BOOK_BYTES + 1)  # never more: a book could be a bomb
        if len(text) > _MAX_BOOK_BYTES:
            raise BookMalformed(f"more than {_MAX_BOOK_BYTES} bytes")
        return [_entry(json.loads(line)) for line in text.splitlines()]
    except (OSError, EOFError, zlib.error, KeyError, TypeError, ValueError) as e:
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


def read_book(found: Mapping[str, Any]) -> Book:
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
