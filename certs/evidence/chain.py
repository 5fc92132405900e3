"""The hash chain over a sidecar's records. Pure.

    hash(n) = SHA-256("podlink-record-1" || chain id || n || hash(n-1) || ids || times || source port
              || bytes each way || claimed context || SHA-256(name and the other attributes, sorted))

Nothing depends on how a store writes a span down: names, values, ids and times in microseconds are
enough. A span carries hash(n-1); a checkpoint, signed, carries hash(n). So what a checkpoint reaches
going back is proven, whoever kept the spans; behind a missing or altered record nothing is, until the
checkpoint before that.
"""

import hashlib
import json
import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

Value = str | int | bool

CHAIN_ID: Final = "podlink.chain.id"
SEQUENCE: Final = "podlink.chain.sequence"
PREVIOUS: Final = "podlink.chain.previous"
STATEMENT: Final = "podlink.chain.statement"
SIGNATURE: Final = "podlink.chain.signature"
CERTIFICATES: Final = "podlink.chain.certificates"
CHECKPOINT: Final = "chain checkpoint"

GENESIS: Final = bytes(32)
_VARYING: Final = frozenset(
    {"client.port", "podlink.bytes.sent", "podlink.bytes.received", CHAIN_ID, SEQUENCE, PREVIOUS}
)
"""Hashed by themselves, since they differ from link to link; the rest repeats and is hashed once."""
_HEAD: Final = struct.Struct(">17s16sQ32s16s8s8sQQIQQ32s")
_MAGIC: Final = b"podlink-record-1\0"
_U64: Final = (1 << 64) - 1


def repeating_digest(name: str, attributes: Mapping[str, Value | None]) -> bytes:
    """Of a span's name and of the attributes that repeat; those without a value are left out."""
    parts = [
        canonical(key, value)
        for key, value in sorted(attributes.items())
        if value is not None and value != "" and key not in _VARYING
    ]
    return digest_of(name, parts)


def canonical(key: str, value: Value) -> bytes:
    """One attribute as it is hashed: both lengths are told, so that no two lists read alike."""
    if isinstance(value, bool):
        text, kind = ("true" if value else "false"), b"b"
    elif isinstance(value, int):
        text, kind = str(value), b"i"
    else:
        text, kind = value, b"s"
    raw_key, raw_text = key.encode("utf-8", "replace"), text.encode("utf-8", "replace")
    return b"\0%d:%b%b%d:%b" % (len(raw_key), raw_key, kind, len(raw_text), raw_text)


def digest_of(name: str, parts: Iterable[bytes]) -> bytes:
    """As repeating_digest, from attributes already in canonical form and in the order of their keys."""
    return hashlib.sha256(name.encode("utf-8", "replace") + b"".join(parts)).digest()


def record_hash(
    chain: bytes,
    sequence: int,
    previous: bytes,
    ids: tuple[bytes, bytes, bytes],
    times_ns: tuple[int, int],
    numbers: tuple[int, int, int],
    repeating: bytes,
    claimed: bytes = b"",
) -> bytes:
    """`ids` are trace, span and parent (empty: none); `numbers` source port, bytes sent, received."""
    trace_id, span_id, parent = ids
    head = _HEAD.pack(
        _MAGIC,
        chain,
        sequence,
        previous,
        trace_id,
        span_id,
        parent,
        (times_ns[0] + 500) // 1000 & _U64,  # some stores keep microseconds, or pass them by float
        (times_ns[1] + 500) // 1000 & _U64,
        numbers[0] & 0xFFFFFFFF,
        numbers[1] & _U64,
        numbers[2] & _U64,
        repeating,
    )
    return hashlib.sha256(head + claimed).digest()


class Chain:
    """A chain while it grows: one run of one sidecar."""

    __slots__ = ("hash", "id", "sequence")

    def __init__(self, chain_id: bytes) -> None:
        self.id = chain_id
        self.sequence = 0
        """The number of the last record; the first is 1."""
        self.hash = GENESIS

    def append(
        self,
        ids: tuple[bytes, bytes, bytes],
        times_ns: tuple[int, int],
        numbers: tuple[int, int, int],
        repeating: bytes,
        claimed: bytes = b"",
    ) -> tuple[int, bytes]:
        """Take the next record in; returns its number and the hash before it."""
        previous, self.sequence = self.hash, self.sequence + 1
        self.hash = record_hash(
            self.id, self.sequence, previous, ids, times_ns, numbers, repeating, claimed
        )
        return self.sequence, previous


