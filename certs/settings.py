"""Settings that every program reads alike."""

from certs.trust.identity import IdentityMalformed, check_trust_domain
from kit.settings import ConfigInvalid, Settings

_DEFAULT_TRUST_DOMAIN = "cluster.local"


def trust_domain(settings: Settings) -> str:
    """The mesh's trust domain, PODLINK_TRUST_DOMAIN. Raises ConfigInvalid."""
    try:
        return check_trust_domain(settings.text("PODLINK_TRUST_DOMAIN", _DEFAULT_TRUST_DOMAIN))
    except IdentityMalformed as e:
        raise ConfigInvalid(f"PODLINK_TRUST_DOMAIN: {e}") from e
