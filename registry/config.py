"""Settings of the registry, read once at start."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from certs.client.choose import SourceConfig
from certs.settings import trust_domain
from kit import contract
from kit.settings import Settings

_MESH_DEFAULTS = frozenset({"allow-meshed", "deny", "allow-all"})


@dataclass(frozen=True, kw_only=True)
class RegistryConfig:
    trust_domain: str
    system_namespace: str
    svid_source: SourceConfig
    ca_address: str
    token_path: Path
    bundle_path: Path
    listen: str
    """`host:port` for sidecars, mutual TLS."""
    mesh_default: str
    health_port: int
    log_level: str

    @classmethod
    def from_env(cls, settings: Settings) -> Self:
        """Raises ConfigInvalid naming the variable."""
        namespace = settings.text("PODLINK_SYSTEM_NAMESPACE", contract.SYSTEM_NAMESPACE)
        return cls(
            trust_domain=trust_domain(settings),
            system_namespace=namespace,
            svid_source=SourceConfig.from_settings(settings),
            ca_address=settings.text(
                "PODLINK_CA_ADDRESS", f"podlink-ca.{namespace}.svc:{contract.CA_PORT}"
            ),
            token_path=settings.path("PODLINK_TOKEN_PATH", contract.TOKEN_PATH),
            bundle_path=settings.path("PODLINK_BUNDLE_PATH", contract.BUNDLE_PATH),
            listen=settings.listen("PODLINK_REGISTRY_LISTEN", f"[::]:{contract.REGISTRY_PORT}"),
            mesh_default=settings.choice("PODLINK_MESH_DEFAULT", "allow-meshed", _MESH_DEFAULTS),
            health_port=settings.port("PODLINK_HEALTH_PORT", 8080),
            log_level=settings.choice(
                "PODLINK_LOG_LEVEL", "info", frozenset({"debug", "info", "warning", "error"})
            ),
        )
