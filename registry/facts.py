"""What the registry keeps of each Kubernetes object: small values that compare equal when nothing
that matters has changed. Pure.

The API server checks less than one would think (an EndpointSlice may say port 70000), and what a
tenant wrote must not reach a loop unchecked. So each kind is read here and nowhere else, through
`kit.checked`: a field that does not fit is left out alone and stands in `refused`. A reader raises
Unreadable for an object without a name; the informer then treats it as absent.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from sys import intern
from typing import Any

from kit import contract
from kit.addresses import canonical_ip
from kit.checked import LABEL, LABEL_VALUE, MAX_DEPTH, Fields, Refused, is_deep, must, shown
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
_PROTOCOLS = frozenset({"TCP", "UDP", "SCTP"})
_DEFAULT_AFFINITY_S = 10800
_MAX_AFFINITY_S = 86400  # what the Service API allows
_MAX_HINTS = 8  # what the EndpointSlice API allows
_MAX_SLICE_PORTS, _MAX_SLICE_ENDPOINTS = 100, 1000  # the same
_MAX_SERVICE_PORTS = 1000
_MAX_ADDRESSES = 8
_MAX_OUTSIDE = 64
"""External addresses that are read of one Service, and addresses of one node."""
_MAX_CONTAINERS, _MAX_CONTAINER_PORTS, _MAX_ENV = 1000, 2000, 2000
_MAX_UID, _MAX_TIME, _MAX_PORT_NAME = 128, 64, 63
_MAX_APP_PROTOCOL = 320  # a prefix, a slash and a name
_MAX_LABEL_KEY = 317


@dataclass(frozen=True, slots=True)
class PodFacts:
    """One pod. What its proxy does (`mode`, `skip_*`) is read from the pod's spec, which nobody can
    edit later; `plaintext`, `plaintext_ports` and `external` come of annotations and are empty when
    those are absent. An annotation that nobody understands counts as the strict choice.
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
    """TCP ports that the pod's own containers name."""
    http_ports: tuple[str, ...] = ()
    """Ports and ranges that its annotation says speak HTTP."""
    host_ports: tuple["HostPort", ...] = ()
    refused: tuple[Refused, ...] = ()
    """Fields that are left out because they did not fit; so in the kinds below."""


