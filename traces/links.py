"""Spans of both sides joined into links. Pure.

A link has an outbound span and, below it, an inbound one; when one side has no sidecar, or its
span is late or lost, there is one only. Each side is believed in what it has verified itself: the
inbound side knows who the source is, the outbound side who the destination is. Where the two
contradict each other the link says so (`disagreements`) and shows the worse of both.

The dialler chooses the ids of both sides. So whatever shares them, no destination's word is left out:
what does not pair with an outbound span is a link of its own.
"""

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from traces.rows import LINK_OPENED

Item = dict[str, object]

_VERDICTS = ("denied", "failed", "audited", "allowed")  # worst first
_SECURITIES = ("plaintext", "none", "mtls", "self")
_SAME_ON_BOTH = (
    "podlink.source.identity",
    "podlink.destination.identity",
    "podlink.security",
    "podlink.verdict",
)


@dataclass(frozen=True, slots=True)
class LinkSpan:
    """One stored span of a link, decoded. `link_id` is the span id of the link it tells of."""

    trace_id: str
    link_id: str
    parent_id: str
    name: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, object]
    """Only those whose value is of the type that is read here (`traces.attributes`)."""
    sender: str = ""
    """Identity that the connection proved; empty: nobody's."""

    @property
    def direction(self) -> object:
        return self.attributes.get("podlink.direction")


def join(spans: Iterable[LinkSpan]) -> list[Item]:
    """One item per link, newest first. Spans of one link must all be given at once."""
    sides: dict[_Key, LinkSpan] = {}
    twins: set[_Key] = set()
    for span in spans:
        key = _key(span)
        known = sides.get(key)
        if known is not None and LINK_OPENED not in (known.name, span.name):
            twins.add(key)  # one of the two is forged: show the worse and say so
            sides[key] = min(known, span, key=_severity)
        elif known is None or known.name == LINK_OPENED:  # the ended link knows more
            sides[key] = span
    ids = Counter((s.trace_id, s.link_id) for s in sides.values())
    twins.update(key for key in sides if ids[key[:2]] > 1)
    of_trace: dict[str, list[LinkSpan]] = defaultdict(list)
    for span in sides.values():
        of_trace[span.trace_id].append(span)
    inbound: dict[tuple[str, str], list[LinkSpan]] = defaultdict(list)
    for span in sides.values():
        if span.direction == "inbound":
            inbound[span.trace_id, _outbound_id(span, of_trace[span.trace_id])].append(span)
    found = []
    for span in sides.values():
        if span.direction == "outbound":
            answered = inbound.get((span.trace_id, span.link_id), [])
            answer = max(answered, key=lambda s: (_agrees(span, s), s.start_ns), default=None)
            if answer is not None:
                answered.remove(answer)
            found.append((span.start_ns, _item(span, answer, twins)))
    for (trace_id, link_id), left in inbound.items():
        attempts = (trace_id, link_id) in ids
        for span in left:
            # One attempt of several that came to nothing is told by the link that they were for.
            if not attempts or span.attributes.get("podlink.verdict") != "failed":
                found.append((span.start_ns, _item(None, span, twins)))
    return [item for _, item in sorted(found, key=lambda pair: pair[0], reverse=True)]


_Key = tuple[str, str, str, str]


def _key(span: LinkSpan) -> _Key:
    """What makes two spans tell of the same side of the same link."""
    return span.trace_id, span.link_id, str(span.direction), span.sender


def _agrees(outbound: LinkSpan, inbound: LinkSpan) -> bool:
    name = "podlink.destination.identity"
    return outbound.attributes.get(name) == inbound.attributes.get(name)


def _outbound_id(span: LinkSpan, trace: Sequence[LinkSpan]) -> str:
    """Which outbound span an inbound one answers: its parent. While it is open it only knows
    itself; its trace then has one outbound span, if any has come."""
    if span.name != LINK_OPENED:
        return span.parent_id or span.link_id
    same = [s.link_id for s in trace if s is not span] if len(trace) == 2 else []
    return same[0] if same else span.link_id


