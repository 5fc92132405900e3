"""Settings of the CA, read once at start. Nothing else in certs/server reads the environment."""

import datetime as dt
from dataclasses import dataclass
from typing import Self

from certs.trust.identity import IdentityMalformed, WorkloadIdentity, check_trust_domain
from kit.settings import ConfigInvalid, Settings

_SHORTEST_TTL_S = 5.0
_LONGEST_TTL_S = 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class CaConfig:
    trust_domain: str = "cluster.local"
    system_namespace: str = "podlink-system"
    leaf_ttl: dt.timedelta = dt.timedelta(hours=1)
    """The default lifetime of a leaf, and the longest anybody can ask for."""
    listen: str = "[::]:24110"
    health_port: int = 8080

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Raises ConfigInvalid naming the first wrong variable."""
        trust_domain = settings.text("PODLINK_TRUST_DOMAIN", cls.trust_domain)
        namespace = settings.text("PODLINK_SYSTEM_NAMESPACE", cls.system_namespace)
        try:
            check_trust_domain(trust_domain)
        except IdentityMalformed:
            raise ConfigInvalid(
                f"PODLINK_TRUST_DOMAIN must be a lower-case DNS name, not {trust_domain[:256]!r}"
            ) from None
        try:
            WorkloadIdentity(trust_domain, namespace, "podlink-ca")
        except IdentityMalformed:
            raise ConfigInvalid(
                f"PODLINK_SYSTEM_NAMESPACE must be a namespace, not {namespace[:256]!r}"
            ) from None
        ttl_s = settings.seconds("PODLINK_LEAF_TTL", cls.leaf_ttl.total_seconds())
        if not _SHORTEST_TTL_S <= ttl_s <= _LONGEST_TTL_S:
            raise ConfigInvalid("PODLINK_LEAF_TTL must be from 5s to 24h")
        return cls(
            trust_domain=trust_domain,
            system_namespace=namespace,
            leaf_ttl=dt.timedelta(seconds=ttl_s),
            listen=settings.text("PODLINK_CA_LISTEN", cls.listen),
            health_port=settings.port("PODLINK_HEALTH_PORT", cls.health_port),
        )