def statement(
    chain: Chain,
    at_ns: int,
    pod: str,
    pod_uid: str,
    counts: Mapping[str, int],
    *,
    last: bool = False,
) -> str:
    """What a checkpoint signs, as one line of JSON: how far the chain has come, and what of all that
    was to be recorded is not in it (sampled out, dropped). `last`: the sidecar ends, nothing follows."""
    said: dict[str, object] = {
        "version": 1,
        "chain": chain.id.hex(),
        "sequence": chain.sequence,
        "hash": chain.hash.hex(),
        "at_unix_ns": str(at_ns),
        "pod": pod,
        "pod_uid": pod_uid,
        "counts": dict(counts),
    }
    if last:
        said["last"] = True
    return json.dumps(said, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature over a statement, and the certificates to check it by; both in base64."""

    signature: str
    certificates: str
    """DER, the leaf first, each in base64, with commas."""


# --- judging a chain that was kept -------------------------------------------------------------


class EvidenceMalformed(ValueError):
    """Not a record or a checkpoint of ours; the message names the field."""

    reason = "evidence_malformed"


@dataclass(frozen=True, slots=True)
class Kept:
    """A record as some store gave it back."""

    chain: str
    sequence: int
    previous: bytes
    hash: bytes
    """What its content comes to, whatever it was when it was written."""
    trace_id: str
    span_id: str
    reporter: str = ""
    """Identity of the side that the record says it is of; empty if it had none yet."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """A checkpoint whose signature was checked: the chain had this hash at this number."""

    sequence: int
    hash: bytes
    at_ns: int
    identity: str
    counts: Mapping[str, int] = field(default_factory=dict)
    last: bool = False
    """The sidecar said that nothing follows."""


@dataclass(frozen=True, slots=True)
class ChainJudged:
    """What is left of one chain. Numbers are of records; ranges include both ends."""

    chain: str
    first: int
    last: int
    proven: int
    unproven: int
    """Consistent or not, no signature reaches them: after the last checkpoint, or behind a hole."""
    missing: tuple[tuple[int, int], ...]
    altered: tuple[int, ...]
    """Numbers at which a record stands that is not the one that was written."""
    identities: tuple[str, ...]
    last_signed: int
    counts: Mapping[str, int]
    """From the last checkpoint: what the sidecar itself dropped or sampled out."""

    @property
    def sound(self) -> bool:
        return not self.missing and not self.altered


def read_record(item: Mapping[str, object]) -> Kept | None:
    """A span as the store's API gives it (ids in hex, times in Unix nanoseconds as text, attributes
    by name); None if it is in no chain. Raises EvidenceMalformed."""
    attributes = _mapping(item.get("attributes"))
    if CHAIN_ID not in attributes or item.get("name") == CHECKPOINT:
        return None
    try:
        chain, sequence = bytes.fromhex(str(attributes[CHAIN_ID])), _count(attributes.get(SEQUENCE))
        previous = bytes.fromhex(str(attributes.get(PREVIOUS, "")))
        ids = (
            bytes.fromhex(str(item.get("trace_id", ""))),
            bytes.fromhex(str(item.get("span_id", ""))),
            bytes.fromhex(str(item.get("parent_span_id", ""))),
        )
        times_ns = (int(str(item.get("start_unix_ns", ""))), int(str(item.get("end_unix_ns", ""))))
        if [len(chain), len(previous), *map(len, ids[:2])] != [16, 32, 16, 8]:
            raise EvidenceMalformed("an id or a hash is not of its length")
        numbers = (
            _count(attributes.get("client.port", 0)),
            _count(attributes.get("podlink.bytes.sent", 0)),
            _count(attributes.get("podlink.bytes.received", 0)),
        )
        own = {k: v for k, v in attributes.items() if isinstance(v, str | int | bool)}
        found = record_hash(
            chain,
            sequence,
            previous,
            ids,
            times_ns,
            numbers,
            repeating_digest(str(item.get("name", "")), own),
            _claimed(item.get("links")),
        )
    except (ValueError, struct.error) as e:
        raise EvidenceMalformed(f"a record of chain {str(attributes[CHAIN_ID])[:64]}: {e}") from e
    side = "source" if attributes.get("podlink.direction") == "outbound" else "destination"
    reporter = str(attributes.get(f"podlink.{side}.identity", ""))
    return Kept(chain.hex(), sequence, previous, found, ids[0].hex(), ids[1].hex(), reporter)


def read_statement(text: str) -> tuple[str, str, Anchor]:
    """Chain id, pod UID and anchor of a checkpoint's statement, whose signature the caller has
    checked; the identity is the caller's to fill in. Raises EvidenceMalformed."""
    try:
        said = json.loads(text)
        if said["version"] != 1:
            raise EvidenceMalformed("a checkpoint of another version")
        counts = {str(k): _count(v) for k, v in dict(said["counts"]).items()}
        anchor = Anchor(
            _count(said["sequence"]),
            bytes.fromhex(said["hash"]),
            int(said["at_unix_ns"]),
            "",
            counts,
            said.get("last") is True,
        )
        return str(said["chain"]), str(said["pod_uid"]), anchor
    except EvidenceMalformed:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise EvidenceMalformed(f"a checkpoint is not of its form: {type(e).__name__}") from e


