"""The bench starts podlink's sidecars with a command line that they understand."""

from bench.podlink import PodlinkPair
from bench.podlink_sidecar import arguments
from bench.proxies import Site, text


def test_near_dials_where_far_listens_and_far_dials_the_app(site: Site) -> None:
    pair = PodlinkPair(site)
    _, _, module, *near = pair.near_command()
    _, _, _, *far = pair.far_command()
    outbound, inbound = arguments(near), arguments(far)
    assert module == "bench.podlink_sidecar"
    assert (outbound.role, inbound.role) == ("outbound", "inbound")
    assert outbound.listen == text(pair.client_address)
    assert outbound.target == inbound.listen
    assert inbound.app == text(site.app)
    assert outbound.certs == inbound.certs == str(site.certificates.folder)
    assert outbound.otlp == inbound.otlp == text(site.sink)
