"""Every attribute a span of ours can carry, by name and type. docs/spans.md says when each is
present and what it means; a test compares that table with this file.

OpenTelemetry's semantic conventions give the name where they have one; the rest starts with
`podlink.`.
"""

from typing import Final, Literal

from certs.evidence import chain

LINK: Final = "link"
LINK_OPENED: Final = "link opened"
SPANS_DROPPED: Final = "spans dropped"
CHAIN_CHECKPOINT: Final = chain.CHECKPOINT
SCOPE: Final = "podlink"

HTTP_REQUEST: Final = "HTTP"
"""Name of a request's span whose method is none of HTTP's; else the method is."""

CLIENT_ADDRESS: Final = "client.address"
CLIENT_PORT: Final = "client.port"
ERROR_MESSAGE: Final = "error.message"
ERROR_TYPE: Final = "error.type"
HTTP_METHOD: Final = "http.request.method"
HTTP_METHOD_ORIGINAL: Final = "http.request.method_original"
HTTP_STATUS: Final = "http.response.status_code"
NETWORK_PEER_ADDRESS: Final = "network.peer.address"
NETWORK_PEER_PORT: Final = "network.peer.port"
NETWORK_PROTOCOL_NAME: Final = "network.protocol.name"
NETWORK_PROTOCOL_VERSION: Final = "network.protocol.version"
NETWORK_TRANSPORT: Final = "network.transport"
NETWORK_TYPE: Final = "network.type"
RPC_GRPC_STATUS: Final = "rpc.grpc.status_code"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
TLS_CIPHER: Final = "tls.cipher"
TLS_CLIENT_NOT_AFTER: Final = "tls.client.not_after"
TLS_CLIENT_SHA256: Final = "tls.client.hash.sha256"
TLS_ESTABLISHED: Final = "tls.established"
TLS_NEXT_PROTOCOL: Final = "tls.next_protocol"
TLS_PROTOCOL_NAME: Final = "tls.protocol.name"
TLS_PROTOCOL_VERSION: Final = "tls.protocol.version"
TLS_SERVER_NOT_AFTER: Final = "tls.server.not_after"
TLS_SERVER_SHA256: Final = "tls.server.hash.sha256"
URL_PATH: Final = "url.path"

ATTEMPTS: Final = "podlink.attempts"
BYTES_RECEIVED: Final = "podlink.bytes.received"
BYTES_SENT: Final = "podlink.bytes.sent"
CERTIFICATE_SERIAL: Final = "podlink.certificate.serial"
CHAIN_CERTIFICATES: Final = chain.CERTIFICATES
CHAIN_ID: Final = chain.CHAIN_ID
CHAIN_PREVIOUS: Final = chain.PREVIOUS
CHAIN_SEQUENCE: Final = chain.SEQUENCE
CHAIN_SIGNATURE: Final = chain.SIGNATURE
CHAIN_STATEMENT: Final = chain.STATEMENT
CLOSE: Final = "podlink.close"
DESTINATION_ADDRESS: Final = "podlink.destination.address"
DESTINATION_IDENTITY: Final = "podlink.destination.identity"
DESTINATION_POD: Final = "podlink.destination.pod"
DESTINATION_PORT: Final = "podlink.destination.port"
DIRECT: Final = "podlink.direct"
DIRECTION: Final = "podlink.direction"
ENDPOINT_CHOICE: Final = "podlink.endpoint.choice"
NEAREST_RULE: Final = "podlink.nearest_rule"
POLICY: Final = "podlink.policy"
POOLED: Final = "podlink.pooled"
REASON: Final = "podlink.reason"
RENEWALS: Final = "podlink.renewals"
RENEWED: Final = "podlink.renewed"
RULE: Final = "podlink.rule"
SECURITY: Final = "podlink.security"
SERVICE: Final = "podlink.service"
SOURCE_IDENTITY: Final = "podlink.source.identity"
SOURCE_POD: Final = "podlink.source.pod"
VERDICT: Final = "podlink.verdict"

CLAIMED: Final = "podlink.claimed"

DROPPED_ALLOWED: Final = "podlink.dropped.allowed"
DROPPED_DENIED: Final = "podlink.dropped.denied"
DROPPED_EXPORT: Final = "podlink.dropped.export"
DROPPED_NOTABLE: Final = "podlink.dropped.notable"
DROPPED_REQUESTS: Final = "podlink.dropped.requests"