def _severity(span: LinkSpan) -> int:
    verdict = span.attributes.get("podlink.verdict")
    return _VERDICTS.index(str(verdict)) if verdict in _VERDICTS else len(_VERDICTS)


def _item(outbound: LinkSpan | None, inbound: LinkSpan | None, twins: Set[_Key]) -> Item:
    sides = [side for side in (outbound, inbound) if side is not None]
    first = sides[0]
    # Most of what is known comes from the outbound side, the rest from whoever knows it.
    both: dict[str, object] = {}
    for side in reversed(sides):
        both.update(side.attributes)
    if inbound is not None:
        both.update(
            {
                name: inbound.attributes[name]
                for name in ("podlink.source.identity", "podlink.policy", "podlink.rule")
                if name in inbound.attributes
            }
        )
    verdict = _worst(sides, "podlink.verdict", _VERDICTS)
    judge = next(
        (s for s in reversed(sides) if s.attributes.get("podlink.verdict") == verdict), first
    )
    source_pod, destination_pod = (
        both.get("podlink.source.pod"),
        both.get("podlink.destination.pod"),
    )
    return {
        "trace_id": first.trace_id,
        "span_id": first.link_id,
        "sides": [str(side.direction) for side in sides],
        "told_by": [f"{side.sender} {side.direction} {side.link_id}" for side in sides],
        "open": all(side.name == LINK_OPENED for side in sides),
        "start": iso(first.start_ns),
        "start_unix_ns": str(first.start_ns),
        "duration_ms": round((first.end_ns - first.start_ns) / 1e6, 3),
        "source": {
            "pod": source_pod,
            "identity": both.get("podlink.source.identity"),
            "address": both.get("client.address"),
            "port": both.get("client.port"),
        },
        "destination": {
            "pod": destination_pod,
            "identity": both.get("podlink.destination.identity"),
            "address": both.get("podlink.destination.address"),
            "port": both.get("podlink.destination.port"),
        },
        "asked": {
            "service": both.get("podlink.service"),
            "address": both.get("server.address"),
            "port": both.get("server.port"),
        },
        "security": _worst(sides, "podlink.security", _SECURITIES),
        "proved": all("podlink.certificate.serial" in side.attributes for side in sides),
        "verdict": verdict,
        "reason": judge.attributes.get("podlink.reason") or both.get("podlink.reason"),
        "error": judge.attributes.get("error.message") or both.get("error.message"),
        "policy": both.get("podlink.policy"),
        "rule": both.get("podlink.rule"),
        "bytes_sent": both.get("podlink.bytes.sent", 0),
        "bytes_received": both.get("podlink.bytes.received", 0),
        "close": both.get("podlink.close"),
        "endpoint_choice": both.get("podlink.endpoint.choice"),
        "attempts": both.get("podlink.attempts"),
        "pooled": both.get("podlink.pooled"),
        "direct": sides[-1].attributes.get("podlink.direct"),
        "disagreements": _disagreements(outbound, inbound)
        + ["span_id"] * any(_key(side) in twins for side in sides),
    }


def _worst(sides: Sequence[LinkSpan], name: str, order: Sequence[str]) -> object:
    said = [side.attributes.get(name) for side in sides]
    known = [value for value in said if value in order]
    return min(known, key=lambda value: order.index(str(value))) if known else said[0]


def _disagreements(outbound: LinkSpan | None, inbound: LinkSpan | None) -> list[str]:
    if outbound is None or inbound is None:
        return []
    pairs = ((n, outbound.attributes.get(n), inbound.attributes.get(n)) for n in _SAME_ON_BOTH)
    return [name for name, one, other in pairs if one and other and one != other]


def iso(unix_ns: int) -> str:
    seconds, rest = divmod(unix_ns, 1_000_000_000)
    try:
        at = dt.datetime.fromtimestamp(seconds, dt.UTC)
    except (ValueError, OverflowError, OSError):
        return str(unix_ns)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{rest // 1_000_000:03d}Z"
