"""Raw Kubernetes objects for the registry's tests, as the API server sends them."""

import itertools
from collections.abc import Sequence
from typing import Any

Raw = dict[str, Any]
IMAGE = "podlink/podlink:0.1.0"
_serial = itertools.count(1)


def pod(
    name: str,
    *ips: str,
    namespace: str = "shop",
    uid: str = "",
    account: str = "web",
    meshed: bool = True,
    node: str = "n1",
    node_ip: str = "192.0.2.1",
    created: str = "2026-11-21T08:00:00Z",
    phase: str = "Running",
    terminating: bool = False,
    host_network: bool = False,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    env: dict[str, str] | None = None,
    image: str = IMAGE,
    command: Sequence[str] = ("python", "-m", "sidecar"),
) -> Raw:
    metadata: Raw = {
        "uid": uid or f"{namespace}-{name}",
        "namespace": namespace,
        "name": name,
        "resourceVersion": str(next(_serial)),
        "creationTimestamp": created,
        "labels": labels or {},
        "annotations": {
            f"config.podlink.dev/{key.replace('_', '-')}": value
            for key, value in (annotations or {}).items()
        },
    }
    if terminating:
        metadata["deletionTimestamp"] = "2026-11-21T09:00:00Z"
    own = [{"name": key, "value": value} for key, value in (env or {}).items()]
    ours = [
        {
            "name": "podlink-capture",
            "image": image,
            "command": ["python", "-m", "sidecar.capture"],
            "env": own,
        },
        {
            "name": "podlink-proxy",
            "image": image,
            "command": list(command),
            "restartPolicy": "Always",
            "env": own,
        },
    ]
    return {
        "metadata": metadata,
        "spec": {
            "serviceAccountName": account,
            "nodeName": node,
            "hostNetwork": host_network,
            "initContainers": ours if meshed else [],
            "containers": [{"name": "app", "image": "app:1"}],
        },
        "status": {
            "phase": phase,
            "podIPs": [{"ip": ip} for ip in ips],
            "podIP": ips[0] if ips else None,
            "hostIP": node_ip,
            "hostIPs": [{"ip": node_ip}],
        },
    }


def service(
    name: str,
    *cluster_ips: str,
    namespace: str = "shop",
    ports: tuple[Raw, ...] = ({"name": "db", "port": 5432, "targetPort": "pg"},),
    created: str = "2026-11-21T07:00:00Z",
    annotations: dict[str, str] | None = None,
    balancer: Sequence[str] = (),
    **spec: Any,
) -> Raw:
    ips = list(cluster_ips) or ["None"]
    return {
        "status": {"loadBalancer": {"ingress": [{"ip": ip} for ip in balancer]}},
        "metadata": {
            "uid": f"svc-{name}",
            "namespace": namespace,
            "name": name,
            "creationTimestamp": created,
            "annotations": annotations or {},
        },
        "spec": {"clusterIP": ips[0], "clusterIPs": ips, "ports": list(ports), **spec},
    }


def node(name: str, *ips: str, cidrs: Sequence[str] = ()) -> Raw:
    return {
        "metadata": {"name": name},
        "spec": {"podCIDRs": list(cidrs)},
        "status": {"addresses": [{"type": "InternalIP", "address": ip} for ip in ips]},
    }


def with_host_port(made: Raw, number: int, port: int, host_ip: str = "") -> Raw:
    said: Raw = {"containerPort": port, "hostPort": number}
    if host_ip:
        said["hostIP"] = host_ip
    made["spec"]["containers"][0]["ports"] = [said]
    return made


def endpoint(ip: str, target: Raw | None = None, **more: Any) -> Raw:
    made: Raw = {"addresses": [ip], "conditions": {"ready": True}, **more}
    if target is not None:
        metadata = target["metadata"]
        made["targetRef"] = {"kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
    return made


def slice_of(
    service_name: str,
    *endpoints: Raw,
    namespace: str = "shop",
    name: str = "",
    ports: tuple[Raw, ...] = ({"name": "db", "port": 15432, "protocol": "TCP"},),
    family: str = "IPv4",
) -> Raw:
    return {
        "metadata": {
            "namespace": namespace,
            "name": name or f"{service_name}-abc",
            "labels": {"kubernetes.io/service-name": service_name},
        },
        "addressType": family,
        "ports": list(ports),
        "endpoints": list(endpoints),
    }


def namespace_object(name: str, **annotations: str) -> Raw:
    named = {f"config.podlink.dev/{key}": value for key, value in annotations.items()}
    return {"metadata": {"name": name, "annotations": named}}