def judge(chain: str, kept: Iterable[Kept], anchors: Sequence[Anchor]) -> ChainJudged:
    """What of one chain is proven. All its kept records and all its checked checkpoints at once."""
    by_number: dict[int, dict[bytes, Kept]] = defaultdict(dict)
    for record in kept:
        by_number[record.sequence][record.hash] = record
    signed: dict[int, set[bytes]] = defaultdict(set)
    for anchor in anchors:
        signed[anchor.sequence].add(anchor.hash)
    last_signed = max(signed, default=0)
    numbers = [*by_number, *(n for n in signed if n)]
    first, last = min(by_number, default=0), max(numbers, default=0)
    proven = unproven = 0
    altered: set[int] = set()
    expected: bytes | None = None
    # From the newest back: a signature reaches what came before it, never what came after.
    for number in sorted({*by_number, *signed}, reverse=True):
        if number + 1 not in by_number:
            expected = None  # a hole: what stood there would have named the hash before it
        said = signed.get(number, set())
        if expected is None and len(said) == 1:
            (expected,) = said
        elif said and (expected is None or expected not in said or len(said) > 1):
            altered.add(
                number
            )  # two checkpoints, or checkpoint and records, tell different stories
            expected = None
        here = by_number.get(number)
        if here is None:
            expected = None
            continue
        right = here.get(expected) if expected is not None else None
        if right is not None:
            proven += 1
            expected = right.previous
            if len(here) > 1:
                altered.add(number)
        else:
            if expected is not None or len(here) > 1:
                altered.add(number)
            if number not in altered:
                unproven += 1
            expected = None
    newest = max(anchors, key=lambda a: a.sequence, default=None)
    return ChainJudged(
        chain,
        first,
        last,
        proven,
        unproven,
        tuple(_holes(by_number, first, last)),
        tuple(sorted(altered)),
        tuple(sorted({a.identity for a in anchors if a.identity})),
        last_signed,
        dict(newest.counts) if newest is not None else {},
    )


def _holes(numbers: Mapping[int, object], first: int, last: int) -> Iterable[tuple[int, int]]:
    """Ranges of numbers between `first` and `last` at which nothing stands."""
    begin = first
    for number in sorted(numbers):
        if number > begin:
            yield begin, number - 1
        begin = number + 1
    if begin <= last:
        yield begin, last


def _claimed(links: object) -> bytes:
    if not isinstance(links, Sequence) or not links:
        return b""
    first = _mapping(links[0])
    return bytes.fromhex(str(first.get("trace_id", "")) + str(first.get("span_id", "")))


def _count(value: object) -> int:
    """A whole number that is not negative. Some stores give numbers back as text."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _U64:
        raise EvidenceMalformed(f"{str(value)[:32]!r} is not a count")
    return value


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}
