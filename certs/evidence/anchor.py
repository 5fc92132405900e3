"""What the CA saw of a chain, signed by the CA: how far it had come when its sidecar asked for a leaf.

A sidecar tells the CA with each renewal which record of its chain the store has taken. The CA writes
that into its own log, signed with its own leaf. Whoever keeps the store does not hold that log: a chain
that is shorter in a report than its anchor, or gone from it, was cut after the store had taken it. Pure.
"""

import json
import re
from dataclasses import dataclass
from typing import Final

from certs.evidence.chain import EvidenceMalformed

MESSAGE: Final = "chain anchor"
"""Of the log line."""
KIND: Final = "podlink chain anchor"
_HEX32 = re.compile(r"[0-9a-f]{32}", re.ASCII)
_HEX64 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MAX_SEQUENCE: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Head:
    """How far a chain has come, by the word of its own sidecar."""

    chain: str
    """In hex, as in the spans."""
    sequence: int
    hash: str

    def __post_init__(self) -> None:
        """Raises EvidenceMalformed."""
        if not _HEX32.fullmatch(self.chain) or not _HEX64.fullmatch(self.hash):
            raise EvidenceMalformed("an id or a hash of a chain's head is malformed")
        if type(self.sequence) is not int or not 0 <= self.sequence <= _MAX_SEQUENCE:
            raise EvidenceMalformed("the number of a chain's head is out of range")


@dataclass(frozen=True, slots=True)
class SeenByCa:
    """One anchor: whose chain, how far, and when the CA was told."""

    head: Head
    pod: str
    identity: str
    at_ns: int


def anchor_statement(head: Head, pod: str, identity: str, at_ns: int) -> str:
    """What the CA signs, as one line of JSON."""
    said = {
        "kind": KIND,
        "version": 1,
        "chain": head.chain,
        "sequence": head.sequence,
        "hash": head.hash,
        "pod": pod,
        "identity": identity,
        "at_unix_ns": str(at_ns),
    }
    return json.dumps(said, sort_keys=True, separators=(",", ":"))


def read_anchor(statement: str) -> SeenByCa:
    """An anchor whose signature the caller checks. Raises EvidenceMalformed."""
    try:
        said = json.loads(statement)
        if said["kind"] != KIND or said["version"] != 1:
            raise EvidenceMalformed("not an anchor of this version")
        head = Head(said["chain"], said["sequence"], said["hash"])
        found = SeenByCa(head, str(said["pod"]), str(said["identity"]), int(said["at_unix_ns"]))
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise EvidenceMalformed(f"an anchor is not of its form: {e}") from e
    if anchor_statement(found.head, found.pod, found.identity, found.at_ns) != statement:
        raise EvidenceMalformed("an anchor is not as the CA writes it")
    return found
