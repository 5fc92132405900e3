"""A pair of podlink sidecars: `python -m bench.podlink_sidecar`, once in each role."""

import sys
from collections.abc import Sequence

from bench.proxies import Proxy, text
from kit.contract import ALPN


class PodlinkPair(Proxy):
    name = "podlink"
    alpn = ALPN

    def near_command(self) -> Sequence[str]:
        assert self.tunnel_address is not None
        return [
            *self._common("outbound", self.client_address),
            "--target",
            text(self.tunnel_address),
            "--app",
            text(self.site.app),
        ]

    def far_command(self) -> Sequence[str]:
        assert self.tunnel_address is not None
        return [*self._common("inbound", self.tunnel_address), "--app", text(self.site.app)]

    def _common(self, role: str, listen: tuple[str, int]) -> list[str]:
        return [
            sys.executable,
            "-m",
            "bench.podlink_sidecar",
            role,
            "--listen",
            text(listen),
            "--certs",
            str(self.site.certificates.folder),
            "--otlp",
            text(self.site.sink),
        ]
