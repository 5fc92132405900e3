"""What a LinkPolicy would have done to the links on record, for the page. Pure.

The matcher is the one that sidecars enforce with, and what stands around it is the command's
(`policy.replay`). Spans carry no labels of pods: which pods a selector means, and which other policies
are in force, the registry says (`Cluster`). Of a destination that it knows no pod of, and of all where
nobody asked it, the reader says. Without the registry, of other policies only those are known that
decided on recorded links: what their rules let in stays let in (rules add up), unless this one denies.
"""

import ipaddress
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import yaml

from certs.trust.identity import IdentityMalformed, WorkloadIdentity
from policy.linkpolicy import LinkPolicy, PolicyInvalid, parse
from policy.replay import ORDER, Fate, Labels, Rules, Seen, Under, fate_of, under, without_replaced
from policy.rules import ALLOW_MESHED
from traces.edges import Edge, End, Way

MAX_CHARACTERS: Final = 64 * 1024
_MAX_DOCUMENTS: Final = 20
_DEEPEST: Final = 24
_OPENING: Final = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
_CLOSING: Final = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the registry says: the policies in force, and labels of the pods of each identity."""

    policies: tuple[LinkPolicy, ...]
    labels: Labels
    mesh_default: str = ALLOW_MESHED


@dataclass(frozen=True, slots=True)
class Replayed:
    """One way of one edge, and what would become of it."""

    edge: Edge
    way: Way
    fate: Fate
    why: str


@dataclass(frozen=True, slots=True)
class Replay:
    policies: tuple[LinkPolicy, ...]
    found: tuple[Replayed, ...]
    """Worst first: cut, newly allowed, still denied, kept."""
    unused: tuple[str, ...]
    """Rules that no recorded link matched: `namespace/name rule`."""
    unknown: tuple[End, ...]
    """Ends on record of whose labels nobody knows: the reader says whether the selectors mean them."""
    others: int | None
    """How many other policies in force were taken into account; None: nobody said what is in force."""

    def count(self, fate: Fate) -> int:
        return sum(item.way.count for item in self.found if item.fate == fate)


def read_policies(text: str) -> tuple[LinkPolicy, ...]:
    """LinkPolicies from YAML or JSON, one or several documents. Raises PolicyInvalid."""
    if len(text) > MAX_CHARACTERS:
        raise PolicyInvalid("the text", f"longer than {MAX_CHARACTERS} characters")
    try:
        found: list[Any] = []
        for document in yaml.safe_load_all(_bounded(text)):
            if document is not None:
                found += document["items"] if _is_list(document) else [document]
            if len(found) > _MAX_DOCUMENTS:
                raise PolicyInvalid("the text", f"more than {_MAX_DOCUMENTS} policies")
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        if isinstance(e, PolicyInvalid):
            raise
        raise PolicyInvalid("the text", f"is no YAML: {' '.join(str(e).split())[:200]}") from e
    if not found:
        raise PolicyInvalid("the text", "holds no LinkPolicy")
    return tuple(parse(document, namespace="default") for document in found)


def _is_list(document: object) -> bool:
    return isinstance(document, dict) and isinstance(document.get("items"), list)


def _bounded(text: str) -> str:
    """A few aliases of aliases would grow into gigabytes, and the reader's time grows with the square
    of the depth; a policy needs neither."""
    depth = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        if isinstance(token, yaml.AliasToken | yaml.AnchorToken):
            raise PolicyInvalid("the text", "anchors and aliases are not taken")
        if isinstance(token, _OPENING):
            depth += 1
        elif isinstance(token, _CLOSING):
            depth -= 1
        if depth > _DEEPEST:
            raise PolicyInvalid("the text", f"nested deeper than {_DEEPEST}")
    return text


def replay(
    policies: Sequence[LinkPolicy],
    edges: Sequence[Edge],
    selected: Collection[str] | None = None,
    cluster: Cluster | None = None,
) -> Replay:
    """`selected` names those of the unknown destinations that the selectors mean; None: all of them."""
    found: list[Replayed] = []
    rules, unknown = Rules(policies), set[End]()
    others = [] if cluster is None else without_replaced(cluster.policies, policies)
    namespaces = {policy.namespace for policy in policies}
    for edge in edges:
        to = edge.destination
        if to.namespace not in namespaces:
            continue
        pods = None if cluster is None else cluster.labels.get(_account(to))
        if pods is not None:
            of = under(policies, others, to.namespace, pods)
        else:
            unknown.add(to)
            if selected is not None and to.name not in selected:
                continue
            of = Under(
                tuple(p for p in policies if p.namespace == to.namespace),
                tuple(
                    p for p in others if p.namespace == to.namespace and not p.selector.requirements
                ),
            )
        if not of.candidates:
            continue
        rules.note(_seen(edge, edge.ways[0]), of.candidates)
        found += [
            _fate(edge, way, of, cluster)
            for way in edge.ways
            if way.state not in ("self", "failed")
        ]
    found.sort(key=lambda item: (ORDER.index(item.fate), -item.way.count))
    return Replay(
        tuple(policies),
        tuple(found),
        rules.unused,
        tuple(sorted(unknown)),
        None if cluster is None else len(others),
    )


def _account(end: End) -> tuple[str, str]:
    if end.kind == "identity":
        try:
            who = WorkloadIdentity.parse(end.name)
            return who.namespace, who.service_account
        except IdentityMalformed:
            pass
    return "", ""


def _seen(edge: Edge, way: Way) -> Seen:
    """A pod without identity is known by its name only, which no CIDR matches."""
    peer, peer_ip = None, ""
    try:
        if edge.source.kind == "identity":
            peer = WorkloadIdentity.parse(edge.source.name)
        elif edge.source.kind == "address":
            peer_ip = str(ipaddress.ip_address(edge.source.name))
    except ValueError:  # IdentityMalformed is one
        pass
    return Seen(
        edge.source.label,
        peer,
        peer_ip,
        edge.destination.namespace,
        _account(edge.destination)[1],
        edge.port,
        way.state == "denied",
        "policy_denied" in way.reasons,
        way.count,
        way.last_ns,
    )


def _fate(edge: Edge, way: Way, of: Under, cluster: Cluster | None) -> Replayed:
    seen = _seen(edge, way)
    default = ALLOW_MESHED if cluster is None else cluster.mesh_default
    fate, why = fate_of(seen, of, default)
    if cluster is None:
        # Of the others only what they did is known.
        own = {one.policy.name for one in of.candidates}
        others = [p for p in way.policies if "/" in p and p.partition(" ")[0] not in own]
        if fate == "cut" and " no-rule" in f" {why}" and others:
            return Replayed(edge, way, "kept", f"allowed by {others[0]}, which still holds")
        if fate == "opened" and any(" deny[" in text for text in others):
            return Replayed(edge, way, "still", "what denied it is not what this policy decides")
    return Replayed(edge, way, fate, why)
