"""The bench starts podlink's sidecars with a command line that they understand."""

import sys

import pytest

from bench.podlink import PodlinkPair
from bench.podlink_sidecar import arguments
from bench.proxies import Site, text


def test_near_dials_where_far_listens_and_far_dials_the_app(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = PodlinkPair(site)
    read = []
    for _, _, module, *options in (pair.near_command(), pair.far_command()):
        assert module == "bench.podlink_sidecar"
        monkeypatch.setattr(sys, "argv", [module, *options])
        read.append(arguments())
    outbound, inbound = read
    assert (outbound.role, inbound.role) == ("outbound", "inbound")
    assert outbound.listen == text(pair.client_address)
    assert outbound.target == inbound.listen
    assert inbound.app == text(site.app)
    assert outbound.certs == inbound.certs == str(site.certificates.folder)
    assert outbound.otlp == inbound.otlp == text(site.sink)
