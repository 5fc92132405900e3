"""The model's answers as messages of `proto/registry.proto`. Pure but for its memory of answers.

An answer that many sidecars ask for is made and encoded once, and kept until one of its topics
changes: a message to a sidecar is a join of such pieces (`message`).
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from proto import registry_pb2 as pb
from registry.endpoints import EndpointView
from registry.facts import PodFacts
from registry.forwards import ToPod, ToService
from registry.keys import Key
from registry.model import Found, Model, NodeView, OutsideView, ServiceView, Unassigned
from registry.settings import pod_settings

MAX_ENTRY_BYTES = 1 << 20
"""Of one answer. With `hub.MAX_RESPONSE_BYTES` and MAX_SETTINGS_BYTES it keeps every message under the
4 MiB that gRPC takes: a larger one would end the stream of whoever asks, again and again."""
MAX_SETTINGS_BYTES = 2 << 20
TOO_LARGE = "policies-too-large"
"""Stands for the policies of a pod that no message would hold; it lets nobody in."""
_SENT_LABELS = frozenset({"app.kubernetes.io/name", "app.kubernetes.io/version", "app", "version"})


_VERSION, _ENTRY, _SETTINGS, _SAME = b"\x08", b"\x12", b"\x1a", b"\x22"
"""Tags of DiscoverResponse's fields 1 to 4 (Protocol Buffers, "Encoding")."""
_DIGEST = b"\x79"
"""Tag of Entry.digest: field 15, 64 bits."""


class Encoded(NamedTuple):
    """One Entry as it goes into a DiscoverResponse, its tag and length before it."""

    framed: bytes
    digest: int
    """Equal for equal answers, in every replica."""


def encode(entry: pb.Entry) -> Encoded:
    plain = entry.SerializeToString(deterministic=True)
    digest = hashlib.blake2b(plain, digest_size=8).digest()
    return Encoded(framed(_ENTRY, plain + _DIGEST + digest), int.from_bytes(digest, "little"))


def framed(tag: bytes, payload: bytes) -> bytes:
    return tag + _varint(len(payload)) + payload


def message(
    version: int, entries: Iterable[Encoded], settings: bytes | None, same: Sequence[str] = ()
) -> bytes:
    """An encoded DiscoverResponse."""
    pieces = [_VERSION + _varint(version), *(entry.framed for entry in entries)]
    if settings is not None:
        pieces.append(framed(_SETTINGS, settings))
    pieces.extend(framed(_SAME, key.encode()) for key in same)
    return b"".join(pieces)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


class Answers:
    """Asks `model`; `mesh_default` is what PodSettings say for pods that no policy selects."""

    def __init__(self, model: Model, mesh_default: str) -> None:
        self._model, self._mesh_default = model, mesh_default
        self._entries: dict[str, dict[str, Encoded]] = {}
        self.cut = 0
        """Answers that were made smaller to fit."""

    def entry(self, key: Key) -> Encoded:
        """The answer to `key`; the same object until it may have changed."""
        of_topic = self._entries.get(key.topic, {})
        entry = of_topic.get(key.text)
        if entry is None:
            found = self._find(key)
            entry = self._encode(key, found)
            # What is external is not kept, nor an address that is not spelled as sidecars spell it,
            # nor a port: there may be any number of each, and whoever asks chooses them.
            several = found is None or isinstance(found, Unassigned)
            if not several and (not key.is_ip or key.text == key.topic):
                self._entries.setdefault(key.topic, of_topic)[key.text] = entry
        return entry

    def settings(self, uid: str) -> pb.PodSettings | None:
        """What concerns the pod itself, or None if there is no such pod any more."""
        pod = self._model.pod(uid)
        if pod is None:
            return None
        settings = pod_settings(
            pod,
            self._model.namespace(pod.namespace),
            self._mesh_default,
            self._model.policies.selecting(pod),
        )
        if settings.ByteSize() > MAX_SETTINGS_BYTES:  # a part of them might lack what forbids
            del settings.policies[:]
            settings.policies.add(namespace=pod.namespace, name=TOO_LARGE)
            self.cut += 1
        settings.http_ports.extend(self._model.http_ports(pod))
        settings.zone = pod.zone or self._model.zone_of_node(pod.node)
        return settings

    def forget(self, topics: Iterable[str]) -> None:
        """Make the answers about `topics` anew when they are next asked for."""
        for topic in topics:
            self._entries.pop(topic, None)

    def _encode(self, key: Key, found: Found) -> Encoded:
        """A Service too large for a message has the endpoints that fit, the ready ones first."""
        entry = encode(_entry(key, found))
        while len(entry.framed) > MAX_ENTRY_BYTES and isinstance(found, ServiceView):
            fitting = len(found.endpoints) * MAX_ENTRY_BYTES // (2 * len(entry.framed))
            found = ServiceView(found.service, found.endpoints[:fitting])
            entry = encode(_entry(key, found))
            self.cut += 1
            if not fitting:
                break
        return entry

    def _find(self, key: Key) -> Found:
        if key.port:
            return self._model.at_port(key.topic, key.port)
        if key.is_ip:
            return self._model.at_ip(key.topic)
        if key.pod:
            return self._model.service_pod(key.pod, key.topic)
        return self._model.service(key.topic)