K8S_NAMESPACE: Final = "k8s.namespace.name"
K8S_NODE: Final = "k8s.node.name"
K8S_POD: Final = "k8s.pod.name"
K8S_POD_UID: Final = "k8s.pod.uid"
SERVICE_INSTANCE: Final = "service.instance.id"
SERVICE_NAME: Final = "service.name"
SERVICE_NAMESPACE: Final = "service.namespace"
VERSION: Final = "podlink.version"

Type = Literal["string", "int", "boolean"]

OF_LINKS: Final[dict[str, Type]] = {
    CLIENT_ADDRESS: "string",
    CLIENT_PORT: "int",
    ERROR_MESSAGE: "string",
    ERROR_TYPE: "string",
    NETWORK_PEER_ADDRESS: "string",
    NETWORK_PEER_PORT: "int",
    NETWORK_TRANSPORT: "string",
    NETWORK_TYPE: "string",
    SERVER_ADDRESS: "string",
    SERVER_PORT: "int",
    TLS_CIPHER: "string",
    TLS_CLIENT_NOT_AFTER: "string",
    TLS_CLIENT_SHA256: "string",
    TLS_ESTABLISHED: "boolean",
    TLS_NEXT_PROTOCOL: "string",
    TLS_PROTOCOL_NAME: "string",
    TLS_PROTOCOL_VERSION: "string",
    TLS_SERVER_NOT_AFTER: "string",
    TLS_SERVER_SHA256: "string",
    ATTEMPTS: "int",
    BYTES_RECEIVED: "int",
    BYTES_SENT: "int",
    CERTIFICATE_SERIAL: "string",
    CHAIN_ID: "string",
    CHAIN_PREVIOUS: "string",
    CHAIN_SEQUENCE: "int",
    CLOSE: "string",
    DESTINATION_ADDRESS: "string",
    DESTINATION_IDENTITY: "string",
    DESTINATION_POD: "string",
    DESTINATION_PORT: "int",
    DIRECT: "boolean",
    DIRECTION: "string",
    ENDPOINT_CHOICE: "string",
    NEAREST_RULE: "string",
    POLICY: "string",
    POOLED: "boolean",
    REASON: "string",
    RENEWALS: "string",
    RENEWED: "int",
    RULE: "string",
    SECURITY: "string",
    SERVICE: "string",
    SOURCE_IDENTITY: "string",
    SOURCE_POD: "string",
    VERDICT: "string",
}
"""Attributes of the spans `link` and `link opened`."""

OF_REQUESTS: Final[dict[str, Type]] = {
    ERROR_TYPE: "string",
    HTTP_METHOD: "string",
    HTTP_METHOD_ORIGINAL: "string",
    HTTP_STATUS: "int",
    NETWORK_PROTOCOL_NAME: "string",
    NETWORK_PROTOCOL_VERSION: "string",
    RPC_GRPC_STATUS: "string",
    SERVER_PORT: "int",
    URL_PATH: "string",
    DESTINATION_IDENTITY: "string",
    DIRECTION: "string",
    SERVICE: "string",
    SOURCE_IDENTITY: "string",
}
"""Attributes of a request's span."""

OF_SPAN_LINKS: Final[dict[str, Type]] = {CLAIMED: "boolean"}
"""Attributes of the span link to a claimed traceparent."""

OF_DROPS: Final[dict[str, Type]] = {
    DROPPED_ALLOWED: "int",
    DROPPED_DENIED: "int",
    DROPPED_EXPORT: "int",
    DROPPED_NOTABLE: "int",
    DROPPED_REQUESTS: "int",
}
"""Attributes of the span `spans dropped`."""

OF_CHECKPOINTS: Final[dict[str, Type]] = {
    CHAIN_CERTIFICATES: "string",
    CHAIN_ID: "string",
    CHAIN_SEQUENCE: "int",
    CHAIN_SIGNATURE: "string",
    CHAIN_STATEMENT: "string",
}
"""Attributes of the span `chain checkpoint`."""

OF_RESOURCE: Final[dict[str, Type]] = {
    K8S_NAMESPACE: "string",
    K8S_NODE: "string",
    K8S_POD: "string",
    K8S_POD_UID: "string",
    SERVICE_INSTANCE: "string",
    SERVICE_NAME: "string",
    SERVICE_NAMESPACE: "string",
    VERSION: "string",
}
"""Attributes of the resource: the pod that speaks."""
