"""Judge kept spans: which sidecar's records stand as they were written. Pure but for cryptography.

`verify_spans` is for the CLI and the report: it takes spans as the store's API gives them, from
whatever store, and needs nothing but the roots.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from certs.evidence.chain import (
    CERTIFICATES,
    CHAIN_ID,
    CHECKPOINT,
    SIGNATURE,
    STATEMENT,
    Anchor,
    ChainJudged,
    EvidenceMalformed,
    Kept,
    Signed,
    judge,
    read_record,
    read_statement,
)
from certs.evidence.signed import StatementRefused, check_statement
from certs.trust.bundle import TrustBundle


@dataclass(frozen=True, slots=True)
class Verified:
    """Every chain that the spans name (once for each workload that tells of it), and what was no
    evidence at all."""

    chains: tuple[ChainJudged, ...]
    refused: tuple[str, ...]
    """One line for each checkpoint or record that proves nothing, and why. At most 100."""
    outside: int
    """Spans that are in no chain."""

    @property
    def sound(self) -> bool:
        return not self.refused and all(chain.sound for chain in self.chains)


def verify_spans(items: Iterable[Mapping[str, object]], bundle: TrustBundle) -> Verified:
    """Judge spans as `GET /api/traces` gives them. Never raises for what a span says."""
    records: dict[str, list[Kept]] = defaultdict(list)
    anchors: dict[str, list[Anchor]] = defaultdict(list)
    refused: list[str] = []
    outside = 0
    for item in items:
        try:
            if item.get("name") == CHECKPOINT:
                chain, anchor = read_checkpoint(item, bundle)
                anchors[chain].append(anchor)
            elif (record := read_record(item)) is not None:
                records[record.chain].append(record)
            else:
                outside += 1
        except (EvidenceMalformed, StatementRefused) as e:
            refused.append(f"span {str(item.get('span_id'))[:16]}: {e}")
    chains = [
        judged
        for name in sorted({*records, *anchors})
        for judged in _by_signer(name, records.get(name, []), anchors.get(name, []), refused)
    ]
    return Verified(tuple(chains), tuple(refused[:100]), outside)


def read_checkpoint(item: Mapping[str, object], bundle: TrustBundle) -> tuple[str, Anchor]:
    """The chain's id and what the checkpoint proves of it. Raises EvidenceMalformed or
    StatementRefused."""
    attributes = item.get("attributes")
    said = attributes if isinstance(attributes, Mapping) else {}
    text = str(said.get(STATEMENT, ""))
    chain, _, anchor = read_statement(text)
    try:
        at = dt.datetime.fromtimestamp(anchor.at_ns // 10**9, dt.UTC)
    except (ValueError, OverflowError, OSError) as e:
        raise EvidenceMalformed("a checkpoint's time is out of range") from e
    signed = Signed(str(said.get(SIGNATURE, "")), str(said.get(CERTIFICATES, "")))
    facts = check_statement(text, signed, bundle, at)
    if chain != said.get(CHAIN_ID, chain):
        raise EvidenceMalformed("a checkpoint stands under another chain's id")
    return chain, replace(anchor, identity=str(facts.identity))


def _by_signer(
    name: str, records: list[Kept], anchors: list[Anchor], refused: list[str]
) -> Iterator[ChainJudged]:
    """A chain belongs to the workload whose links its records tell of: no other workload's signature
    on it is proof. Without records it belongs to whoever signed first.

    A sidecar has one identity for life, so records of several mean that somebody wrote under another's
    chain. Each is judged with its own signatures alone, or a stranger's would prove what it altered.
    """
    reporters = {record.reporter for record in records if record.reporter}
    if len(reporters) > 1:
        refused.append(f"chain {name}: records of {', '.join(sorted(reporters)[:4])} under one id")
    if anchors and not reporters:
        reporters = {min(anchors, key=lambda a: (a.at_ns, a.sequence)).identity}
    for anchor in anchors:
        if anchor.identity not in reporters:
            refused.append(f"chain {name}: {anchor.identity} signed what is not its own")
    for reporter in sorted(reporters) or [""]:
        yield judge(
            name,
            [record for record in records if record.reporter in ("", reporter)],
            [anchor for anchor in anchors if anchor.identity == reporter],
        )
