"""What concerns a pod itself: its annotations, else its namespace's, else the defaults. Pure.

An annotation that was edited into something unknown after admission counts as the strict choice.
Policies join in here once LinkPolicies are read; until then no policy selects any pod.
"""

from proto import registry_pb2 as pb
from registry.facts import NamespaceFacts, PodFacts


def pod_settings(
    pod: PodFacts, namespace: NamespaceFacts | None, mesh_default: str
) -> pb.PodSettings:
    """The settings that `pod`'s sidecar is to hold."""
    near_plaintext = namespace.plaintext if namespace is not None else ""
    near_external = namespace.external if namespace is not None else ""
    return pb.PodSettings(
        mesh_default=mesh_default,
        plaintext=_choose(pod.plaintext or near_plaintext, "deny"),
        external=_choose(pod.external or near_external, "allow"),
        declared_ports=pod.declared_ports,
    )


def _choose(said: str, default: str) -> str:
    if not said:
        return default
    return "allow" if said == "allow" else "deny"
