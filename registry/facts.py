"""What the registry keeps of each Kubernetes object: small values that compare equal when nothing
that matters has changed. Pure.

A reader raises KeyError, TypeError, ValueError or AttributeError for an object that it cannot read;
the informer then treats the object as absent.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from sys import intern
from typing import Any

from kit import contract
from policy.linkpolicy import API_VERSION, KIND

Raw = Mapping[str, Any]

_ZONE_LABEL = "topology.kubernetes.io/zone"  # copied from the node by Kubernetes 1.35 and later
_SLICE_SERVICE_LABEL = "kubernetes.io/service-name"
_BALANCES = frozenset({"round-robin", "source-hash"})
_DISTRIBUTIONS = {
    "PreferClose": "PreferSameZone",  # the older name of the same wish
    "PreferSameZone": "PreferSameZone",
    "PreferSameNode": "PreferSameNode",
}
_DEFAULT_AFFINITY_S = 10800
_MAX_HINTS = 8  # what the EndpointSlice API allows


def canonical_ip(text: str) -> str:
    """One spelling per address; an IPv4 address written as IPv6 is IPv4. Raises ValueError.

    An address with a scope ("fe80::1%eth0") means something on one machine only and is refused.
    """
    address = ip_address(text)
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise ValueError(f"{text!r} has a scope")
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
    return str(address)


@dataclass(frozen=True, slots=True)
class PodFacts:
    """One pod. What its proxy does (`mode`, `skip_*`) is read from the pod's spec, which nobody can
    edit later; `plaintext`, `plaintext_ports` and `external` are raw annotations, empty when absent.
    """

    uid: str
    namespace: str
    name: str
    service_account: str
    node: str
    zone: str
    ips: tuple[str, ...]
    node_ips: tuple[str, ...]
    labels: tuple[tuple[str, str], ...]
    created: str
    meshed: bool
    host_network: bool
    finished: bool
    terminating: bool
    mode: str = ""
    skip_inbound: tuple[str, ...] = ()
    skip_outbound: tuple[str, ...] = ()
    plaintext: str = ""
    plaintext_ports: str = ""
    external: str = ""
    declared_ports: tuple[int, ...] = ()
    """TCP ports that the pod's own containers name."""
    http_ports: tuple[str, ...] = ()
    """Ports and ranges that its annotation says speak HTTP."""


@dataclass(frozen=True, slots=True)
class PortFacts:
    name: str
    port: int
    app_protocol: str

    @property
    def speaks_http(self) -> bool:
        return self.app_protocol in contract.HTTP_APP_PROTOCOLS


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """One Service; TCP ports only. `cluster_ips` is empty for headless and ExternalName ones."""

    namespace: str
    name: str
    created: str
    cluster_ips: tuple[str, ...]
    ports: tuple[PortFacts, ...]
    affinity_timeout_s: int
    balance: str
    traffic_distribution: str
    publish_not_ready: bool
    local_only: bool = False
    """`internalTrafficPolicy: Local`."""


@dataclass(frozen=True, slots=True)
class SliceEndpoint:
    """`claimed_ip` is whatever the slice says, in canonical text if it is an address at all:
    tenants write slices.
    """

    claimed_ip: str
    ready: bool
    serving: bool
    terminating: bool
    zone: str
    hostname: str
    target_uid: str
    target_name: str
    node: str = ""
    for_zones: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SliceFacts:
    namespace: str
    service: str
    ports: tuple[tuple[str, int], ...]
    endpoints: tuple[SliceEndpoint, ...]


@dataclass(frozen=True, slots=True)
class NamespaceFacts:
    name: str
    plaintext: str
    external: str
    plaintext_ports: str = ""


