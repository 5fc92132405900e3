"""The registry's settings: defaults, and wrong ones that stop it by their name."""

import pytest

from kit.settings import ConfigInvalid, Settings
from registry.config import RegistryConfig


def test_the_defaults_are_those_of_the_seams() -> None:
    config = RegistryConfig.from_env(Settings({}))
    assert config.ca_address == "podlink-ca.podlink-system.svc:24110"
    assert (config.listen, config.health_port) == ("[::]:24111", 8080)
    assert (config.mesh_default, config.trust_domain) == ("allow-meshed", "cluster.local")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PODLINK_TRUST_DOMAIN", "cluster.local/"),
        ("PODLINK_MESH_DEFAULT", "allow"),
        ("PODLINK_HEALTH_PORT", "0"),
        ("PODLINK_REGISTRY_LISTEN", "everywhere"),
        ("PODLINK_LOG_LEVEL", "loud"),
    ],
)
def test_a_wrong_setting_stops_the_program_by_its_name(name: str, value: str) -> None:
    with pytest.raises(ConfigInvalid, match=name):
        RegistryConfig.from_env(Settings({name: value}))