@dataclass(frozen=True, slots=True)
class HostPort:
    """`hostPort`: a TCP port of the pod's node that leads to the pod's `port`."""

    number: int
    port: int
    host_ip: str
    """The only address of the node that has it; "" for each of them."""


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
    balancer_ips: tuple[str, ...] = ()
    """`status.loadBalancer.ingress`, as the cluster's load balancer controller says."""
    external_ips: tuple[str, ...] = ()
    """`spec.externalIPs`: whatever whoever wrote the Service claims."""
    node_ports: tuple[tuple[int, int], ...] = ()
    """Port of every node, and the port of the Service that it leads to."""
    external_local: bool = False
    """`externalTrafficPolicy: Local`."""
    refused: tuple[Refused, ...] = ()


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
    refused: tuple[Refused, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One node: its own addresses, and the ranges that its pods' addresses may come from."""

    name: str
    ips: tuple[str, ...]
    pod_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    refused: tuple[Refused, ...] = ()


@dataclass(frozen=True, slots=True)
class NamespaceFacts:
    name: str
    plaintext: str
    external: str
    plaintext_ports: str = ""
    refused: tuple[Refused, ...] = ()


def read_pod(raw: Raw) -> PodFacts:
    """What one pod says of itself. Meshed is what carries our proxy by name and command: both are
    fixed once the pod exists, while its images and its metadata can be changed by who may edit it,
    and peers would then send plaintext. Raises Unreadable.
    """
    fields = Fields()
    metadata = fields.mapping(raw.get("metadata"), "metadata")
    spec, status = (
        fields.mapping(raw.get("spec"), "spec"),
        fields.mapping(raw.get("status"), "status"),
    )
    annotations = fields.mapping(metadata.get("annotations"), "metadata.annotations")
    labels = fields.mapping(metadata.get("labels"), "metadata.labels")
    containers = _containers(fields, spec)
    host_network = bool(spec.get("hostNetwork"))
    proxy = (
        None
        if host_network
        else _container(containers, contract.PROXY_CONTAINER, contract.PROXY_COMMAND)
    )
    capture = (
        None
        if proxy is None
        else _container(containers, contract.CAPTURE_CONTAINER, contract.CAPTURE_COMMAND)
        or _container(containers, contract.VALIDATE_CONTAINER, contract.VALIDATE_COMMAND)
    )
    proxy_env, capture_env = _env(fields, proxy), _env(fields, capture)
    account = spec.get("serviceAccountName") or "default"
    plaintext, plaintext_ports, external = _annotated(fields, annotations)
    return PodFacts(
        uid=must(
            fields.text(metadata.get("uid"), "metadata.uid", _MAX_UID),
            "metadata.uid",
            metadata.get("uid"),
        ),
        namespace=_named(fields, metadata, "namespace"),
        name=_named(fields, metadata, "name"),
        service_account=intern(must(fields.name(account, _ACCOUNT), _ACCOUNT, account)),
        node=intern(fields.name(spec.get("nodeName"), "spec.nodeName")),
        zone=intern(fields.name(labels.get(_ZONE_LABEL), "label of the zone", LABEL_VALUE)),
        ips=_addresses(fields, status, "podIP"),
        node_ips=tuple(map(intern, _addresses(fields, status, "hostIP"))),
        labels=_labels(fields, labels),
        created=fields.text(metadata.get("creationTimestamp"), _CREATED, _MAX_TIME),
        meshed=proxy is not None,
        host_network=host_network,
        finished=status.get("phase") in ("Succeeded", "Failed"),
        terminating=bool(metadata.get("deletionTimestamp")),
        mode=_mode(fields, proxy, proxy_env),
        skip_inbound=_ports(fields, capture_env, "PODLINK_SKIP_INBOUND_PORTS"),
        skip_outbound=_ports(fields, capture_env, "PODLINK_SKIP_OUTBOUND_PORTS"),
        http_ports=_ports(fields, proxy_env, "PODLINK_HTTP_PORTS"),
        plaintext=plaintext,
        plaintext_ports=plaintext_ports,
        external=external,
        host_ports=() if host_network else _host_ports(fields, containers),
        refused=fields.refused,
    )


_ACCOUNT, _CREATED = "spec.serviceAccountName", "metadata.creationTimestamp"


def _named(fields: Fields, metadata: Raw, key: str) -> str:
    """The object's own name or namespace; raises Unreadable."""
    raw, at = metadata.get(key), f"metadata.{key}"
    name = fields.name(raw, at, LABEL) if key == "namespace" else fields.name(raw, at)
    return intern(must(name, at, raw))


def _annotated(fields: Fields, annotations: Raw) -> tuple[str, str, str]:
    """`plaintext`, `plaintext-ports` and `external` of a pod or a namespace.

    What is there and not understood is strict: `deny`, and no port.
    """

    def word(key: str) -> str:
        raw = annotations.get(contract.CONFIG_PREFIX + key)
        chosen = fields.choice(raw, f"annotation {key}", ("allow", "deny"))
        return chosen or ("deny" if raw else "")

    raw_ports = annotations.get(contract.CONFIG_PREFIX + "plaintext-ports")
    ports = str(fields.ports(raw_ports, "annotation plaintext-ports"))
    plaintext = word("plaintext")
    if raw_ports and not ports:  # said, if badly: the namespace's word does not count in its place
        plaintext = plaintext or "deny"
    return plaintext, ports, word("external")


_label_sets: dict[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]] = {}
_MAX_LABEL_SETS = 20_000


