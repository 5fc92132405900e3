"""A pair of HAProxys: TCP mode, TLS 1.3 with both sides verified, one thread, tcplog to a file.

HAProxy 2.6 (Debian 12) verifies the chain of either side but cannot compare a URI SAN; Envoy and
podlink also compare the identity.
"""

import shutil
from collections.abc import Sequence

from bench.processes import ChildFailed
from bench.proxies import Proxy, Site, text

_GLOBAL = """\
global
    nbthread 1
    maxconn 8192
    log stdout format raw local0
    tune.ssl.cachesize 0

defaults
    mode tcp
    log global
    option tcplog
    timeout connect 5s
    timeout client 300s
    timeout server 300s
"""

_NEAR = """
listen near
    bind {listen}
    server far {far} ssl crt {both} ca-file {authority} verify required \
ssl-min-ver TLSv1.3 no-tls-tickets no-ssl-reuse
"""

_FAR = """
listen far
    bind {listen} ssl crt {both} ca-file {authority} verify required \
ssl-min-ver TLSv1.3 no-tls-tickets
    server app {app}
"""


class HaproxyPair(Proxy):
    name = "haproxy"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        found = shutil.which("haproxy", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
        if found is None:
            raise ChildFailed("bench: haproxy is not installed (Debian package haproxy)")
        self._program = found

    def near_command(self) -> Sequence[str]:
        assert self.tunnel_address is not None
        certificates = self.site.certificates
        return self._configured(
            "near",
            _NEAR.format(
                listen=text(self.client_address),
                far=text(self.tunnel_address),
                both=certificates.near.both,
                authority=certificates.authority,
            ),
        )

    def far_command(self) -> Sequence[str]:
        assert self.tunnel_address is not None
        certificates = self.site.certificates
        return self._configured(
            "far",
            _FAR.format(
                listen=text(self.tunnel_address),
                both=certificates.far.both,
                authority=certificates.authority,
                app=text(self.site.app),
            ),
        )

    def _configured(self, side: str, section: str) -> Sequence[str]:
        path = self.path(f"{side}.cfg")
        path.write_text(_GLOBAL + section)
        return [self._program, "-db", "-f", str(path)]
