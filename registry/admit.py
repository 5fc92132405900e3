"""May this caller speak for this pod? Pure.

Three things must agree: the leaf (whose identity and addresses the CA vouches for), the pod as the
API server knows it, and where the call comes from. The Hello only says which pod is meant.
"""

from certs.trust.facts import LeafFacts
from proto import registry_pb2 as pb
from registry.facts import PodFacts


class HelloRefused(Exception):
    """The caller may not speak for the pod it names. `reason` is a stable slug."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail[:256]}" if detail else reason)
        self.reason = reason


def admit(
    hello: pb.Hello,
    leaf: LeafFacts,
    caller_ip: str,
    pod: PodFacts | None,
    leaves_name_pods: bool = True,
) -> PodFacts:
    """Return the pod that the caller may speak for, else raise HelloRefused.

    `pod` is what the API server has under the UID of the Hello; `caller_ip` is canonical. The
    kubelet reports a pod's addresses late: until it has, the leaf's must do. Where a SPIFFE agent
    issues, leaves carry none (`leaves_name_pods` false): then the API server's word is waited for.
    """
    identity = leaf.identity
    if hello.namespace != identity.namespace:
        raise HelloRefused("namespace_differs", f"{hello.namespace!r} is not {identity}")
    if pod is None:
        raise HelloRefused("pod_unknown", f"{hello.pod_uid!r}")
    if (pod.namespace, pod.name) != (hello.namespace, hello.pod_name):
        raise HelloRefused("pod_differs", f"{pod.namespace}/{pod.name}")
    if pod.service_account != identity.service_account:
        raise HelloRefused("service_account_differs", f"{pod.service_account!r} is not {identity}")
    if pod.finished:
        raise HelloRefused("pod_finished")
    if leaves_name_pods and caller_ip not in leaf.ips:
        raise HelloRefused("caller_not_in_leaf", caller_ip)
    if (pod.ips or not leaves_name_pods) and caller_ip not in pod.ips:
        raise HelloRefused("caller_not_the_pod", caller_ip)
    return pod