def _labels(fields: Fields, raw: Raw) -> tuple[tuple[str, str], ...]:
    """In order of their names; one object for all pods of a ReplicaSet, which carry the same."""
    found = []
    for key, value in raw.items():
        name = fields.text(key, "metadata.labels", _MAX_LABEL_KEY)
        if name and isinstance(value, str) and LABEL_VALUE.fullmatch(value) is not None:
            found.append((intern(name), intern(value)))
        else:
            fields.refuse("metadata.labels", "name_malformed", value)
    labels = tuple(sorted(found))
    if len(_label_sets) >= _MAX_LABEL_SETS:
        _label_sets.clear()
    return _label_sets.setdefault(labels, labels)


def _addresses(fields: Fields, status: Raw, key: str) -> tuple[str, ...]:
    """Of `podIPs` or `hostIPs`, else of the single form of either."""
    at = f"status.{key}"
    raws = [one.get("ip") for one in fields.mappings(status.get(f"{key}s"), at, _MAX_ADDRESSES)]
    found = (fields.address(raw, at) for raw in raws or [status.get(key)])
    return tuple(ip for ip in found if ip)


def _containers(fields: Fields, spec: Raw) -> list[Raw]:
    return [
        *fields.mappings(spec.get("initContainers"), "spec.initContainers", _MAX_CONTAINERS),
        *fields.mappings(spec.get("containers"), "spec.containers", _MAX_CONTAINERS),
    ]


def _container(containers: Sequence[Raw], name: str, command: Sequence[str]) -> Raw | None:
    for container in containers:
        if container.get("name") == name and container.get("command") == list(command):
            return container
    return None


def _host_ports(fields: Fields, containers: Sequence[Raw]) -> tuple[HostPort, ...]:
    found = [
        _host_port(fields, port)
        for container in containers
        for port in fields.mappings(container.get("ports"), "ports", _MAX_CONTAINER_PORTS)
        if port.get("hostPort") and _is_tcp(fields, port)
    ]
    return tuple(one for one in found if one is not None)


def _host_port(fields: Fields, raw: Raw) -> HostPort | None:
    number = fields.port(raw.get("hostPort"), "ports.hostPort")
    port = fields.port(raw.get("containerPort"), "ports.containerPort")
    host_ip = fields.address(raw.get("hostIP"), "ports.hostIP")
    if not number or not port or (raw.get("hostIP") and not host_ip):
        return None
    return HostPort(number, port, "" if host_ip and ip_address(host_ip).is_unspecified else host_ip)


def _is_tcp(fields: Fields, port: Raw) -> bool:
    raw = port.get("protocol") or "TCP"
    return fields.choice(raw, "ports.protocol", _PROTOCOLS) == "TCP"


def _env(fields: Fields, container: Raw | None) -> dict[str, object]:
    """Of one of our containers: unchecked values, by name."""
    listed = fields.mappings((container or {}).get("env"), "env", _MAX_ENV)
    return {str(one.get("name")): one.get("value") for one in listed}


def _mode(fields: Fields, proxy: Raw | None, env: Raw) -> str:
    if proxy is None:
        return ""
    return fields.choice(env.get("PODLINK_MODE"), "PODLINK_MODE", _MODES) or "redirect"


_MODES = frozenset({"redirect", "localhost"})


def _ports(fields: Fields, env: Raw, name: str) -> tuple[str, ...]:
    if env.get(name) == contract.NO_HTTP_PORTS:
        return ()
    return tuple(filter(None, str(fields.ports(env.get(name), name)).split(",")))


