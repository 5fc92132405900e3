"""Every LinkPolicy and whom its selector may mean, for the trace store. Pure."""

import json
from collections import defaultdict
from typing import Final

from proto import registry_pb2 as pb
from registry.facts import PolicyObject
from registry.model import Model
from registry.policies import Standing

MAX_POLICIES_BYTES: Final = 16 << 20
"""Of all policies in one answer: the trace store takes 32 MiB, with labels."""
MAX_LABEL_SETS: Final = 100
"""Of one service account: pods of a workload carry the same labels, or nearly."""
MAX_SETS: Final = 20_000
"""In all, so that an answer stays well under what gRPC takes."""


def overview(model: Model, mesh_default: str, *, with_labels: bool) -> pb.PoliciesResponse:
    """What is in force now."""
    answer = pb.PoliciesResponse(mesh_default=mesh_default)
    answer.policies.extend(_fitting([_told(*known) for known in model.policies.all()]))
    if with_labels:
        _add_accounts(model, answer)
    return answer


def _told(one: PolicyObject, standing: Standing) -> pb.PolicyObject:
    return pb.PolicyObject(
        namespace=one.namespace,
        name=one.name,
        uid=one.uid,
        generation=standing.generation,
        spec="" if standing.raw_spec is None else json.dumps(standing.raw_spec, sort_keys=True),
        state=standing.state,
    )


def _fitting(policies: list[pb.PolicyObject]) -> list[pb.PolicyObject]:
    """Without the largest, if one message would not hold all: whoever writes such policies loses
    these, and keeps nobody else's from the store."""
    sizes = {number: one.ByteSize() for number, one in enumerate(policies)}
    total = sum(sizes.values())
    for number in sorted(sizes, key=lambda n: sizes[n], reverse=True):
        if total <= MAX_POLICIES_BYTES:
            break
        total -= sizes.pop(number)
    return [one for number, one in enumerate(policies) if number in sizes]


def _add_accounts(model: Model, answer: pb.PoliciesResponse) -> None:
    found: defaultdict[tuple[str, str], set[tuple[tuple[str, str], ...]]] = defaultdict(set)
    for pod in model.pods():
        if not pod.finished:
            found[pod.namespace, pod.service_account].add(pod.labels)
    told = 0
    for (namespace, name), sets in sorted(found.items()):
        kept = sorted(sets)[: min(MAX_LABEL_SETS, max(0, MAX_SETS - told))]
        told += len(kept)
        account = answer.accounts.add(
            namespace=namespace, service_account=name, more=len(kept) < len(sets)
        )
        for labels in kept:
            account.pods.add(labels=dict(labels))
