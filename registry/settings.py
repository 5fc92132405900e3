"""What concerns a pod itself: its annotations, else its namespace's, else the defaults. Pure.

An annotation that was edited into something unknown after admission counts as the strict choice.
"""

from collections.abc import Iterable

from kit.ports import PortSet
from proto import registry_pb2 as pb
from registry.facts import NamespaceFacts, PodFacts

POLICY_FORMAT = 1
"""Raised when a policy may say something that older sidecars would read past: they then keep what they
have (`sidecar.discovery.translate`)."""


def pod_settings(
    pod: PodFacts,
    namespace: NamespaceFacts | None,
    mesh_default: str,
    policies: Iterable[pb.Policy] = (),
) -> pb.PodSettings:
    """The settings that `pod`'s sidecar is to hold; `policies` are those that select it."""
    # Both or neither: a pod that says `deny` is not opened by the ports of its namespace.
    says = pod if pod.plaintext or pod.plaintext_ports or namespace is None else namespace
    near_external = namespace.external if namespace is not None else ""
    return pb.PodSettings(
        mesh_default=mesh_default,
        plaintext=_choose(says.plaintext, "deny"),
        plaintext_ports=_ports(says.plaintext_ports),
        external=_choose(pod.external or near_external, "allow"),
        policies=policies,
        policy_format=POLICY_FORMAT,
    )


def _ports(said: str) -> list[str]:
    try:
        return list(filter(None, str(PortSet.parse(said)).split(",")))
    except ValueError:
        return []


def _choose(said: str, default: str) -> str:
    if not said:
        return default
    return "allow" if said == "allow" else "deny"