def read_service(raw: Raw) -> ServiceFacts:
    """Raises Unreadable."""
    fields = Fields()
    metadata = fields.mapping(raw.get("metadata"), "metadata")
    spec = fields.mapping(raw.get("spec"), "spec")
    annotations = fields.mapping(metadata.get("annotations"), "metadata.annotations")
    balance = annotations.get(contract.CONFIG_PREFIX + "balance")
    ports = fields.mappings(spec.get("ports"), "spec.ports", _MAX_SERVICE_PORTS)
    read = [_service_port(fields, port) for port in ports if _is_tcp(fields, port)]
    cluster_ips = () if spec.get("type") == "ExternalName" else _cluster_ips(fields, spec)
    # What has no ClusterIP is not reached from outside either (kube-proxy, ShouldSkipService).
    from_outside = bool(cluster_ips)
    return ServiceFacts(
        namespace=_named(fields, metadata, "namespace"),
        name=_service_name(fields, metadata),
        created=fields.text(metadata.get("creationTimestamp"), _CREATED, _MAX_TIME),
        cluster_ips=cluster_ips,
        ports=tuple(port for port in read if port is not None),
        affinity_timeout_s=_affinity_s(fields, spec),
        balance=fields.choice(balance, "annotation balance", _BALANCES),
        traffic_distribution=_distribution(spec.get("trafficDistribution")),
        publish_not_ready=bool(spec.get("publishNotReadyAddresses")),
        local_only=spec.get("internalTrafficPolicy") == "Local",
        balancer_ips=_balancer_ips(fields, raw) if from_outside else (),
        external_ips=_outside_ips(fields, spec.get("externalIPs"), "spec.externalIPs")
        if from_outside
        else (),
        node_ports=_node_ports(fields, ports) if from_outside else (),
        external_local=spec.get("externalTrafficPolicy") == "Local",
        refused=fields.refused,
    )


def _service_name(fields: Fields, metadata: Raw) -> str:
    raw = metadata.get("name")
    return must(fields.name(raw, "metadata.name", LABEL), "metadata.name", raw)


def _service_port(fields: Fields, raw: Raw) -> PortFacts | None:
    port = fields.port(raw.get("port"), "spec.ports.port")
    if not port:
        return None
    name = fields.text(raw.get("name"), "spec.ports.name", _MAX_PORT_NAME)
    protocol = fields.text(raw.get("appProtocol"), "spec.ports.appProtocol", _MAX_APP_PROTOCOL)
    return PortFacts(intern(name), port, intern(protocol))


def _cluster_ips(fields: Fields, spec: Raw) -> tuple[str, ...]:
    listed = fields.listed(spec.get("clusterIPs"), "spec.clusterIPs", _MAX_ADDRESSES)
    raws = [raw for raw in listed or [spec.get("clusterIP")] if raw != "None"]
    found = [fields.address(raw, "spec.clusterIPs") for raw in raws]
    return tuple(ip for ip in found if ip)


def _balancer_ips(fields: Fields, raw: Raw) -> tuple[str, ...]:
    """Of entries with a name instead of an address nobody knows the addresses."""
    at = "status.loadBalancer"
    status = fields.mapping(fields.mapping(raw.get("status"), "status").get("loadBalancer"), at)
    ingress = fields.mappings(status.get("ingress"), f"{at}.ingress", _MAX_OUTSIDE)
    return _outside_ips(fields, [one.get("ip") for one in ingress], f"{at}.ingress")


def _outside_ips(fields: Fields, raw: object, at: str) -> tuple[str, ...]:
    """Addresses that may be reached from elsewhere, each once."""
    found = dict[str, None]()
    for one in fields.listed(raw, at, _MAX_OUTSIDE):
        ip = fields.address(one, at)
        if ip and is_local(ip):
            fields.refuse(at, "address_local", one)
        elif ip:
            found[ip] = None
    return tuple(found)


def is_local(ip: str) -> bool:
    """Whether a canonical address means something on one machine or one link only, or is no one's."""
    address = ip_address(ip)
    return (
        address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
    )


def _node_ports(fields: Fields, ports: Sequence[Raw]) -> tuple[tuple[int, int], ...]:
    found = []
    for raw in ports:
        if raw.get("nodePort") and _is_tcp(fields, raw):
            number = fields.port(raw.get("nodePort"), "spec.ports.nodePort")
            port = fields.port(raw.get("port"), "spec.ports.port")
            found += [(number, port)] if number and port else []
    return tuple(found)


