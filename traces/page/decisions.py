"""What a person has to decide about, worst first. Pure.

Each item says who, to whom, why, since when, and where to look; of a denial that policy made also the
least policy that would allow it, to copy.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from traces.edges import Edge, End, Way
from traces.page.reasons import in_words
from traces.rows import UNBANNED
from traces.views import EdgeName, FirstSeen, Leaf

Kind = Literal["denied", "plaintext", "certificate", "no sidecar", "first seen"]
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_ORDER: Final[Mapping[str, int]] = {
    "denied": 0,
    "certificate": 1,
    "plaintext": 2,
    "no sidecar": 3,
    "first seen": 4,
}


@dataclass(frozen=True, slots=True)
class Decision:
    kind: Kind
    why: str
    count: int
    first_ns: int
    last_ns: int
    trace: str = ""
    edge: Edge | None = None
    end: End | None = None
    leaf: Leaf | None = None
    policy: str = ""
    """A LinkPolicy as YAML that would allow it; empty where a policy is not the answer."""
    reasons: tuple[str, ...] = field(default=())


def decisions(
    edges: Sequence[Edge],
    new: Mapping[EdgeName, FirstSeen],
    leaves: Iterable[Leaf],
    refused: Sequence[Leaf],
    now_ns: int,
) -> list[Decision]:
    found: list[Decision] = []
    for edge in edges:
        for way in edge.ways:
            if way.state in ("denied", "plaintext"):
                found.append(_of_way(edge, way))
    found += [_of_leaf(leaf, now_ns) for leaf in leaves if leaf.state(now_ns) != "valid"]
    found += _of_refusals(refused)
    found += _without_sidecar(edges)
    for edge in edges:
        seen = new.get((edge.source, edge.destination, edge.port))
        if seen is not None and edge.state in ("mtls", "self", "failed"):
            why = "nobody had seen this edge before"
            found.append(
                Decision(
                    "first seen",
                    why,
                    edge.links,
                    seen.first_ns,
                    edge.last_ns,
                    seen.first_trace,
                    edge,
                )
            )
    found.sort(key=lambda item: (_ORDER[item.kind], -item.count, -item.last_ns))
    return found


def _of_way(edge: Edge, way: Way) -> Decision:
    why = in_words(way.reasons) or ("policy says no" if way.state == "denied" else "no mutual TLS")
    if way.nearest:
        why += f" (nearest rule: {', '.join(way.nearest[:2])})"
    kind: Kind = "denied" if way.state == "denied" else "plaintext"
    return Decision(
        kind,
        why,
        way.count,
        way.first_ns,
        way.last_ns,
        way.last_trace,
        edge,
        policy=allowing(edge) if "policy_denied" in way.reasons else "",
        reasons=way.reasons,
    )


def _of_leaf(leaf: Leaf, now_ns: int) -> Decision:
    if leaf.state(now_ns) == "expired":
        why = "its certificate has ended and no newer one was issued: is the pod gone, or cut off?"
    else:
        why = "renewal is overdue: it comes at half a leaf's life, and three quarters are over"
    return Decision(
        "certificate",
        why,
        1,
        leaf.at_ns,
        leaf.not_after_ns,
        leaf=leaf,
        end=End("identity", leaf.identity, ""),
    )


def _of_refusals(refused: Sequence[Leaf]) -> list[Decision]:
    groups: dict[tuple[str, str, str], list[Leaf]] = {}
    for leaf in refused:
        if leaf.event == UNBANNED:
            continue  # asks nothing of anybody
        groups.setdefault((leaf.event, leaf.identity or leaf.pod, leaf.reason), []).append(leaf)
    return [
        Decision(
            "certificate",
            f"the CA {event} it: {reason or 'no reason told'}",
            len(found),
            min(leaf.at_ns for leaf in found),
            max(leaf.at_ns for leaf in found),
            leaf=found[0],
            end=End("pod" if not found[0].identity else "identity", who, ""),
        )
        for (event, who, reason), found in groups.items()
    ]


def without_sidecar(edges: Sequence[Edge]) -> dict[End, list[Edge]]:
    """Pods of the cluster that were seen at an end of plaintext, with the edges that showed it."""
    found: dict[End, list[Edge]] = {}
    for edge in edges:
        if any(way.security in ("plaintext", "none") for way in edge.ways):
            for end, is_source in ((edge.source, True), (edge.destination, False)):
                reasons = {reason for way in edge.ways for reason in way.reasons}
                shown = {"plaintext_denied", "permissive"} if is_source else {"unmeshed_peer"}
                if end.kind == "pod" and reasons & shown:
                    found.setdefault(end, []).append(edge)
    return found


def _without_sidecar(edges: Sequence[Edge]) -> list[Decision]:
    return [
        Decision(
            "no sidecar",
            "a pod without a sidecar took part in plaintext",
            sum(edge.count("plaintext") + edge.count("denied") for edge in shown),
            min(edge.first_ns for edge in shown),
            max(edge.last_ns for edge in shown),
            shown[0].last_trace,
            end=end,
        )
        for end, shown in without_sidecar(edges).items()
    ]


def allowing(edge: Edge) -> str:
    """The least LinkPolicy that lets this source reach this port. Empty if a name in it is not one
    that Kubernetes knows: what others wrote is not handed on as YAML."""
    source, destination = edge.source.label.split("/"), edge.destination.label.split("/")
    names = (*source, *destination)
    if (
        edge.source.kind != "identity"
        or edge.destination.kind != "identity"
        or len(source) != 2
        or len(destination) != 2
        or not all(_NAME.fullmatch(name) for name in names)
        or not 0 < edge.port < 65536
    ):
        return ""
    # No selector by labels: spans carry none. It says so, since it allows more than one pod.
    return (
        "apiVersion: podlink.dev/v1alpha1\n"
        "kind: LinkPolicy\n"
        f"metadata: {{name: allow-{source[1]}, namespace: {destination[0]}}}\n"
        "spec:\n"
        f"  # add a selector: this allows it to every pod of namespace {destination[0]}\n"
        "  allow:\n"
        f"    - from: [{{namespace: {source[0]}, serviceAccount: {source[1]}}}]\n"
        f"      ports: [{edge.port}]\n"
    )
