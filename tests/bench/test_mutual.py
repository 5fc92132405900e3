"""A pair that does mutual TLS passes; one that skips a check is found out. With real HAProxys."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench import mutual
from bench.haproxy import HaproxyPair
from bench.mutual import NotMutual
from bench.processes import wait_until
from bench.proxies import Site

pytestmark = pytest.mark.skipif(
    shutil.which("haproxy", path="/usr/sbin:/usr/bin") is None, reason="needs haproxy"
)


class CarelessPair(HaproxyPair):
    """HAProxys whose configuration was changed in one place."""

    def __init__(self, site: Site, side: str, said: str, instead: str) -> None:
        super().__init__(site)
        self._side, self._said, self._instead = side, said, instead

    def _configured(self, side: str, section: str) -> list[str]:
        if side == self._side:
            assert self._said in section
            section = section.replace(self._said, self._instead)
        return list(super()._configured(side, section))


@contextmanager
def near_of(pair: HaproxyPair) -> Iterator[None]:
    try:
        near = pair.start_near()
        wait_until(lambda: mutual.listens(pair.client_address), "near", timeout_s=5, child=near)
        yield
    finally:
        pair.stop()


@contextmanager
def both_of(pair: HaproxyPair) -> Iterator[None]:
    tunnel = pair.tunnel_address
    assert tunnel is not None
    with near_of(pair):
        far = pair.start_far()
        wait_until(lambda: mutual.listens(tunnel), "far", timeout_s=5, child=far)
        yield


def test_a_pair_that_checks_both_ways_passes_and_serves(site: Site) -> None:
    pair = HaproxyPair(site)
    with near_of(pair):
        mutual.check_near_refuses_impostor(pair)
    with both_of(pair):
        mutual.check_far_refuses_strangers(pair)
        assert mutual.answers(pair.client_address)


def test_a_near_proxy_that_trusts_anybody_is_found_out(site: Site) -> None:
    pair = CarelessPair(site, "near", "verify required", "verify none")
    with near_of(pair), pytest.raises(NotMutual, match="trusted an impostor"):
        mutual.check_near_refuses_impostor(pair)


@pytest.mark.parametrize(
    ("said", "instead", "found"),
    [
        ("verify required", "verify optional", "a peer without a certificate"),
        ("verify required", "verify none", "a peer without a certificate"),
        ("ssl-min-ver TLSv1.3", "ssl-min-ver TLSv1.2", "TLS 1.2"),
        ("listen far", "listen elsewhere", None),  # a change that harms nothing
    ],
)
def test_a_far_proxy_that_skips_a_check_is_found_out(
    site: Site, said: str, instead: str, found: str | None
) -> None:
    pair = CarelessPair(site, "far", said, instead)
    with both_of(pair):
        if found is None:
            mutual.check_far_refuses_strangers(pair)
        else:
            with pytest.raises(NotMutual, match=f"the far proxy took {found}"):
                mutual.check_far_refuses_strangers(pair)


def test_a_far_proxy_without_tls_is_found_out(site: Site) -> None:
    pair = HaproxyPair(site)
    pair.tunnel_address = site.app
    with pytest.raises(NotMutual, match="took plaintext"):
        mutual.check_far_refuses_strangers(pair)