def read_node(raw: Raw) -> NodeFacts:
    """A node's host names are no addresses. Raises Unreadable."""
    fields = Fields()
    metadata = fields.mapping(raw.get("metadata"), "metadata")
    spec = fields.mapping(raw.get("spec"), "spec")
    status = fields.mapping(raw.get("status"), "status")
    addresses = fields.mappings(status.get("addresses"), "status.addresses", _MAX_OUTSIDE)
    ips = [one.get("address") for one in addresses if one.get("type") in _NODE_ADDRESSES]
    cidrs = fields.listed(spec.get("podCIDRs"), "spec.podCIDRs", _MAX_ADDRESSES)
    networks = (_network(fields, one) for one in cidrs or [spec.get("podCIDR")])
    return NodeFacts(
        name=_named(fields, metadata, "name"),
        ips=_outside_ips(fields, ips, "status.addresses"),
        pod_networks=tuple(one for one in networks if one is not None),
        refused=fields.refused,
    )


_NODE_ADDRESSES = frozenset({"InternalIP", "ExternalIP"})


def _network(fields: Fields, raw: object) -> IPv4Network | IPv6Network | None:
    if not raw:
        return None
    try:
        if isinstance(raw, str):
            return ip_network(raw)
    except ValueError:
        pass
    fields.refuse("spec.podCIDRs", "address_malformed", raw)
    return None


def _affinity_s(fields: Fields, spec: Raw) -> int:
    if spec.get("sessionAffinity") != "ClientIP":
        return 0
    config = fields.mapping(spec.get("sessionAffinityConfig"), "spec.sessionAffinityConfig")
    at = "spec.sessionAffinityConfig.clientIP"
    raw = fields.mapping(config.get("clientIP"), at).get("timeoutSeconds")
    return fields.number(raw, at, 1, _MAX_AFFINITY_S, _DEFAULT_AFFINITY_S)


def _distribution(raw: object) -> str:
    """A word that a newer Kubernetes knows is no fault: it is a wish."""
    return _DISTRIBUTIONS.get(raw, "") if isinstance(raw, str) else ""


def read_slice(raw: Raw) -> SliceFacts:
    """Unset conditions mean what the EndpointSlice API says: ready is true, serving is as ready,
    terminating is false. A slice of names (FQDN) or without a Service has no endpoints. Raises
    Unreadable.
    """
    fields = Fields()
    metadata = fields.mapping(raw.get("metadata"), "metadata")
    labels = fields.mapping(metadata.get("labels"), "metadata.labels")
    service = fields.name(labels.get(_SLICE_SERVICE_LABEL), "label of the Service", LABEL)
    usable = bool(service) and raw.get("addressType") in ("IPv4", "IPv6")
    listed = fields.mappings(raw.get("endpoints"), "endpoints", _MAX_SLICE_ENDPOINTS)
    endpoints = [_slice_endpoint(fields, one) for one in listed] if usable else []
    ports = fields.mappings(raw.get("ports"), "ports", _MAX_SLICE_PORTS)
    read = [_slice_port(fields, port) for port in ports if _is_tcp(fields, port)]
    return SliceFacts(
        namespace=_named(fields, metadata, "namespace"),
        service=service,
        ports=tuple(port for port in read if port[1]),
        endpoints=tuple(one for one in endpoints if one is not None),
        refused=fields.refused,
    )


def _slice_port(fields: Fields, raw: Raw) -> tuple[str, int]:
    name = fields.text(raw.get("name"), "ports.name", _MAX_PORT_NAME)
    return intern(name), fields.port(raw.get("port"), "ports.port")


