"""The least LinkPolicies that allow what was seen. Pure.

One policy per destination identity, with the selector that fits exactly the pods which run as it; a
rule per set of ports. Names that Kubernetes does not know are never written out as YAML.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from policy.linkpolicy import API_VERSION, KIND, PolicyInvalid, parse
from policy.replay import Seen
from registry.facts import PodFacts

_NOT_LASTING = frozenset(
    {
        "pod-template-hash",
        "controller-revision-hash",
        "pod-template-generation",
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
        "job-name",
        "controller-uid",
        "batch.kubernetes.io/job-name",
        "batch.kubernetes.io/controller-uid",
        "podlink.dev/injected",
        "version",
        "app.kubernetes.io/version",
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region",
    }
)
"""Labels that a later pod of the same workload would not carry alike."""
_FIRST = ("app.kubernetes.io/name", "app", "k8s-app", "app.kubernetes.io/component")


def suggest(
    namespace: str, traffic: Iterable[Seen], pods: Sequence[PodFacts], *, enforce: bool
) -> str:
    """YAML for `kubectl apply`; comments say what it rests on and what it leaves out."""
    by_account: dict[str, list[Seen]] = {}
    for seen in traffic:
        if seen.namespace == namespace:
            by_account.setdefault(seen.account, []).append(seen)
    living = [pod for pod in pods if not pod.finished and pod.meshed]
    accounts = sorted({pod.service_account for pod in living} | set(by_account))
    documents = [
        _document(namespace, account, by_account.get(account, ()), living, enforce=enforce)
        for account in accounts
    ]
    documents = [text for text in documents if text]
    if not documents:
        return f"# nothing of namespace {namespace} is on record\n"
    return "---\n".join(documents)


def _document(
    namespace: str,
    account: str,
    seen: Sequence[Seen],
    pods: Sequence[PodFacts],
    *,
    enforce: bool,
) -> str:
    own = [pod for pod in pods if pod.service_account == account]
    if not own:
        return ""
    comments, selector = _selector(own, pods)
    allowed = [one for one in seen if not one.denied]
    links = sum(one.links for one in allowed)
    comments.insert(0, f"{len(own)} pods as {namespace}/{account}: {links} links let in")
    if not allowed:
        comments.append("nothing was seen coming in: this lets nobody in")
    denied = sorted({f"{one.source} port {one.port}" for one in seen if one.denied})
    comments += [f"refused already, and left out: {text}" for text in denied]
    rules = _rules(allowed, comments)
    raw: dict[str, Any] = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": account, "namespace": namespace},
        "spec": {
            **({"selector": {"matchLabels": selector}} if selector else {}),
            "mode": "Enforce" if enforce else "Audit",
            "allow": rules,
        },
    }
    try:
        parse(raw)
    except PolicyInvalid as e:
        return f"# {namespace}/{account}: no policy suggested ({_comment(str(e))})\n"
    text = "".join(f"# {_comment(line)}\n" for line in comments)
    return text + yaml.safe_dump(raw, sort_keys=False, width=100)


def _rules(allowed: Sequence[Seen], comments: list[str]) -> list[dict[str, Any]]:
    ports: dict[tuple[str, str], set[int]] = {}
    networks: dict[str, set[int]] = {}
    for one in allowed:
        if one.peer is not None:
            ports.setdefault((one.peer.namespace, one.peer.service_account), set()).add(one.port)
        elif one.peer_ip:
            width = 128 if ":" in one.peer_ip else 32
            networks.setdefault(f"{one.peer_ip}/{width}", set()).add(one.port)
        else:
            comments.append(
                f"left out: plaintext from {one.source} to port {one.port}, whose address is not kept"
            )
    found: list[dict[str, Any]] = []
    for wanted, sources in _by_ports(ports).items():
        peers = [{"namespace": place, "serviceAccount": name} for place, name in sorted(sources)]
        found.append({"from": peers, "ports": list(wanted)})
    for wanted, cidrs in _by_ports(networks).items():
        found.append({"fromCIDRs": sorted(cidrs), "ports": list(wanted)})
    return found


def _by_ports(ports: Mapping[Any, set[int]]) -> dict[tuple[int, ...], list[Any]]:
    """Peers that come to the same ports share a rule."""
    found: dict[tuple[int, ...], list[Any]] = {}
    for peer in sorted(ports):
        found.setdefault(tuple(sorted(ports[peer])), []).append(peer)
    return dict(sorted(found.items()))


def _selector(
    own: Sequence[PodFacts], all_pods: Sequence[PodFacts]
) -> tuple[list[str], dict[str, str]]:
    """The fewest lasting labels that all of `own` carry and nobody else does."""
    common = set(own[0].labels)
    for pod in own[1:]:
        common &= set(pod.labels)
    lasting = {name: value for name, value in common if name not in _NOT_LASTING}
    ordered = sorted(lasting, key=lambda n: (_FIRST.index(n) if n in _FIRST else len(_FIRST), n))
    own_uids = {pod.uid for pod in own}
    others = [dict(pod.labels) for pod in all_pods if pod.uid not in own_uids]
    chosen: dict[str, str] = {}
    for name in ordered:
        fitting = [o for o in others if all(o.get(n) == v for n, v in chosen.items())]
        if chosen and not fitting:
            break
        if not chosen or any(o.get(name) != lasting[name] for o in fitting):
            chosen[name] = lasting[name]
    left = [o for o in others if all(o.get(n) == v for n, v in chosen.items())]
    if left:
        return [f"NOT EXACT: no labels tell these pods from {len(left)} others"], chosen
    return [], chosen


def _comment(text: str) -> str:
    """One line of a YAML comment, whatever was in it."""
    return "".join(c if c.isprintable() else "?" for c in text)
