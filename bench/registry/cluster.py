"""The simulated cluster: its objects as the API server would send them, and its churn. Pure.

The churn is that of Istio's scale tests (docs/threat-model.md, fault endpoint-churn): one Service is
rescaled each second between 85 and 115 % of its size, one namespace relabelled each minute.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from kit.contract import CAPTURE_COMMAND, CAPTURE_CONTAINER, PROXY_COMMAND, PROXY_CONTAINER

Raw = dict[str, Any]
PODS, SERVICES = "/api/v1/pods", "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
NAMESPACES, POLICIES = "/api/v1/namespaces", "/apis/podlink.dev/v1alpha1/linkpolicies"
NODES = "/api/v1/nodes"
HOT_NAMESPACE, HOT = "bench", "hot"
HOT_SIZE, PER_SERVICE, PER_NAMESPACE, PER_SLICE = 100, 10, 500, 100
_FILLER = "x" * 3000
"""Stands for what real objects carry besides (managedFields, conditions, volumes)."""


@dataclass(frozen=True)
class Size:
    pods: int = 10_000
    services: int = 1_000
    sidecars: int = 500


def address(number: int) -> str:
    return f"10.{100 + number // 62_500}.{number // 250 % 250}.{number % 250 + 1}"


def cluster_ip(number: int) -> str:
    return f"10.96.{number // 250}.{number % 250 + 1}"


def namespace(name: str, labels: dict[str, str] | None = None) -> Raw:
    return {
        "metadata": {"name": name, "labels": {"podlink.dev/inject": "enabled", **(labels or {})}}
    }


def pod(name: str, where: str, ip: str, account: str, uid: str = "", leaving: bool = False) -> Raw:
    metadata: Raw = {
        "uid": uid or f"{where}-{name}",
        "namespace": where,
        "name": name,
        "creationTimestamp": "2026-11-24T08:00:00Z",
        "labels": {"app": account, "pod-template-hash": "5f6d7c8b9", "team": where},
        "managedFields": [{"manager": "kubelet", "fieldsV1": {"f": _FILLER}}],
    }
    if leaving:
        metadata["deletionTimestamp"] = "2026-11-24T09:00:00Z"
    ours = [
        {"name": CAPTURE_CONTAINER, "image": "podlink", "command": list(CAPTURE_COMMAND)},
        {
            "name": PROXY_CONTAINER,
            "image": "podlink",
            "command": list(PROXY_COMMAND),
            "restartPolicy": "Always",
        },
    ]
    return {
        "metadata": metadata,
        "spec": {
            "serviceAccountName": account,
            "nodeName": f"node-{hash(name) % 200}",
            "initContainers": ours,
            "containers": [{"name": "app", "ports": [{"containerPort": 8080}]}],
        },
        "status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "hostIP": "192.0.2.1",
            "hostIPs": [{"ip": "192.0.2.1"}],
        },
    }


def service(name: str, where: str, ip: str) -> Raw:
    ports = [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]
    return {
        "metadata": {"namespace": where, "name": name, "uid": f"{where}-{name}"},
        "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ports": ports},
    }


def slices(name: str, where: str, pods: list[Raw]) -> list[Raw]:
    """The EndpointSlices of a Service; at least one, and as many as were ever needed for HOT."""
    count = max(1, -(-len(pods) // PER_SLICE), 2 if name == HOT else 1)
    return [
        {
            "metadata": {
                "namespace": where,
                "name": f"{name}-{number}",
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [
                _endpoint(one) for one in pods[number * PER_SLICE : (number + 1) * PER_SLICE]
            ],
        }
        for number in range(count)
    ]


def _endpoint(one: Raw) -> Raw:
    metadata = one["metadata"]
    return {
        "addresses": [one["status"]["podIP"]],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "nodeName": one["spec"]["nodeName"],
        "targetRef": {"kind": "Pod", "uid": metadata["uid"], "name": metadata["name"]},
    }


def objects(size: Size) -> Iterator[tuple[str, Raw]]:
    """Every object of the cluster before the churn, with the list path it belongs to.

    The sidecars' pods all have 127.0.0.1, where their streams come from.
    """
    yield NAMESPACES, namespace(HOT_NAMESPACE)
    for number in range(size.sidecars):
        yield PODS, pod(f"sidecar-{number}", HOT_NAMESPACE, "127.0.0.1", "near")
    hot = [hot_pod(number) for number in range(HOT_SIZE)]
    yield SERVICES, service(HOT, HOT_NAMESPACE, cluster_ip(0))
    yield from ((PODS, one) for one in hot)
    yield from ((SLICES, one) for one in slices(HOT, HOT_NAMESPACE, hot))
    others = max(0, size.pods - size.sidecars - HOT_SIZE)
    per_service: list[Raw] = []
    made = 0
    for number in range(others):
        where = f"team-{number // PER_NAMESPACE}"
        if number % PER_NAMESPACE == 0:
            yield NAMESPACES, namespace(where)
        one = pod(f"pod-{number}", where, address(10_000 + number), "app")
        yield PODS, one
        per_service.append(one)
        if len(per_service) == PER_SERVICE and made < size.services - 1:
            made += 1
            name = f"svc-{made}"
            yield SERVICES, service(name, where, cluster_ip(made))
            yield from ((SLICES, slice_) for slice_ in slices(name, where, per_service))
            per_service = []


def hot_pod(number: int, leaving: bool = False) -> Raw:
    """The number-th pod that HOT has ever had; addresses are used again after a while."""
    uid = f"hot-{number}"
    return pod(f"hot-{number}", HOT_NAMESPACE, address(number % 400), "hot", uid, leaving)


class Churn:
    """HOT's pods over time. `rescale` draws the next size and returns (added, removed)."""

    def __init__(self, seed: int = 7) -> None:
        self._random = Random(seed)
        self.numbers = list(range(HOT_SIZE))
        self._next = HOT_SIZE

    def rescale(self) -> tuple[list[int], list[int]]:
        sizes = [s for s in range(85, 116) if s != len(self.numbers)]
        wanted = self._random.choice(sizes)
        # A rolling change besides: some go and others come, as in a rollout.
        removed, self.numbers = self.numbers[:3], self.numbers[3:]
        while len(self.numbers) > wanted:
            removed.append(self.numbers.pop(0))
        added = list(range(self._next, self._next + wanted - len(self.numbers)))
        self._next += len(added)
        self.numbers += added
        return added, removed
