"""A wrong setting stops the CA in one line that names it."""

import datetime as dt

import pytest

from certs.server.config import CaConfig
from kit.settings import ConfigInvalid, Settings


def test_an_empty_environment_gives_the_documented_defaults() -> None:
    config = CaConfig.from_settings(Settings({}))
    assert config == CaConfig()
    assert (config.trust_domain, config.system_namespace) == ("cluster.local", "podlink-system")
    assert (config.listen, config.health_port) == ("[::]:24110", 8080)
    assert config.leaf_ttl == dt.timedelta(hours=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PODLINK_TRUST_DOMAIN", "Cluster.local"),
        ("PODLINK_TRUST_DOMAIN", "cluster.local/ns/x"),
        ("PODLINK_SYSTEM_NAMESPACE", "a.b"),
        ("PODLINK_LEAF_TTL", "1s"),
        ("PODLINK_LEAF_TTL", "25h"),
        ("PODLINK_LEAF_TTL", "-1h"),
        ("PODLINK_LEAF_TTL", "soon"),
        ("PODLINK_HEALTH_PORT", "0"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigInvalid, match=name):
        CaConfig.from_settings(Settings({name: value}))
