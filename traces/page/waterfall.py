"""A trace as rows in time. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from traces.links import Item

_WIDTH: Final = 600
_DEEPEST: Final = 12


@dataclass(frozen=True, slots=True)
class Row:
    """One span. `x` and `width` are in pixels of a drawing that is 600 wide."""

    depth: int
    name: str
    who: str
    kind: str
    state: str
    offset_ms: float
    duration_ms: float
    x: float
    width: float


def waterfall(spans: Sequence[Item]) -> list[Row]:
    """Parents before children, each in order of time; a parent that is not here makes a root."""
    if not spans:
        return []
    begin = min(_ns(span, "start_unix_ns") for span in spans)
    end = max(_ns(span, "end_unix_ns") for span in spans)
    scale = _WIDTH / max(1, end - begin)
    known = {str(span["span_id"]) for span in spans}
    below: dict[str, list[Item]] = {}
    for span in spans:
        parent = str(span["parent_span_id"])
        below.setdefault(
            parent if parent in known and parent != span["span_id"] else "", []
        ).append(span)
    rows: list[Row] = []
    waiting = [(0, span) for span in reversed(below.get("", []))]
    done: set[int] = set()
    while waiting:
        depth, span = waiting.pop()
        if id(span) in done:
            continue
        done.add(id(span))
        start = _ns(span, "start_unix_ns")
        length = max(0, _ns(span, "end_unix_ns") - start)
        rows.append(
            Row(
                depth=min(depth, _DEEPEST),
                name=str(span["name"]),
                who=_who(span),
                kind=str(_attributes(span).get("podlink.direction") or span["kind"]),
                state=_state(span),
                offset_ms=round((start - begin) / 1e6, 3),
                duration_ms=round(length / 1e6, 3),
                x=round((start - begin) * scale, 1),
                width=round(max(2.0, length * scale), 1),
            )
        )
        children = below.pop(str(span["span_id"]), [])
        waiting += [(depth + 1, child) for child in reversed(children)]
    rest = [span for span in spans if id(span) not in done]  # a circle of parents, forged
    return rows + waterfall([{**span, "parent_span_id": ""} for span in rest])


def _state(span: Item) -> str:
    attributes = _attributes(span)
    verdict, security = attributes.get("podlink.verdict"), attributes.get("podlink.security")
    for state, value in (("denied", verdict), ("failed", verdict), ("plaintext", security)):
        if value == state:
            return state
    return "mtls" if security == "mtls" else "self"


def _who(span: Item) -> str:
    resource = span.get("resource")
    found = resource if isinstance(resource, Mapping) else {}
    names = (found.get("k8s.namespace.name"), found.get("k8s.pod.name"))
    return "/".join(str(name) for name in names if name) or str(found.get("service.name") or "")


def _attributes(span: Item) -> Mapping[str, object]:
    found = span.get("attributes")
    return found if isinstance(found, Mapping) else {}


def _ns(span: Item, name: str) -> int:
    return int(str(span.get(name) or 0))
