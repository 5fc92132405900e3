"""Settings of the CA, read once at start. Nothing else in certs/server reads the environment."""

import datetime as dt
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from certs.settings import trust_domain
from certs.trust.identity import IdentityMalformed, WorkloadIdentity
from kit.settings import ConfigInvalid, Settings

_SHORTEST_TTL_S = 5.0
_LONGEST_TTL_S = 24 * 3600.0
_SHORTEST_ROTATION_S = 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class CaConfig:
    trust_domain: str = "cluster.local"
    system_namespace: str = "podlink-system"
    leaf_ttl: dt.timedelta = dt.timedelta(hours=1)
    """The default lifetime of a leaf, and the longest anybody can ask for."""
    listen: str = "[::]:24110"
    health_port: int = 8080
    replica: str = field(default_factory=lambda: _replica(socket.gethostname()))
    """This CA's name among its replicas: the pod's."""
    otlp_endpoint: str = ""
    """`host:port` of an OTLP/gRPC receiver. Empty: no spans."""
    insecure_otlp: bool = False
    """Insecure. Send spans in plaintext to a collector that asks for no certificate."""
    bind_tokens: bool = True
    """A token counts only from its pod's own address, or its node's."""
    proxy_images: tuple[str, ...] = ()
    """A proxy's image is of one of these repositories; empty: any. Tags are not compared."""
    key_file: Path | None = None
    """Keep the keys in this file, for a CA on one machine, instead of a Secret."""
    import_secret: str = ""
    """A `kubernetes.io/tls` Secret of the system namespace that somebody else renews (cert-manager):
    the signer comes from there."""
    rotate_every: dt.timedelta = dt.timedelta(0)
    """Replace the root by itself when it is so old; 0: never."""
    rotation_settle: dt.timedelta = dt.timedelta(minutes=2)
    """How long a new root is published at least before it signs."""

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Raises ConfigInvalid naming the first wrong variable."""
        domain = trust_domain(settings)
        namespace = settings.text("PODLINK_SYSTEM_NAMESPACE", cls.system_namespace)
        try:
            WorkloadIdentity(domain, namespace, "podlink-ca")
        except IdentityMalformed:
            raise ConfigInvalid(
                f"PODLINK_SYSTEM_NAMESPACE must be a namespace, not {namespace[:256]!r}"
            ) from None
        ttl_s = settings.seconds("PODLINK_LEAF_TTL", cls.leaf_ttl.total_seconds())
        if not _SHORTEST_TTL_S <= ttl_s <= _LONGEST_TTL_S:
            raise ConfigInvalid("PODLINK_LEAF_TTL must be from 5s to 24h")
        file = settings.optional("PODLINK_CA_KEY_FILE")
        import_secret = settings.optional("PODLINK_CA_IMPORT_SECRET") or ""
        if not re.fullmatch(r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)?", import_secret):
            raise ConfigInvalid(
                f"PODLINK_CA_IMPORT_SECRET must name a Secret, not {import_secret[:256]!r}"
            )
        every_s = settings.seconds("PODLINK_ROTATE_ROOT_EVERY", 0.0)
        if every_s and every_s < _SHORTEST_ROTATION_S:
            raise ConfigInvalid("PODLINK_ROTATE_ROOT_EVERY must be 0 or at least 1d")
        binding = settings.choice(
            "PODLINK_TOKEN_BINDING", "refuse", frozenset({"refuse", "report"})
        )
        settle_s = settings.seconds("PODLINK_ROTATION_SETTLE", 120.0)
        return cls(
            replica=_replica(settings.optional("POD_NAME") or socket.gethostname()),
            otlp_endpoint=settings.optional("PODLINK_OTLP_ENDPOINT") or "",
            insecure_otlp=settings.flag("PODLINK_INSECURE_OTLP"),
            bind_tokens=binding == "refuse",
            proxy_images=tuple(
                one.strip()
                for one in (settings.optional("PODLINK_PROXY_IMAGES") or "").split(",")
                if one.strip()
            ),
            key_file=Path(file) if file else None,
            import_secret=import_secret,
            rotate_every=dt.timedelta(seconds=every_s),
            rotation_settle=dt.timedelta(seconds=settle_s),
            trust_domain=domain,
            system_namespace=namespace,
            leaf_ttl=dt.timedelta(seconds=ttl_s),
            listen=settings.text("PODLINK_CA_LISTEN", cls.listen),
            health_port=settings.port("PODLINK_HEALTH_PORT", cls.health_port),
        )


def _replica(name: str) -> str:
    """A name that may stand in a ConfigMap's."""
    return re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")[:200] or "ca"