def read_pod(raw: Raw) -> PodFacts:
    """What one pod says of itself. Meshed is what carries our proxy by name and command: both are
    fixed once the pod exists, while its images and its metadata can be changed by who may edit it,
    and peers would then send plaintext.
    """
    metadata, spec, status = raw["metadata"], raw["spec"], raw.get("status") or {}
    annotations, labels = metadata.get("annotations") or {}, metadata.get("labels") or {}
    host_network = bool(spec.get("hostNetwork"))
    proxy = (
        None if host_network else _container(spec, contract.PROXY_CONTAINER, contract.PROXY_COMMAND)
    )
    capture = (
        None
        if proxy is None
        else _container(spec, contract.CAPTURE_CONTAINER, contract.CAPTURE_COMMAND)
        or _container(spec, contract.VALIDATE_CONTAINER, contract.VALIDATE_COMMAND)
    )
    proxy_env, capture_env = _env(proxy), _env(capture)
    return PodFacts(
        uid=metadata["uid"],
        namespace=intern(metadata["namespace"]),
        name=metadata["name"],
        service_account=intern(spec.get("serviceAccountName") or "default"),
        node=intern(spec.get("nodeName") or ""),
        zone=intern(labels.get(_ZONE_LABEL) or ""),
        ips=_addresses(status.get("podIPs"), status.get("podIP")),
        node_ips=tuple(map(intern, _addresses(status.get("hostIPs"), status.get("hostIP")))),
        labels=_labels(labels),
        created=metadata.get("creationTimestamp") or "",
        meshed=proxy is not None,
        host_network=host_network,
        finished=status.get("phase") in ("Succeeded", "Failed"),
        terminating=bool(metadata.get("deletionTimestamp")),
        mode=proxy_env.get("PODLINK_MODE", "") or ("redirect" if proxy is not None else ""),
        skip_inbound=_listed(capture_env.get("PODLINK_SKIP_INBOUND_PORTS")),
        skip_outbound=_listed(capture_env.get("PODLINK_SKIP_OUTBOUND_PORTS")),
        http_ports=_http_ports(proxy_env.get("PODLINK_HTTP_PORTS", "")),
        plaintext=annotations.get(contract.CONFIG_PREFIX + "plaintext", ""),
        plaintext_ports=annotations.get(contract.CONFIG_PREFIX + "plaintext-ports", ""),
        external=annotations.get(contract.CONFIG_PREFIX + "external", ""),
        declared_ports=_declared_ports(spec),
    )


_label_sets: dict[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]] = {}
_MAX_LABEL_SETS = 20_000


def _labels(raw: Raw) -> tuple[tuple[str, str], ...]:
    """In order of their names; one object for all pods of a ReplicaSet, which carry the same."""
    labels = tuple(sorted((intern(name), intern(value)) for name, value in raw.items()))
    if len(_label_sets) >= _MAX_LABEL_SETS:
        _label_sets.clear()
    return _label_sets.setdefault(labels, labels)


def _addresses(listed: Any, single: Any) -> tuple[str, ...]:
    texts = [one["ip"] for one in listed or ()] or ([single] if single else [])
    return tuple(canonical_ip(text) for text in texts)


def _container(spec: Raw, name: str, command: Sequence[str]) -> Raw | None:
    for container in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ())):
        if container["name"] == name and container.get("command") == list(command):
            found: Raw = container
            return found
    return None


def _declared_ports(spec: Raw) -> tuple[int, ...]:
    ours = (contract.PROXY_CONTAINER, contract.CAPTURE_CONTAINER, contract.VALIDATE_CONTAINER)
    containers = (*(spec.get("initContainers") or ()), *(spec.get("containers") or ()))
    return tuple(
        sorted(
            {
                int(port["containerPort"])
                for container in containers
                if container["name"] not in ours
                for port in container.get("ports") or ()
                if port.get("protocol", "TCP") == "TCP"
            }
        )
    )


def _env(container: Raw | None) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in (container or {}).get("env") or ()}


def _http_ports(text: str) -> tuple[str, ...]:
    return () if text == contract.NO_HTTP_PORTS else _listed(text)


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def read_service(raw: Raw) -> ServiceFacts:
    metadata, spec = raw["metadata"], raw["spec"]
    addresses = spec.get("clusterIPs") or [spec.get("clusterIP") or "None"]
    external = spec.get("type") == "ExternalName"
    affinity = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
    balance = (metadata.get("annotations") or {}).get(contract.CONFIG_PREFIX + "balance", "")
    return ServiceFacts(
        namespace=intern(metadata["namespace"]),
        name=metadata["name"],
        created=metadata.get("creationTimestamp") or "",
        cluster_ips=()
        if external
        else tuple(canonical_ip(text) for text in addresses if text not in ("None", "")),
        ports=tuple(
            PortFacts(port.get("name") or "", int(port["port"]), port.get("appProtocol") or "")
            for port in spec.get("ports") or ()
            if port.get("protocol", "TCP") == "TCP"
        ),
        affinity_timeout_s=int(affinity.get("timeoutSeconds") or _DEFAULT_AFFINITY_S)
        if spec.get("sessionAffinity") == "ClientIP"
        else 0,
        balance=balance if balance in _BALANCES else "",
        traffic_distribution=_DISTRIBUTIONS.get(spec.get("trafficDistribution") or "", ""),
        publish_not_ready=bool(spec.get("publishNotReadyAddresses")),
        local_only=spec.get("internalTrafficPolicy") == "Local",
    )


