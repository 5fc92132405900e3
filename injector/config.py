"""Settings of the injector, read once at start."""

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from certs.settings import trust_domain
from injector.annotations import AnnotationRefused, check_default, read_settings
from injector.container import MeshSettings
from kit import contract
from kit.settings import ConfigInvalid, Settings

_NATIVE: Mapping[str, bool | None] = {"auto": None, "true": True, "false": False}
_CLUSTER_CIDRS = "10.0.0.0/8,100.64.0.0/10,172.16.0.0/12,192.168.0.0/16,fc00::/7"


@dataclass(frozen=True, kw_only=True)
class InjectorConfig:
    mesh: MeshSettings
    """What goes into every injected pod."""
    native_sidecars: bool | None
    """What `mesh` is to say of native sidecars; None: as the API server's version says."""
    system_namespace: str
    token_path: Path
    bundle_path: Path
    listen: str
    """`host:port` for the API server, HTTPS."""
    log_level: str

    @classmethod
    def from_env(cls, settings: Settings) -> Self:
        """Raises ConfigInvalid naming the variable."""
        namespace = settings.text("PODLINK_SYSTEM_NAMESPACE", contract.SYSTEM_NAMESPACE)
        mesh = MeshSettings(
            image=settings.text("PODLINK_IMAGE", f"podlink/podlink:{contract.VERSION}"),
            trust_domain=trust_domain(settings),
            ca_address=settings.text(
                "PODLINK_CA_ADDRESS", f"podlink-ca.{namespace}.svc:{contract.CA_PORT}"
            ),
            registry_address=settings.text(
                "PODLINK_REGISTRY_ADDRESS",
                f"podlink-registry.{namespace}.svc:{contract.REGISTRY_PORT}",
            ),
            otlp_endpoint=settings.optional("PODLINK_OTLP_ENDPOINT") or "",
            cluster_cidrs=_cidrs(settings.text("PODLINK_CLUSTER_CIDRS", _CLUSTER_CIDRS)),
            telemetry=_telemetry(settings),
            otlp_secret=settings.optional("PODLINK_OTLP_SECRET") or "",
            otlp_secret_keys=_secret_keys(settings.text("PODLINK_OTLP_SECRET_KEYS", "ca.crt")),
            exempt_by=settings.choice("PODLINK_EXEMPT_BY", "uid", frozenset({"uid", "mark"})),
            capture_by=settings.choice("PODLINK_CAPTURE_BY", "init", frozenset({"init", "cni"})),
            defaults=_defaults(settings.text("PODLINK_PROXY_DEFAULTS", "{}")),
        )
        try:
            read_settings({}, {}, dict(mesh.defaults), mesh.cluster_cidrs)
        except AnnotationRefused as refused:  # of every pod, then
            raise ConfigInvalid(f"PODLINK_PROXY_DEFAULTS: {refused}") from refused
        return cls(
            mesh=mesh,
            native_sidecars=_NATIVE[
                settings.choice("PODLINK_NATIVE_SIDECARS", "auto", frozenset(_NATIVE))
            ],
            system_namespace=namespace,
            token_path=settings.path("PODLINK_TOKEN_PATH", contract.TOKEN_PATH),
            bundle_path=settings.path("PODLINK_BUNDLE_PATH", contract.BUNDLE_PATH),
            listen=settings.listen("PODLINK_INJECTOR_LISTEN", f"[::]:{contract.INJECTOR_PORT}"),
            log_level=settings.choice(
                "PODLINK_LOG_LEVEL", "info", frozenset({"debug", "info", "warning", "error"})
            ),
        )


def _telemetry(settings: Settings) -> tuple[tuple[str, str], ...]:
    """The injector's own environment holds what proxies get: a chart sets it in one place."""
    found = ((name, settings.optional(name)) for name in contract.TELEMETRY_SETTINGS)
    return tuple((name, value) for name, value in found if value)


def _secret_keys(text: str) -> tuple[str, ...]:
    known = (*contract.OTLP_SECRET_FILES, contract.OTLP_SECRET_HEADERS)
    found = [key.strip() for key in text.split(",") if key.strip()]
    if unknown := [key for key in found if key not in known]:
        raise ConfigInvalid(
            f"PODLINK_OTLP_SECRET_KEYS: {unknown[0]!r} is none of {', '.join(known)}"
        )
    return tuple(key for key in known if key in found)


def _defaults(text: str) -> tuple[tuple[str, str], ...]:
    try:
        found = json.loads(text)
        return tuple((key, check_default(key, str(found[key]))) for key in sorted(found))
    except (ValueError, TypeError) as error:
        raise ConfigInvalid(f"PODLINK_PROXY_DEFAULTS: {error}") from error


def _cidrs(text: str) -> str:
    """As they were written: the guard compares them with what stands in the pod."""
    networks = [one.strip() for one in text.split(",")]
    try:
        for one in networks:
            ipaddress.ip_network(one)
        return ",".join(networks)
    except ValueError as error:
        raise ConfigInvalid(f"PODLINK_CLUSTER_CIDRS: {error}") from error
