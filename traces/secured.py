"""Who sends: mutual TLS for both receivers, and the sender's checked identity for each request."""

import ssl
from typing import Any

import grpc
from aiohttp import web

from certs.client.rpc import peer_facts, server_credentials
from certs.client.source import Svid, SvidSource
from certs.trust.bans import RANDOM_BITS, Bans, Guard
from certs.trust.facts import LeafFacts
from certs.trust.svid import SvidChecker, SvidRefused
from kit.tls13 import demand_tls13
from traces.calls import Caller


class Secured:
    """`source` must be ready: senders are judged against its bundle."""

    def __init__(self, source: SvidSource, trust_domain: str) -> None:
        self.source = source
        self._guard = Guard(SvidChecker(trust_domain))
        self._guard.bans = source.bans
        source.subscribe_bans(self._bans_came)

    def _bans_came(self, bans: Bans) -> None:
        self._guard.bans = bans

    def credentials(self) -> grpc.ServerCredentials:
        demand_tls13()
        return server_credentials(self.source)

    def context(self, svid: Svid) -> ssl.SSLContext:
        """For OTLP/HTTP, of one certificate generation."""
        return svid.material.server_context(("http/1.1",))

    def of_call(self, context: Any) -> Caller:
        """Who is behind a gRPC call. Raises SvidRefused or Banned."""
        return _caller(peer_facts(context, self._guard))

    def of_request(self, http: web.Request) -> Caller:
        """Who is behind an HTTP request. Raises SvidRefused or Banned."""
        connection = http.transport.get_extra_info("ssl_object") if http.transport else None
        der = connection.getpeercert(binary_form=True) if connection is not None else None
        if der is None:
            raise SvidRefused("peer_without_leaf")
        return _caller(self._guard(der))


def _caller(leaf: LeafFacts) -> Caller:
    return Caller(str(leaf.identity), int(leaf.serial, 16) >> RANDOM_BITS)
