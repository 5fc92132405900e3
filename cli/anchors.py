"""The CA's log of chain anchors against a report: what the store had taken and holds no more. Pure but
for cryptography.
"""

import datetime as dt
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from certs.evidence.anchor import MESSAGE, SeenByCa, read_anchor
from certs.evidence.chain import EvidenceMalformed, Signed
from certs.evidence.signed import StatementRefused, check_statement
from certs.trust.bundle import TrustBundle

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Compared:
    """Anchors of the report's time, and what of them the report contradicts, a line each."""

    anchors: int
    problems: tuple[str, ...]


def read_log(lines: Iterable[str], bundle: TrustBundle, ca: str) -> list[SeenByCa]:
    """Every anchor in a log of the CA's; other lines are passed over. Raises StatementRefused for one
    that `ca`, the CA's identity, did not sign."""
    found = []
    for number, line in enumerate(lines, 1):
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(said, dict) or said.get("message") != MESSAGE:
            continue
        text = str(said.get("statement", ""))
        signed = Signed(str(said.get("signature", "")), str(said.get("certificates", "")))
        try:
            anchor = read_anchor(text)
            at = dt.datetime.fromtimestamp(anchor.at_ns // 10**9, dt.UTC)
            facts = check_statement(text, signed, bundle, at)
        except (EvidenceMalformed, StatementRefused, ValueError, OverflowError, OSError) as e:
            raise StatementRefused(f"line {number} of the CA's log: {e}") from e
        if str(facts.identity) != ca:
            raise StatementRefused(f"line {number} of the CA's log: signed by {facts.identity}")
        found.append(anchor)
    return found


def compare(body: Json, anchors: Iterable[SeenByCa]) -> Compared:
    """What the CA saw the store take within the report's time must be in the report."""
    heads = body["record"]["chains"].get("heads") or {"left_out": 0, "rows": {}}
    begin, end = (
        dt.datetime.fromisoformat(body[name]).replace(tzinfo=dt.UTC).timestamp()
        for name in ("from", "to")
    )
    newest: dict[str, SeenByCa] = {}
    count = 0
    for anchor in anchors:
        if begin <= anchor.at_ns / 1e9 <= end:
            count += 1
            known = newest.get(anchor.head.chain)
            if known is None or known.head.sequence < anchor.head.sequence:
                newest[anchor.head.chain] = anchor
    problems = []
    for chain, anchor in sorted(newest.items()):
        held = heads["rows"].get(chain)
        whose = f"chain {chain} of {anchor.pod}"
        if held is None and anchor.head.sequence and not heads["left_out"]:
            problems.append(f"{whose} is gone: the store had taken {anchor.head.sequence} records")
        elif held is not None and held < anchor.head.sequence:
            problems.append(
                f"{whose} ends at record {held}: the store had taken {anchor.head.sequence}"
            )
    return Compared(count, tuple(problems))
