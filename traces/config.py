"""Settings of the trace store, read once at start."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from certs.names import CA_ACCOUNT
from certs.settings import trust_domain
from certs.trust.identity import IdentityMalformed, WorkloadIdentity
from kit.settings import ConfigInvalid, Settings

OTLP_GRPC_PORT = 4317
OTLP_HTTP_PORT = 4318
REVIEW_PORT = 24114
_MIB = 1 << 20
_SECRETS = "/var/run/secrets/podlink"


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How the store gets its certificate, and whom it believes."""

    trust_domain: str
    ca_address: str
    token_path: Path
    bundle_path: Path
    registry_address: str
    """Who knows the policies in force."""
    ca: WorkloadIdentity
    """Who alone may tell of certificates."""

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        namespace = settings.text("PODLINK_SYSTEM_NAMESPACE", "podlink-system")
        domain = trust_domain(settings)
        try:
            ca = WorkloadIdentity(domain, namespace, CA_ACCOUNT)
        except IdentityMalformed as e:
            raise ConfigInvalid(
                f"PODLINK_TRUST_DOMAIN and PODLINK_SYSTEM_NAMESPACE make no identity: {e}"
            ) from e
        return cls(
            trust_domain=domain,
            ca_address=settings.text("PODLINK_CA_ADDRESS", f"{CA_ACCOUNT}.{namespace}.svc:24110"),
            token_path=settings.path("PODLINK_TOKEN_PATH", f"{_SECRETS}/token/token"),
            bundle_path=settings.path("PODLINK_BUNDLE_PATH", f"{_SECRETS}/bundle/root.pem"),
            registry_address=settings.text(
                "PODLINK_REGISTRY_ADDRESS", f"podlink-registry.{namespace}.svc:24111"
            ),
            ca=ca,
        )


@dataclass(frozen=True, kw_only=True)
class TracesConfig:
    db_path: Path
    token_path: Path
    """The review API's shared token. Read at each request, so that a new one counts at once."""
    mesh: MeshConfig | None = None
    """Spans come over mutual TLS, and each sender tells of itself alone."""
    allow_unknown_senders: bool = False
    """Insecure (PODLINK_INSECURE_OTLP): without `mesh`, anybody who reaches the ports may write
    anything."""
    host: str = ""
    """One address to listen on; empty: all, of both families."""
    grpc_port: int = OTLP_GRPC_PORT
    http_port: int = OTLP_HTTP_PORT
    review_port: int = REVIEW_PORT
    keep_s: float = 7 * 86400.0
    """Age, by this store's own clock, at which a span is deleted."""
    max_bytes: int = 1024 * _MIB
    """Size of the data at which the oldest spans are deleted, allowed mTLS links first."""
    max_request_bytes: int = 4 * _MIB
    max_waiting_bytes: int = 32 * _MIB
    """Received but not yet written; beyond it senders are told to come again later."""
    log_level: str = "info"

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Raises ConfigInvalid, naming the variable."""
        insecure = settings.flag("PODLINK_INSECURE_OTLP")
        return cls(
            mesh=None if insecure else MeshConfig.from_settings(settings),
            allow_unknown_senders=insecure,
            db_path=settings.path("PODLINK_TRACES_DB"),
            token_path=settings.path("PODLINK_TRACES_TOKEN_FILE"),
            host=settings.optional("PODLINK_TRACES_HOST") or "",
            grpc_port=settings.port("PODLINK_TRACES_GRPC_PORT", OTLP_GRPC_PORT),
            http_port=settings.port("PODLINK_TRACES_HTTP_PORT", OTLP_HTTP_PORT),
            review_port=settings.port("PODLINK_TRACES_REVIEW_PORT", REVIEW_PORT),
            keep_s=settings.seconds("PODLINK_TRACES_KEEP", cls.keep_s),
            max_bytes=_MIB
            * settings.integer(
                "PODLINK_TRACES_MAX_MIB", cls.max_bytes // _MIB, low=1, high=1 << 20
            ),
            log_level=settings.choice(
                "PODLINK_LOG_LEVEL", "info", frozenset({"debug", "info", "warning", "error"})
            ),
        )