def read_slice(raw: Raw) -> SliceFacts:
    """Unset conditions mean what the EndpointSlice API says: ready is true, serving is as ready,
    terminating is false. A slice of names (FQDN) or without a Service has no endpoints.
    """
    metadata = raw["metadata"]
    service = (metadata.get("labels") or {}).get(_SLICE_SERVICE_LABEL) or ""
    usable = service and raw.get("addressType") in ("IPv4", "IPv6")
    return SliceFacts(
        namespace=intern(metadata["namespace"]),
        service=service,
        ports=tuple(
            (port.get("name") or "", int(port["port"]))
            for port in raw.get("ports") or ()
            if (port.get("protocol") or "TCP") == "TCP" and port.get("port")
        ),
        endpoints=tuple(_slice_endpoint(one) for one in raw.get("endpoints") or ())
        if usable
        else (),
    )


def _slice_endpoint(raw: Raw) -> SliceEndpoint:
    conditions = raw.get("conditions") or {}
    ready = conditions.get("ready") is not False
    serving = conditions.get("serving")
    target = raw.get("targetRef") or {}
    is_pod = target.get("kind") == "Pod"
    return SliceEndpoint(
        claimed_ip=_claimed(raw["addresses"][0]),  # only the first is used (EndpointSlice API)
        ready=ready,
        serving=ready if serving is None else bool(serving),
        terminating=bool(conditions.get("terminating")),
        zone=intern(raw.get("zone") or ""),
        hostname=raw.get("hostname") or "",
        target_uid=(target.get("uid") or "") if is_pod else "",
        target_name=(target.get("name") or "") if is_pod else "",
        node=intern(raw.get("nodeName") or ""),
        for_zones=_hints(raw),
    )


def _hints(raw: Raw) -> tuple[str, ...]:
    zones = (raw.get("hints") or {}).get("forZones") or ()
    return tuple(intern(zone["name"]) for zone in zones[:_MAX_HINTS])


def _claimed(text: str) -> str:
    try:
        return canonical_ip(text)
    except ValueError:
        return text[:64]


def read_namespace(raw: Raw) -> NamespaceFacts:
    metadata = raw["metadata"]
    annotations = metadata.get("annotations") or {}
    return NamespaceFacts(
        name=metadata["name"],
        plaintext=annotations.get(contract.CONFIG_PREFIX + "plaintext", ""),
        plaintext_ports=annotations.get(contract.CONFIG_PREFIX + "plaintext-ports", ""),
        external=annotations.get(contract.CONFIG_PREFIX + "external", ""),
    )


@dataclass(frozen=True, slots=True)
class PolicyObject:
    """One LinkPolicy as the API server has it. `raw` is unchecked: `registry.policies` reads it, so
    that what cannot be read is known and never counts as absent. Two are equal if their spec and
    status are.
    """

    namespace: str
    name: str
    uid: str
    generation: int
    raw_spec: str
    """The spec as JSON, and with it all that stands beside it but should not."""
    raw_status: str
    version: str = field(compare=False)
    raw: Raw = field(compare=False)


def read_policy(listed: Raw) -> PolicyObject:
    """Raises nothing: an object that counted as absent would enforce nothing. A list may leave out
    what each of its items is."""
    raw = {"apiVersion": API_VERSION, "kind": KIND, **listed}
    metadata = raw.get("metadata") or {}
    generation = metadata.get("generation")
    beside = {key: value for key, value in raw.items() if key not in ("metadata", "status")}
    return PolicyObject(
        namespace=str(metadata.get("namespace", "")),
        name=str(metadata.get("name", "")),
        uid=str(metadata.get("uid", "")),
        generation=generation if isinstance(generation, int) else 0,
        raw_spec=json.dumps(beside, sort_keys=True),
        raw_status=json.dumps(raw.get("status"), sort_keys=True),
        version=str(metadata.get("resourceVersion", "")),
        raw=raw,
    )