def _slice_endpoint(fields: Fields, raw: Raw) -> SliceEndpoint | None:
    """None for one that cannot be told from another: an address whose pod is named unreadably must
    not pass for an address without a pod."""
    addresses = fields.listed(raw.get("addresses"), "endpoints.addresses", _MAX_SLICE_ENDPOINTS)
    if not addresses:
        fields.refuse("endpoints.addresses", "missing")
        return None
    conditions = fields.mapping(raw.get("conditions"), "endpoints.conditions")
    target = fields.mapping(raw.get("targetRef"), "endpoints.targetRef")
    is_pod = target.get("kind") == "Pod"
    uid, name = (target.get("uid"), target.get("name")) if is_pod else ("", "")
    target_uid = fields.text(uid, "endpoints.targetRef.uid", _MAX_UID)
    target_name = fields.name(name, "endpoints.targetRef.name")
    if (uid and not target_uid) or (name and not target_name):
        return None
    ready = conditions.get("ready") is not False
    serving = conditions.get("serving")
    return SliceEndpoint(
        claimed_ip=_claimed(addresses[0]),  # only the first is used (EndpointSlice API)
        ready=ready,
        serving=ready if serving is None else bool(serving),
        terminating=bool(conditions.get("terminating")),
        zone=intern(fields.name(raw.get("zone"), "endpoints.zone", LABEL_VALUE)),
        hostname=fields.name(raw.get("hostname"), "endpoints.hostname", LABEL),
        target_uid=target_uid,
        target_name=target_name,
        node=intern(fields.name(raw.get("nodeName"), "endpoints.nodeName")),
        for_zones=_hints(fields, raw),
    )


def _hints(fields: Fields, raw: Raw) -> tuple[str, ...]:
    hints = fields.mapping(raw.get("hints"), "endpoints.hints").get("forZones")
    zones = fields.mappings(hints, "endpoints.hints", _MAX_HINTS)
    found = (fields.name(zone.get("name"), "endpoints.hints", LABEL_VALUE) for zone in zones)
    return tuple(intern(zone) for zone in found if zone)


def _claimed(raw: object) -> str:
    """Judged, and refused aloud, when the slice is joined with its Service."""
    text = raw if isinstance(raw, str) else str(type(raw).__name__)
    try:
        return canonical_ip(text)
    except ValueError:
        return ascii(text[:64])[1:-1]


def read_namespace(raw: Raw) -> NamespaceFacts:
    """Raises Unreadable."""
    fields = Fields()
    metadata = fields.mapping(raw.get("metadata"), "metadata")
    annotations = fields.mapping(metadata.get("annotations"), "metadata.annotations")
    plaintext, plaintext_ports, external = _annotated(fields, annotations)
    name = metadata.get("name")
    return NamespaceFacts(
        name=must(fields.name(name, "metadata.name", LABEL), "metadata.name", name),
        plaintext=plaintext,
        plaintext_ports=plaintext_ports,
        external=external,
        refused=fields.refused,
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
    refused: tuple[Refused, ...] = ()


def read_policy(listed: Raw) -> PolicyObject:
    """Raises Unreadable only for an object without a name, which the API server never has: one that
    counted as absent would enforce nothing. A list may leave out what each of its items is."""
    fields = Fields()
    raw = {"apiVersion": API_VERSION, "kind": KIND, **listed}
    metadata = fields.mapping(raw.get("metadata"), "metadata")
    beside = {key: value for key, value in raw.items() if key not in ("metadata", "status")}
    status = raw.get("status")
    if is_deep(beside):
        fields.refuse("spec", "nested_too_deep")
        # Whatever it was, it is no policy: it cannot be read, and nobody walks into it again.
        kept: dict[str, Any] = {"spec": f"values nested deeper than {MAX_DEPTH}"}
        for key in ("apiVersion", "kind"):
            said = beside.get(key)
            kept[key] = said if isinstance(said, str) else shown(said)
        beside = kept
    if is_deep(status):
        fields.refuse("status", "nested_too_deep")
        status = None
    return PolicyObject(
        namespace=_named(fields, metadata, "namespace"),
        name=_named(fields, metadata, "name"),
        uid=fields.text(metadata.get("uid"), "metadata.uid", _MAX_UID),
        generation=fields.number(metadata.get("generation"), "metadata.generation", 0, 2**62, 0),
        raw_spec=json.dumps(beside, sort_keys=True),
        raw_status=json.dumps(status, sort_keys=True),
        version=fields.text(metadata.get("resourceVersion"), "metadata.resourceVersion", 64),
        raw={**beside, "metadata": metadata, "status": status},
        refused=fields.refused,
    )
