"""Names, ports and numbers that the sidecar shares with Kubernetes and with the injector.

The only module of the sidecar that the injector may import. Constants only, but for one line of text.
"""

VERSION = "0.1.0"

OUTBOUND_PORT = 24101
"""Where the app's own connections arrive after redirection. Loopback only."""
INBOUND_PORT = 24102
"""Where connections from outside the pod arrive after redirection."""
HEALTH_PORT = 24103
"""Health and metrics, on the pod's IP; never captured."""
HEALTH_PORT_NAME = "podlink-health"
OWN_PORTS = frozenset({OUTBOUND_PORT, INBOUND_PORT, HEALTH_PORT})
"""A connection whose original destination is one of these is a loop or an attack: refused."""

MAX_SKIPPED_PORTS = 4096
"""In one list: a skip list is for exceptions, and one that covers everything would be no mesh."""
SHORTEST_SKIPPED_PREFIX = {4: 8, 6: 16}
"""By IP version, of a subnet that is skipped."""

CANARIES = {4: ("192.0.2.1", 7), 6: ("2001:db8::1", 7)}
"""By IP version: nobody has these addresses (RFC 5737, RFC 3849), so what answers there is we behind
the redirect."""


def canary_answer(pod_uid: str) -> bytes:
    """What the proxy says to whoever dials the canary's address."""
    return f"podlink {pod_uid}\n".encode()


CA_PORT = 24110
REGISTRY_PORT = 24111
INJECTOR_PORT = 24112
OTLP_GRPC_PORT = 4317
OTLP_HTTP_PORT = 4318
REVIEW_PORT = 24114

PROXY_UID = 24100
PROXY_GID = 24100
PROXY_MARK = 0x24100
"""SO_MARK on the proxy's own connections, where only one UID exists (a user namespace that maps one)."""

CAPTURE_CONTAINER = "podlink-capture"
PROXY_CONTAINER = "podlink-proxy"
CAPTURE_COMMAND = ("python", "-m", "sidecar.capture")
VALIDATE_CONTAINER = "podlink-validate"
"""Instead of the capture container where the CNI plugin captures: proves it, or fails the pod."""
VALIDATE_COMMAND = ("python", "-m", "sidecar.capture.validate")
VALIDATE_UID = 24101
PROXY_COMMAND = ("python", "-m", "sidecar")
WAIT_COMMAND = ("python", "-m", "sidecar.wait")
"""Ends once the proxy in its container is ready; the hook of a proxy that is no native sidecar."""

ALPN = "podlink/2"
"""The newest tunnel protocol."""
ALPNS = (ALPN, "podlink/1")
"""Every one that this version speaks, best first: TLS takes the first that both sides know."""
TOKEN_AUDIENCE = "podlink-ca"  # noqa: S105 - a name, not a secret
DEFAULT_TRUST_DOMAIN = "cluster.local"
SYSTEM_NAMESPACE = "podlink-system"

INJECT_LABEL = "podlink.dev/inject"
INJECTED_LABEL = "podlink.dev/injected"
ANY_POD_LABEL, ANY_POD_ALLOWED = "podlink.dev/leaf-without-sidecar", "allowed"
"""On a namespace: the CA signs there for pods that carry no proxy, too."""
STATUS_ANNOTATION = "podlink.dev/status"
CAPTURE_ANNOTATION = "podlink.dev/capture"
"""On pods that the CNI plugin is to capture: JSON of what it must leave alone."""
CONFIG_PREFIX = "config.podlink.dev/"
SOURCE_ADDRESSES = frozenset({"peer", "pod"})
"""Whose address the app may be shown as its caller's."""
STAND_INS = {4: "248.0.0.0/6", 6: "4000::/2"}
"""By IP version: what is local to a pod whose app sees its peers' addresses (sidecar.source_address).
Not 252.0.0.0/6, which holds the broadcast address; 4000::/2 is IANA's reserve (RFC 4291)."""
NO_HTTP_PORTS = "none"
"""What the annotation `http-ports` says instead of ports where no request is to leave a span."""
HTTP_APP_PROTOCOLS = frozenset({"http", "kubernetes.io/h2c", "grpc"})
"""`appProtocol` of a Service's port that HTTP/1.1 or HTTP/2 in plain text is spoken on."""
BUNDLE_CONFIG_MAP = "podlink-bundle"
BUNDLE_KEY = "root.pem"

PROBE_PATH = "/probe/"
"""On the health port: `/probe/<container>/<kind>` runs that probe of the app."""
PROBES_VARIABLE = "PODLINK_PROBES"
"""The proxy's setting that holds the app's probes, by `<container>/<kind>` (`sidecar/probes`)."""

TOKEN_PATH = "/var/run/secrets/podlink/token/token"  # noqa: S105 - where it lies, not what it is
BUNDLE_PATH = "/var/run/secrets/podlink/bundle/root.pem"
ADMIN_SOCKET = "/run/podlink/admin.sock"

TELEMETRY_SETTINGS = (
    "PODLINK_ACCESS_LOG",
    "PODLINK_EVIDENCE",
    "PODLINK_INSECURE_OTLP",
    "OTEL_SDK_DISABLED",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "OTEL_EXPORTER_OTLP_COMPRESSION",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    "OTEL_EXPORTER_OTLP_INSECURE",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
)
"""What the operator sets at the injector and every proxy gets. No annotation reaches these: where
records go is not for the pod to choose (threat model, row 34)."""
OTLP_SECRET_PATH = "/var/run/secrets/podlink/otlp"  # noqa: S105 - a path
OTLP_SECRET_FILES = {
    "ca.crt": "OTEL_EXPORTER_OTLP_CERTIFICATE",
    "tls.crt": "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    "tls.key": "OTEL_EXPORTER_OTLP_CLIENT_KEY",
}
"""Keys of the Secret that the operator names for a collector's sake, in every enrolled namespace, and
what each is to the proxy. `kubernetes.io/tls` calls them so, and cert-manager."""
OTLP_SECRET_HEADERS = "headers"  # noqa: S105 - the name of a key
"""Its key with OTEL_EXPORTER_OTLP_HEADERS, which are secret as a rule and so never in a pod's spec."""
