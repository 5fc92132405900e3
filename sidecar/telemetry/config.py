"""Where spans go, how many of them, and how long to try. Read once at start.

The OTEL_* variables mean what OpenTelemetry's "Environment Variable Specification" and "OTLP
Exporter Configuration" say, an empty value counting as unset; those for traces win over the general
ones, and both over PODLINK_OTLP_ENDPOINT. What cannot be obeyed is refused, never ignored.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Self
from urllib.parse import unquote, urlsplit

from kit.contract import OTLP_GRPC_PORT, OTLP_HTTP_PORT
from kit.settings import ConfigInvalid, Settings
from sidecar.telemetry.access import Which
from sidecar.telemetry.resource import PodResource

_SAMPLERS = frozenset(
    f"{parent}{name}"
    for parent in ("", "parentbased_")
    for name in ("always_on", "always_off", "traceidratio")
)


@dataclass(frozen=True, kw_only=True)
class TelemetryConfig:
    endpoint: str = ""
    """`host:port` of an OTLP receiver. Empty: no spans are kept or sent."""
    protocol: Literal["grpc", "http"] = "grpc"
    path: str = "/v1/traces"
    """Of an OTLP/HTTP receiver."""
    plaintext: bool = False
    """Insecure. Speak to the collector without TLS: an `http://` endpoint, or
    PODLINK_INSECURE_OTLP."""
    workload_tls: bool = False
    """Mutual TLS with the workload's leaf, as podlink's own store wants it: PODLINK_OTLP_ENDPOINT
    names one by a bare `host:port`."""
    ca_path: str = ""
    """PEM roots for a TLS endpoint; empty: those that the library brings along."""
    client_cert_path: str = ""
    client_key_path: str = ""
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Metadata sent with each export. May hold a credential: never logged."""
    gzip: bool = False
    timeout_s: float = 10.0
    """For one attempt to export."""
    ratio: float = 1.0
    """The share of allowed mTLS links that leave a span, decided by trace id, so that both sides of
    a link decide alike. Denied, failed, plaintext and audited links are not sampled."""
    delay_s: float = 1.0
    """The longest that a record waits for company before it is sent."""
    batch_size: int = 256
    """Spans in one request. Half of OpenTelemetry's default: the loop joins and sends a request in
    one go, and links wait meanwhile."""
    allowed_room: int = 2048
    reserved_room: int = 2048
    evidence: bool = True
    """Chain the records by hash and sign checkpoints with the workload's key."""
    access_log: Which = "all"
    """Which links leave a line on standard output."""
    close_timeout_s: float = 2.0
    """How long `close` may take in all."""
    resource: PodResource = field(default_factory=PodResource)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Raises ConfigInvalid, naming the variable."""
        protocol = _protocol(settings)
        where = _endpoint(settings, protocol)
        compression = _otlp(settings, "COMPRESSION")
        if compression not in ("", "none", "gzip"):
            raise ConfigInvalid(
                f"OTEL_EXPORTER_OTLP_COMPRESSION must be gzip or none, not {compression!r}"
            )
        room = settings.integer("OTEL_BSP_MAX_QUEUE_SIZE", cls.allowed_room, low=16, high=1 << 20)
        return cls(
            endpoint=where.endpoint,
            protocol=protocol,
            path=where.path,
            plaintext=where.plaintext,
            workload_tls=where.workload_tls,
            ca_path=_otlp(settings, "CERTIFICATE"),
            client_cert_path=_otlp(settings, "CLIENT_CERTIFICATE"),
            client_key_path=_otlp(settings, "CLIENT_KEY"),
            headers=_headers(settings),
            gzip=compression == "gzip",
            timeout_s=_milliseconds(settings, _otlp_name(settings, "TIMEOUT"), cls.timeout_s),
            ratio=_ratio(settings),
            delay_s=_milliseconds(settings, "OTEL_BSP_SCHEDULE_DELAY", cls.delay_s),
            batch_size=settings.integer(
                "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", min(cls.batch_size, room), low=1, high=room
            ),
            allowed_room=room,
            access_log=_access_log(settings),
            evidence=settings.flag("PODLINK_EVIDENCE", default=True),
            resource=_resource(settings),
        )


def _access_log(settings: Settings) -> Which:
    match settings.choice("PODLINK_ACCESS_LOG", "all", frozenset({"all", "notable", "off"})):
        case "off":
            return "off"
        case "notable":
            return "notable"
    return "all"


def _otlp_name(settings: Settings, name: str) -> str:
    specific = f"OTEL_EXPORTER_OTLP_TRACES_{name}"
    return specific if settings.optional(specific) else f"OTEL_EXPORTER_OTLP_{name}"


def _otlp(settings: Settings, name: str) -> str:
    return settings.optional(_otlp_name(settings, name)) or ""


def _protocol(settings: Settings) -> Literal["grpc", "http"]:
    match _otlp(settings, "PROTOCOL"):
        case "" | "grpc":
            return "grpc"
        case "http/protobuf":
            return "http"
        case other:
            raise ConfigInvalid(
                f"OTEL_EXPORTER_OTLP_PROTOCOL must be grpc or http/protobuf, not {other[:64]!r}"
            )


class _Where(NamedTuple):
    endpoint: str = ""
    path: str = "/v1/traces"
    plaintext: bool = False
    workload_tls: bool = False


def _endpoint(settings: Settings, protocol: str) -> _Where:
    if settings.optional("OTEL_SDK_DISABLED") and settings.flag("OTEL_SDK_DISABLED"):
        return _Where()
    name = _otlp_name(settings, "ENDPOINT")
    ours = not settings.optional(name)
    if ours:
        name = "PODLINK_OTLP_ENDPOINT"
    value = settings.optional(name)
    insecure = settings.flag("PODLINK_INSECURE_OTLP")
    if value is None:
        return _Where()
    scheme = value.partition("://")[0] if "://" in value else ""
    wanted = ConfigInvalid(f"{name} must be host:port, http:// or https://, not {value[:256]!r}")
    if scheme not in ("", "http", "https"):
        raise wanted
    try:
        parts = urlsplit(value if scheme else f"//{value}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise wanted from None
    path = parts.path.rstrip("/")
    named_path = bool(path) and (protocol == "grpc" or not path.isascii() or " " in path)
    if not host or parts.username is not None or named_path or parts.query:
        raise wanted
    port = port or (OTLP_GRPC_PORT if protocol == "grpc" else OTLP_HTTP_PORT)
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if not name.startswith("OTEL_EXPORTER_OTLP_TRACES_"):
        path += "/v1/traces"
    if ours and not scheme:
        if protocol != "grpc":
            raise ConfigInvalid(
                f"OTEL_EXPORTER_OTLP_PROTOCOL must be grpc for podlink's own store at {name}"
            )
        return _Where(target, path, insecure, not insecure)
    if ours and scheme == "http" and not insecure:
        raise ConfigInvalid(f"{name} asks for plaintext: that takes PODLINK_INSECURE_OTLP=true")
    plaintext = scheme == "http" if scheme else _otlp(settings, "INSECURE") == "true"
    return _Where(target, path or "/", plaintext)


def _headers(settings: Settings) -> tuple[tuple[str, str], ...]:
    found = []
    for pair in filter(None, (p.strip() for p in _otlp(settings, "HEADERS").split(","))):
        key, equals, value = pair.partition("=")
        key, value = key.strip().lower(), unquote(value.strip())
        # gRPC metadata: a name of a few ASCII characters, a value of printable ASCII.
        named = key.isascii() and key.replace("-", "").replace("_", "").replace(".", "").isalnum()
        if not equals or not named or not (value.isascii() and value.isprintable()):
            raise ConfigInvalid("OTEL_EXPORTER_OTLP_HEADERS must be name=value,... in ASCII")
        found.append((key, value))
    return tuple(found)


def _milliseconds(settings: Settings, name: str, default_s: float) -> float:
    return settings.integer(name, int(default_s * 1000), low=10, high=600_000) / 1000


def _ratio(settings: Settings) -> float:
    name = "OTEL_TRACES_SAMPLER"
    sampler = settings.choice(name, "parentbased_always_on", _SAMPLERS)
    if sampler.endswith("always_on"):
        return 1.0
    if sampler.endswith("always_off"):
        return 0.0
    raw = settings.text(f"{name}_ARG", "1.0")
    try:
        ratio = float(raw)
    except ValueError:
        ratio = -1.0
    if not 0.0 <= ratio <= 1.0:
        raise ConfigInvalid(f"{name}_ARG must be a number from 0 to 1, not {raw[:64]!r}")
    return ratio


def _resource(settings: Settings) -> PodResource:
    more = {}
    for pair in filter(None, (settings.optional("OTEL_RESOURCE_ATTRIBUTES") or "").split(",")):
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigInvalid("OTEL_RESOURCE_ATTRIBUTES must be name=value,...")
        more[unquote(key.strip())] = unquote(value.strip())
    return PodResource(
        pod=settings.optional("POD_NAME") or "",
        pod_uid=settings.optional("POD_UID") or "",
        namespace=settings.optional("POD_NAMESPACE") or "",
        node=settings.optional("NODE_NAME") or "",
        service_account=settings.optional("POD_SERVICE_ACCOUNT") or "",
        service_name=settings.optional("OTEL_SERVICE_NAME") or "",
        more=more,
    )
