"""What `verify-link` goes to: a pod, or a Service with the pods behind it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cli.cluster import ClusterUnavailable, explained
from cli.pods import PodName, addresses_of, read_pod
from kit.kube import Kube, KubeError

MAX_PODS: Final = 8
"""Of a Service: each is listened at while the link is made."""


@dataclass(frozen=True, slots=True)
class Target:
    ip: str
    """To be dialled: the pod's, or the Service's; empty if the pod has none yet."""
    port: int
    pods: Mapping[str, Mapping[str, Any]]
    """The pod, or those behind the Service, by `namespace/name`."""
    service: bool


async def read_target(kube: Kube, name: PodName) -> Target:
    """A pod of this name, else a Service. Raises ClusterUnavailable, in one line."""
    try:
        pod = await kube.get(f"/api/v1/namespaces/{name.namespace}/pods/{name.name}")
    except KubeError as e:
        if e.status != 404:
            raise explained(
                e, f"read pod {name}", f"`get` on pods in namespace {name.namespace}"
            ) from e
        return await _service(kube, name)
    port = name.port or _first_port(pod)
    if not port:
        raise ClusterUnavailable(f"{name} names no containerPort: give one, as {name}:8080")
    return Target(next(iter(addresses_of(pod)), ""), port, {str(name): pod}, False)


async def _service(kube: Kube, name: PodName) -> Target:
    takes = f"`get` on services and `list` on endpointslices in namespace {name.namespace}"
    try:
        service = await kube.get(f"/api/v1/namespaces/{name.namespace}/services/{name.name}")
        slices = await kube.get(
            f"/apis/discovery.k8s.io/v1/namespaces/{name.namespace}/endpointslices",
            labelSelector=f"kubernetes.io/service-name={name.name}",
        )
    except KubeError as e:
        if e.status == 404:
            raise ClusterUnavailable(
                f"there is no pod {name}, and no Service; kubectl -n {name.namespace} get pods,services "
                "lists them"
            ) from e
        raise explained(e, f"read Service {name}", takes) from e
    ip, port = _address(name, service["spec"]), name.port or _service_port(service["spec"])
    if not port:
        raise ClusterUnavailable(f"Service {name} has no TCP port")
    found = pods_behind(slices)
    if not found:
        raise ClusterUnavailable(f"Service {name} has no pod that is ready")
    if len(found) > MAX_PODS:
        raise ClusterUnavailable(
            f"Service {name} has {len(found)} pods, more than the {MAX_PODS} that can be listened at: "
            f"name one of them, such as {name.namespace}/{found[0]}"
        )
    names = [PodName(name.namespace, each) for each in found]
    return Target(ip, port, {str(each): await read_pod(kube, each) for each in names}, True)


def pods_behind(slices: Mapping[str, Any]) -> list[str]:
    """Names of the pods that are ready. Pure."""
    found = {
        str(endpoint["targetRef"]["name"])
        for one in slices.get("items") or ()
        for endpoint in one.get("endpoints") or ()
        if (endpoint.get("targetRef") or {}).get("kind") == "Pod"
        and (endpoint.get("conditions") or {}).get("ready") is not False
    }
    return sorted(found)


def _address(name: PodName, spec: Mapping[str, Any]) -> str:
    ips = [ip for ip in spec.get("clusterIPs") or [spec.get("clusterIP")] if ip and ip != "None"]
    if not ips:
        raise ClusterUnavailable(
            f"Service {name} is headless or external and has no address: name one of its pods"
        )
    return str(ips[0])


def _service_port(spec: Mapping[str, Any]) -> int:
    ports = (p for p in spec.get("ports") or () if p.get("protocol", "TCP") == "TCP")
    return next((int(port["port"]) for port in ports), 0)


def _first_port(pod: Mapping[str, Any]) -> int:
    for container in pod["spec"].get("containers") or ():
        for port in container.get("ports") or ():
            if port.get("protocol", "TCP") == "TCP" and isinstance(port.get("containerPort"), int):
                return int(port["containerPort"])
    return 0
