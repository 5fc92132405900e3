"""Which pod is speaking: the OTLP Resource of every span, encoded once at start. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kit.contract import PROXY_CONTAINER, VERSION
from sidecar.telemetry import attributes as a
from sidecar.telemetry import wire


@dataclass(frozen=True, kw_only=True)
class PodResource:
    """The pod, from the downward API. An empty value is left out of the resource.

    `service_name` is OTEL_SERVICE_NAME where set; else the service account, which is what podlink
    knows a workload by; else, for the account "default" that says nothing, the pod's name.
    """

    pod: str = ""
    pod_uid: str = ""
    namespace: str = ""
    node: str = ""
    service_account: str = ""
    service_name: str = ""
    more: Mapping[str, str] = field(default_factory=dict)
    """OTEL_RESOURCE_ATTRIBUTES. Never overrides what names the pod."""

    def attributes(self) -> dict[str, str]:
        account = "" if self.service_account == "default" else self.service_account
        name = self.service_name or self.more.get(a.SERVICE_NAME, "") or account or self.pod
        instance = f"{self.namespace}.{self.pod}.{PROXY_CONTAINER}" if self.pod else ""
        own = {
            a.SERVICE_NAME: name or "unknown_service:podlink",
            a.SERVICE_NAMESPACE: self.namespace,
            a.SERVICE_INSTANCE: instance,
            a.K8S_POD: self.pod,
            a.K8S_POD_UID: self.pod_uid,
            a.K8S_NAMESPACE: self.namespace,
            a.K8S_NODE: self.node,
            a.VERSION: VERSION,
        }
        return {**self.more, **{key: value for key, value in own.items() if value}}

    def encode(self) -> bytes:
        """The `resource` field of a ResourceSpans message."""
        attributes = b"".join(
            wire.length_delimited(1, wire.key_value(name, value))
            for name, value in self.attributes().items()
        )
        return wire.length_delimited(1, attributes)
