"""What a LinkPolicy would have done to the links on record. Pure.

The matcher is the one that sidecars enforce with. What the record does not hold is said, not guessed:
spans carry no labels of pods, so which destinations the selector means is for the reader to say; and
of other policies it knows those that decided on recorded links, not all that are in force. So what
another policy's rule let in stays let in (rules add up), unless this one denies it.
"""

import ipaddress
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import yaml

from certs.trust.identity import IdentityMalformed, WorkloadIdentity
from policy.judge import Denial, judge
from policy.linkpolicy import LinkPolicy, PolicyInvalid, parse
from policy.rules import Policy, PolicySet
from traces.edges import Edge, End, Way

Fate = Literal["cut", "opened", "still", "kept"]
ORDER: Final[tuple[Fate, ...]] = ("cut", "opened", "still", "kept")
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
    destinations: tuple[End, ...]
    """Every end on record that the policies could select: those in their namespaces."""

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
    policies: Sequence[LinkPolicy], edges: Sequence[Edge], selected: Collection[str] | None = None
) -> Replay:
    """`selected` names the destinations that the selectors mean; None: all of their namespaces."""
    found: list[Replayed] = []
    used: set[tuple[str, str]] = set()
    candidates: set[End] = set()
    namespaces = {policy.namespace for policy in policies}
    for edge in edges:
        if edge.destination.namespace not in namespaces:
            continue
        candidates.add(edge.destination)
        if selected is not None and edge.destination.name not in selected:
            continue
        here = [p.policy for p in policies if p.namespace == edge.destination.namespace]
        used |= {
            (policy.name, rule.name)
            for policy in here
            for rule in (*policy.allow, *policy.deny)
            if rule.matches(*_peer(edge), edge.port)
        }
        found += [_fate(edge, way, here) for way in edge.ways if way.state != "self"]
    found.sort(key=lambda item: (ORDER.index(item.fate), -item.way.count))
    unused = tuple(
        f"{p.policy.name} {rule.name}"
        for p in policies
        for rule in (*p.policy.allow, *p.policy.deny)
        if (p.policy.name, rule.name) not in used
    )
    return Replay(tuple(policies), tuple(found), unused, tuple(sorted(candidates)))


def _peer(edge: Edge) -> tuple[WorkloadIdentity | None, str]:
    """Who the source is to the matcher. A pod without identity is known by name only, which no CIDR
    matches: 192.0.2.1 (RFC 5737) is nobody's address."""
    if edge.source.kind == "identity":
        try:
            return WorkloadIdentity.parse(edge.source.name), "192.0.2.1"
        except IdentityMalformed:
            return None, "192.0.2.1"
    address = edge.source.name if edge.source.kind == "address" else ""
    try:
        return None, str(ipaddress.ip_address(address))
    except ValueError:
        return None, "192.0.2.1"


def _fate(edge: Edge, way: Way, policies: Sequence[Policy]) -> Replayed:
    peer, peer_ip = _peer(edge)
    in_force = PolicySet(allow_plaintext=peer is None, policies=tuple(policies))
    verdict = judge(peer, peer_ip, edge.port, in_force)
    own = {policy.name for policy in policies}
    was_denied = way.state == "denied"
    others = [text for text in way.policies if "/" in text and text.partition(" ")[0] not in own]
    if not isinstance(verdict, Denial):
        would = verdict.would_deny
        if would and not was_denied:
            return Replayed(edge, way, "kept", f"{would} would deny it, but only audits")
        why = f"{verdict.policy} {verdict.rule}".strip()
        if not was_denied:
            return Replayed(edge, way, "kept", why)
        if "policy_denied" in way.reasons and not any(" deny[" in text for text in others):
            return Replayed(edge, way, "opened", why)
        return Replayed(edge, way, "still", "what denied it is not what this policy decides")
    if was_denied:
        return Replayed(edge, way, "still", verdict.text)
    if verdict.rule == "no-rule" and others:
        return Replayed(edge, way, "kept", f"allowed by {others[0]}, which still holds")
    near = f"; nearest: {verdict.nearest}" if verdict.nearest else ""
    return Replayed(edge, way, "cut", verdict.text + near)
