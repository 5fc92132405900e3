"""The record as `policy.replay` takes it, for `podlink policy replay` and `suggest`. Pure.

The record holds identities and ports, no labels; which pods a selector means is taken from the pods
that run as that identity today. Where only some of them are selected, the outcome says so.
"""

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from certs.trust.identity import IdentityMalformed, WorkloadIdentity
from policy.linkpolicy import LinkPolicy
from policy.replay import ORDER, Fate, Labels, Rules, Seen, fate_of, under


@dataclass(frozen=True, slots=True)
class Outcome:
    seen: Seen
    fate: Fate
    why: str


@dataclass(frozen=True, slots=True)
class Replay:
    outcomes: tuple[Outcome, ...]
    unused: tuple[str, ...]
    """Rules of the candidates that no recorded link matched: `namespace/name rule`."""
    notes: tuple[str, ...]

    def count(self, fate: Fate) -> int:
        return sum(one.seen.links for one in self.outcomes if one.fate == fate)

    def as_json(self) -> dict[str, Any]:
        return {
            "outcomes": [
                {
                    **asdict(one.seen),
                    "peer": str(one.seen.peer or ""),
                    "fate": one.fate,
                    "why": one.why,
                }
                for one in self.outcomes
            ],
            "unused": list(self.unused),
            "notes": list(self.notes),
            "cut": self.count("cut"),
        }


def read_traffic(rows: Iterable[Mapping[str, Any]]) -> list[Seen]:
    """Rows of GET /api/traffic, by the destination's own word: what it let in and what it refused. A
    source may tell of links that never were, and a policy suggested from those would open a door. What
    is no link between known ends is left out."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("security") == "self" or row.get("destination_kind") != "identity":
            continue
        if not _told_by_destination(row):
            continue
        verdict = str(row.get("verdict"))
        if verdict == "failed":
            continue
        key = (
            row["source_kind"],
            row["source"],
            row["destination"],
            row["port"],
            verdict == "denied",
        )
        groups.setdefault(key, []).append(row)
    found = []
    for (kind, source, destination, port, denied), group in groups.items():
        try:
            to = WorkloadIdentity.parse(str(destination))
            peer = WorkloadIdentity.parse(str(source)) if kind == "identity" else None
        except IdentityMalformed:
            continue
        text = f"{peer.namespace}/{peer.service_account}" if peer is not None else str(source)
        found.append(
            Seen(
                source=text or "not known",
                peer=peer,
                peer_ip=_address(str(source)) if kind == "address" else "",
                namespace=to.namespace,
                account=to.service_account,
                port=int(port),
                denied=denied,
                by_policy=any(row.get("reason") == "policy_denied" for row in group),
                links=sum(map(_told_by_destination, group)),
                last_ns=max(int(row.get("last_ns") or 0) for row in group),
            )
        )
    return found


def _told_by_destination(row: Mapping[str, Any]) -> int:
    """Links of a row that the destination's side told of."""
    return int(row.get("in_links") or row.get("in_opened") or 0)


def only_told_by_source(rows: Iterable[Mapping[str, Any]]) -> int:
    """Links that `read_traffic` leaves out since nothing of their edge is told of by its destination."""
    told: dict[tuple[Any, ...], int] = {}
    heard: set[tuple[Any, ...]] = set()
    for row in rows:
        key = (row.get("source_kind"), row.get("source"), row.get("destination"), row.get("port"))
        if _told_by_destination(row):
            heard.add(key)
        elif (
            row.get("destination_kind") == "identity"
            and row.get("security") != "self"
            and row.get("verdict") not in ("failed", "denied")
        ):
            links = int(row.get("links") or row.get("opened") or 0)
            told[key] = told.get(key, 0) + links
    return sum(links for key, links in told.items() if key not in heard)


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""


def replay(
    candidates: Sequence[LinkPolicy],
    others: Sequence[LinkPolicy],
    traffic: Iterable[Seen],
    labels: Labels,
) -> Replay:
    """`others` are the policies in force that no candidate replaces: rules of all add up."""
    outcomes: list[Outcome] = []
    rules = Rules(candidates)
    notes: list[str] = []
    for seen in traffic:
        pods = labels.get((seen.namespace, seen.account))
        if pods is None:
            note = f"{seen.namespace}/{seen.account} runs no pod today: taken as not selected"
            if note not in notes:
                notes.append(note)
            continue
        of = under(candidates, others, seen.namespace, pods)
        if not of.candidates:
            continue
        rules.note(seen, of.candidates)
        outcomes.append(Outcome(seen, *fate_of(seen, of)))
    outcomes.sort(key=lambda one: (ORDER.index(one.fate), -one.seen.links, one.seen.source))
    return Replay(tuple(outcomes), rules.unused, tuple(notes))
