"""Which LinkPolicies are in force. Pure.

A policy that cannot be read leaves its last good form in force: the one this replica has, else the
one that its status keeps (only the registry may write that), else one that lets nobody in. An
author's slip then never opens a pod, and a restart of the registry changes nothing.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from policy.linkpolicy import LinkPolicy, PolicyInvalid, closed, parse, parse_spec
from policy.rules import Rule
from proto import registry_pb2 as pb
from registry.facts import PodFacts, PolicyObject

_MAX_GENERATION = 2**62
CURRENT, LAST_GOOD, CLOSED, AUDITED = "Current", "LastGood", "Closed", "Audited"


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands for one LinkPolicy object now."""

    policy: LinkPolicy
    state: str
    """One of CURRENT, LAST_GOOD, CLOSED, AUDITED: the reason of the condition `InForce`."""
    generation: int
    """Of the form that is in force; 0 if none ever was."""
    raw_spec: Mapping[str, Any] | None
    """The spec of the form in force."""
    error: PolicyInvalid | None = None
    """Why the present form cannot be read."""


class Policies:
    """Every LinkPolicy of the cluster, by namespace and name."""

    def __init__(self) -> None:
        self._objects: dict[tuple[str, str], PolicyObject] = {}
        self._standing: dict[tuple[str, str], Standing] = {}
        self._compiled: dict[tuple[str, str], pb.Policy] = {}
        self._in: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)

    def of(self, namespace: str, name: str) -> LinkPolicy | None:
        """The form in force."""
        standing = self._standing.get((namespace, name))
        return standing.policy if standing is not None else None

    def all(self) -> list[tuple[PolicyObject, Standing]]:
        """Every object and what stands for it, by namespace and name."""
        return [(self._objects[key], self._standing[key]) for key in sorted(self._objects)]

    def standing(self, namespace: str, name: str) -> Standing | None:
        return self._standing.get((namespace, name))

    def change(self, old: PolicyObject | None, new: PolicyObject | None) -> LinkPolicy | None:
        """Take an object's new form, or its end; returns what is then in force for it."""
        named = new or old
        assert named is not None
        key = (named.namespace, named.name)
        if new is None:
            self._drop(key)
            return None
        before = self._standing.get(key)
        if old is not None and old.uid != new.uid:  # deleted and made anew between two looks
            before = None
        standing = _stand(new, before)
        self._objects[key] = new
        if before is None or before.policy != standing.policy or key not in self._compiled:
            self._compiled[key] = compiled(standing.policy)
        self._standing[key] = standing
        if key not in self._in[new.namespace]:
            self._in[new.namespace] = sorted([*self._in[new.namespace], key])
        return standing.policy

    def _drop(self, key: tuple[str, str]) -> None:
        for known in (self._objects, self._standing, self._compiled):
            known.pop(key, None)
        if key in self._in.get(key[0], ()):
            self._in[key[0]].remove(key)
            if not self._in[key[0]]:
                del self._in[key[0]]

    @staticmethod
    def selects(policy: LinkPolicy, pod: PodFacts) -> bool:
        return policy.selects(pod.namespace, dict(pod.labels))

    def selecting(self, pod: PodFacts) -> list[pb.Policy]:
        """The compiled policies that select the pod, by name."""
        keys = self._in.get(pod.namespace)
        if not keys:
            return []
        labels = dict(pod.labels)
        return [
            self._compiled[key]
            for key in keys
            if self._standing[key].policy.selector.selects(labels)
        ]


def _stand(new: PolicyObject, before: Standing | None) -> Standing:
    try:
        policy = parse(new.raw)
    except PolicyInvalid as error:
        return _fall_back(new, before, error)
    state = AUDITED if policy.policy.audit else CURRENT
    return Standing(policy, state, new.generation, new.raw.get("spec"))


def _fall_back(new: PolicyObject, before: Standing | None, error: PolicyInvalid) -> Standing:
    if before is not None and before.generation:
        return Standing(before.policy, LAST_GOOD, before.generation, before.raw_spec, error)
    kept = _kept_in_status(new)
    if kept is not None:
        policy, generation, spec = kept
        return Standing(policy, LAST_GOOD, generation, spec, error)
    stands = closed(new.namespace, new.name, new.raw.get("spec"))
    return Standing(stands, CLOSED, 0, None, error)


def _kept_in_status(new: PolicyObject) -> tuple[LinkPolicy, int, Mapping[str, Any]] | None:
    status = json.loads(new.raw_status)
    kept = status.get("inForce") if isinstance(status, dict) else None
    generation = kept.get("generation") if isinstance(kept, dict) else None
    if not isinstance(kept, dict) or not isinstance(generation, int):
        return None
    if not 0 < generation <= _MAX_GENERATION:
        return None
    try:
        policy = parse_spec(new.namespace, new.name, kept.get("spec"))
    except PolicyInvalid:
        return None
    return policy, generation, kept["spec"]


def compiled(policy: LinkPolicy) -> pb.Policy:
    """As sidecars are told it."""
    return pb.Policy(
        namespace=policy.namespace,
        name=policy.name,
        audit=policy.policy.audit,
        allow=map(_rule, policy.policy.allow),
        deny=map(_rule, policy.policy.deny),
    )


def _rule(rule: Rule) -> pb.Rule:
    said = pb.Rule(name=rule.name, from_cidrs=map(str, rule.networks), ports=sorted(rule.ports))
    for source in rule.sources:
        getattr(said, "from").add(
            namespace=source.namespace, service_account=source.service_account
        )
    return said
