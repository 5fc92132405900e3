"""Settings of the proxy: each wrong one stops the start with one line that names it."""

import ipaddress

import pytest

from kit.contract import OWN_PORTS, PROXY_MARK
from kit.settings import ConfigInvalid, Settings
from sidecar.config import SidecarConfig, Upstream

GOOD = {
    "POD_NAMESPACE": "shop",
    "POD_NAME": "web-0",
    "POD_UID": "6e0c",
    "POD_IPS": "10.0.0.7,FD00::7",
    "PODLINK_CA_ADDRESS": "podlink-ca.podlink-system.svc:24110",
    "PODLINK_REGISTRY_ADDRESS": "podlink-registry.podlink-system.svc:24111",
}


def config(**changes: str) -> SidecarConfig:
    return SidecarConfig.from_settings(Settings({**GOOD, **changes}))


def test_the_defaults_are_the_strict_ones() -> None:
    it = config()
    assert it.own.ips == {"10.0.0.7", "fd00::7"}, "in canonical text"
    assert (it.mode, it.mark, it.upstreams) == ("redirect", 0, ())
    assert not it.allow_plaintext
    for pod in ("10.1.2.3", "172.16.0.1", "192.168.9.9", "100.64.0.1", "fd00::1"):
        assert any(ipaddress.ip_address(pod) in network for network in it.cluster_networks)


def test_what_is_set_is_taken() -> None:
    it = config(
        PODLINK_MODE="localhost",
        PODLINK_UPSTREAMS="5432=db.prod:5433, 6379=redis-0.redis.prod.svc:6379",
        PODLINK_EXEMPT_BY="mark",
        PODLINK_PLAINTEXT="allow",
        PODLINK_EXTERNAL="deny",
        PODLINK_CLUSTER_CIDRS="10.8.0.0/16",
        PODLINK_SHUTDOWN_GRACE_PERIOD="1m",
    )
    assert it.upstreams == (
        Upstream(5432, "db.prod", 5433),
        Upstream(6379, "redis-0.redis.prod", 6379),
    )
    assert (it.mode, it.mark, it.drain_s) == ("localhost", PROXY_MARK, 60.0)
    assert it.allow_plaintext and not it.allow_external
    assert it.cluster_networks == (ipaddress.ip_network("10.8.0.0/16"),)


BAD = [
    *((name, "") for name in GOOD),
    ("POD_IPS", "10.0.0"),
    ("POD_IPS", "10.0.0.7,web"),
    ("POD_IPS", ","),
    ("PODLINK_TRUST_DOMAIN", "Cluster.Local"),
    ("PODLINK_TRUST_DOMAIN", "spiffe://cluster.local"),
    ("PODLINK_MODE", "transparent"),
    ("PODLINK_PLAINTEXT", "true"),
    ("PODLINK_EXTERNAL", "no"),
    ("PODLINK_EXEMPT_BY", "gid"),
    ("PODLINK_LOG_LEVEL", "loud"),
    ("PODLINK_SHUTDOWN_GRACE_PERIOD", "soon"),
    ("PODLINK_SHUTDOWN_GRACE_PERIOD", "-1s"),
    ("PODLINK_CLUSTER_CIDRS", "10.0.0.0/8,pods"),
    ("PODLINK_CLUSTER_CIDRS", "10.0.0.1/8"),
    ("PODLINK_CLUSTER_CIDRS", ","),
    ("PODLINK_UPSTREAMS", "5432"),
    ("PODLINK_UPSTREAMS", "5432=db.prod"),
    ("PODLINK_UPSTREAMS", "5432=db:5432"),
    ("PODLINK_UPSTREAMS", "0=db.prod:5432"),
    ("PODLINK_UPSTREAMS", "5432=db.prod:65536"),
    ("PODLINK_UPSTREAMS", "5432=DB.prod:5432"),
    ("PODLINK_UPSTREAMS", "5432=db.prod:5432,5432=db.test:5432"),
    *(("PODLINK_UPSTREAMS", f"{port}=db.prod:5432") for port in sorted(OWN_PORTS)),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_setting_is_one_line_that_names_it(name: str, value: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        config(**{name: value})
    message = str(caught.value)
    assert message.startswith(name)
    assert "\n" not in message
