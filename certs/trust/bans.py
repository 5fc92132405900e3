"""Who is believed no more, though its leaf is lawful and has not ended. Pure.

A ban names an identity, a pod or one leaf. It holds at every handshake, and links that are open when
it comes are cut. A pod is recognised by its leaf's serial, whose upper bits are a digest of the pod's
UID: so a ban of a pod needs no list of what was issued to it, and covers what it may yet be issued.
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args

from certs.trust.facts import LeafFacts
from certs.trust.identity import IdentityMalformed, WorkloadIdentity

BanKind = Literal["identity", "pod", "serial"]
KINDS: tuple[BanKind, ...] = get_args(BanKind)
MAX_BANS = 1000
TAG_BITS = 79
RANDOM_BITS = 80
"""Together 159: a serial is positive and at most 20 octets long (RFC 5280, 4.1.2.2)."""
_SERIAL = re.compile(r"[1-9a-f][0-9a-f]{0,39}", re.ASCII)
_POD_UID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}", re.ASCII)


class BanMalformed(ValueError):
    """This names nobody who could be banned; the text says what would."""

    reason = "ban_malformed"


class Banned(Exception):
    """A lawful leaf whose owner is banned. `leaf` is what was shown and refused; None where it is our
    own side that may prove nothing any more."""

    reason = "banned"

    def __init__(self, said: str, leaf: LeafFacts | None = None) -> None:
        super().__init__(said)
        self.leaf = leaf


@dataclass(frozen=True, slots=True, order=True)
class Ban:
    """One ban. Its value was checked, however it was made (BanMalformed)."""

    kind: BanKind
    value: str

    def __post_init__(self) -> None:
        match self.kind:
            case "identity":
                try:
                    WorkloadIdentity.parse(self.value)
                except IdentityMalformed as e:
                    raise BanMalformed(str(e)) from e
            case "serial":
                if not _SERIAL.fullmatch(self.value):
                    raise BanMalformed(f"not a serial in lower-case hex: {self.value[:64]!r}")
            case "pod":
                if not _POD_UID.fullmatch(self.value):
                    raise BanMalformed(f"not the UID of a pod: {self.value[:64]!r}")
            case _:
                raise BanMalformed(f"a ban is of {', '.join(KINDS)}, not {str(self.kind)[:64]!r}")

    def __str__(self) -> str:
        return f"{self.kind} {self.value}"


@dataclass(frozen=True, slots=True)
class Bans:
    """Every ban in force; immutable, replaced whole when one comes or goes."""

    identities: frozenset[str] = frozenset()
    pods: frozenset[str] = frozenset()
    """UIDs."""
    serials: frozenset[str] = frozenset()
    tags: frozenset[int] = frozenset()
    """`pod_tag` of each of `pods`."""

    @classmethod
    def of(cls, bans: Iterable[Ban]) -> "Bans":
        """Raises BanMalformed for more than MAX_BANS."""
        every = frozenset(bans)
        if len(every) > MAX_BANS:
            raise BanMalformed(f"{len(every)} bans, at most {MAX_BANS}")
        by_kind = {kind: frozenset(b.value for b in every if b.kind == kind) for kind in KINDS}
        pods = by_kind["pod"]
        tags = frozenset(map(pod_tag, pods))
        return cls(by_kind["identity"], pods, by_kind["serial"], tags)

    def each(self) -> list[Ban]:
        """Every ban, sorted."""
        return sorted(
            [
                *(Ban("identity", value) for value in self.identities),
                *(Ban("pod", value) for value in self.pods),
                *(Ban("serial", value) for value in self.serials),
            ]
        )

    def __len__(self) -> int:
        return len(self.identities) + len(self.pods) + len(self.serials)

    def and_serial(self, serial: str) -> "Bans":
        """These, and one leaf more."""
        return replace(self, serials=self.serials | {serial})

    def covers(self, leaf: LeafFacts) -> BanKind | None:
        """What about this leaf is banned, if anything."""
        if leaf.serial in self.serials:
            return "serial"
        if self.identities and str(leaf.identity) in self.identities:
            return "identity"
        if self.tags and int(leaf.serial, 16) >> RANDOM_BITS in self.tags:
            return "pod"
        return None

    def covers_caller(self, identity: WorkloadIdentity, pod_uid: str) -> BanKind | None:
        """What about a caller of the CA is banned, if anything."""
        if pod_uid in self.pods:
            return "pod"
        return "identity" if str(identity) in self.identities else None


NO_BANS = Bans()

Verify = Callable[[bytes], LeafFacts]
"""Judges a DER leaf; raises an exception with a `reason` slug."""


class Guard:
    """`verify`, and then the bans of this moment. Set `bans` anew when others come."""

    __slots__ = ("_verify", "bans", "closed")

    def __init__(self, verify: Verify) -> None:
        self._verify, self.bans = verify, NO_BANS
        self.closed = ""
        """Why nobody is let through: we ourselves are banned."""

    def __call__(self, der: bytes) -> LeafFacts:
        """The facts of a lawful leaf that nobody banned; raises what `verify` does, or Banned."""
        facts = self._verify(der)
        if self.closed:
            raise Banned(self.closed)
        if (kind := self.bans.covers(facts)) is not None:
            raise Banned(
                f"the {kind} of this leaf is banned: {facts.identity} {facts.serial}", facts
            )
        return facts


@lru_cache(4096)
def pod_tag(pod_uid: str) -> int:
    """The upper TAG_BITS of the serial of each leaf of this pod."""
    digest = hashlib.sha256(b"podlink pod " + pod_uid.encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:10], "big") >> (80 - TAG_BITS)


def is_of_pod(serial: str, pod_uid: str) -> bool:
    """Whether a leaf of this serial (hexadecimal) was issued for that pod."""
    return int(serial, 16) >> RANDOM_BITS == pod_tag(pod_uid)


def pod_serial(pod_uid: str, random_bits: int) -> int:
    """A serial for a leaf of this pod out of RANDOM_BITS random bits (more than the 64 that CAs are
    asked for); never 0."""
    return pod_tag(pod_uid) << RANDOM_BITS | random_bits or 1