def _entry(asked: Key, found: Found) -> pb.Entry:
    key, forwards = asked.text, not asked.port  # of a port it is said where it leads
    match found:
        case PodFacts():
            return pb.Entry(key=key, workload=_workload(found, found.zone))
        case ServiceView():
            return pb.Entry(key=key, service=_service(found))
        case NodeView():
            node = pb.Workload(ips=[found.ip], host_network=True)
            return pb.Entry(key=key, workload=node, forwards=forwards)
        case OutsideView():
            return pb.Entry(key=key, external=True, forwards=forwards)
        case Unassigned():
            return pb.Entry(key=key, unassigned=True)
        case ToService():
            forward = pb.Forward(service=found.service, port=found.port, only_node=found.only_node)
            return pb.Entry(key=key, forward=forward)
        case ToPod():
            to = _workload(found.pod, found.pod.zone)
            return pb.Entry(key=key, forward=pb.Forward(workload=to, port=found.port))
        case None:
            return pb.Entry(key=key, external=True)


def _workload(pod: PodFacts, zone: str) -> pb.Workload:
    return pb.Workload(
        uid=pod.uid,
        namespace=pod.namespace,
        name=pod.name,
        service_account=pod.service_account,
        node=pod.node,
        zone=zone,
        ips=pod.ips,
        meshed=pod.meshed,
        host_network=pod.host_network,
        mode=pod.mode,
        skip_inbound_ports=pod.skip_inbound,
        skip_outbound_ports=pod.skip_outbound,
        terminating=pod.terminating,
        http_ports=pod.http_ports,
        labels={name: value for name, value in pod.labels if name in _SENT_LABELS},
    )


def _service(view: ServiceView) -> pb.Service:
    service = view.service
    return pb.Service(
        namespace=service.namespace,
        name=service.name,
        cluster_ips=service.cluster_ips,
        ports=[
            pb.ServicePort(name=port.name, port=port.port, app_protocol=port.app_protocol)
            for port in service.ports
        ],
        endpoints=[_endpoint(endpoint) for endpoint in view.endpoints],
        affinity_timeout_s=service.affinity_timeout_s,
        balance=service.balance,
        traffic_distribution=service.traffic_distribution,
        publish_not_ready=service.publish_not_ready,
        local_only=service.local_only,
    )


def _endpoint(view: EndpointView) -> pb.Endpoint:
    return pb.Endpoint(
        ip=view.ip,
        ports=dict(view.ports),
        ready=view.ready,
        serving=view.serving,
        terminating=view.terminating,
        workload=None if view.pod is None else _workload(view.pod, view.zone),
        for_zones=view.for_zones,
    )
