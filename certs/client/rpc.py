"""gRPC over mutual TLS with certificates from a source, on both sides.

A gRPC channel cannot change its certificate, so a new one is made when the source has a new Svid; a
server can, and asks at each new connection. gRPC verifies chains and host names only: who the peer
is comes from `peer_facts`.
"""

import ssl
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from certs.client.source import Svid, SvidSource
from certs.trust.facts import LeafFacts
from certs.trust.svid import SvidRefused
from kit.tasks import spawn

Verify = Callable[[bytes], LeafFacts]
"""Judges a DER leaf; `certs.trust.svid.SvidChecker` is one. Raises SvidRefused."""

CLOSE_GRACE_S = 10.0
_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 10_000),
    ("grpc.use_local_subchannel_pool", 1),
)


class NoCertificate(Exception):
    """The source has no Svid in force: not yet, or no longer. Nothing is sent without one."""

    reason = "no_certificate"


class RenewingChannel:
    """A channel to `address` (`name:port`) that always shows the present leaf.

    The server's certificate must verify under the present bundle and carry the DNS name of
    `address` (or `server_name`). Call `get` for each new call or stream and keep nothing of it.
    """

    def __init__(
        self,
        source: SvidSource,
        address: str,
        *,
        server_name: str | None = None,
        options: Sequence[tuple[str, int | str]] = (),
    ) -> None:
        self._source, self._address = source, address
        self._options: list[tuple[str, int | str]] = [*_OPTIONS, *options]
        if server_name is not None:
            self._options.append(("grpc.ssl_target_name_override", server_name))
        self._channel: grpc.aio.Channel | None = None
        self._generation = 0

    def get(self) -> grpc.aio.Channel:
        """The channel for a call that starts now; raises NoCertificate.

        After a rotation this is a new channel. Calls on the one before get CLOSE_GRACE_S seconds to
        end; a stream that lives longer is cut, so its owner calls `get` again and shows the new
        leaf.
        """
        svid = _in_force(self._source)
        if self._channel is None or svid.generation != self._generation:
            passed, self._channel = self._channel, self._make(svid)
            self._generation = svid.generation
            if passed is not None:
                spawn(passed.close(CLOSE_GRACE_S), name=f"close the old channel to {self._address}")
        return self._channel

    async def close(self) -> None:
        """Cut every call and forget the channel."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    def _make(self, svid: Svid) -> grpc.aio.Channel:
        of = svid.material
        credentials = grpc.ssl_channel_credentials(of.bundle_pem, of.key_pem, of.chain_pem)
        return grpc.aio.secure_channel(self._address, credentials, options=self._options)


def server_credentials(
    source: SvidSource, *, require_client: bool = True
) -> grpc.ServerCredentials:
    """Credentials for `server.add_secure_port` that follow `source`; raises NoCertificate.

    With `require_client` every caller must show a leaf that verifies under the present bundle; who
    it is must still be asked of `peer_facts`. Wait for the source to be ready first.
    """
    shown = _in_force(source)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        # gRPC calls this on a thread of its own at each new connection; None keeps what is in use.
        nonlocal shown
        svid = source.current
        if svid is None or svid.generation == shown.generation:
            return None
        shown = svid
        return _configuration(svid, require_client)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(shown, require_client),
        fetch,  # type: ignore[arg-type]  # the stub does not know None, the documentation does
        require_client,
    )


def peer_facts(context: grpc.aio.ServicerContext[Any, Any], verify: Verify) -> LeafFacts:
    """Who called, judged by our validator; raises SvidRefused (also if no leaf came)."""
    shown = list((context.auth_context() or {}).get("x509_pem_cert", ()))
    if len(shown) != 1:
        raise SvidRefused("peer_without_leaf", f"{len(shown)} certificates")
    try:
        der = ssl.PEM_cert_to_DER_cert(shown[0].decode("ascii"))
    except ValueError as e:
        raise SvidRefused("leaf_malformed", str(e)) from e
    return verify(der)


def _configuration(svid: Svid, require_client: bool) -> grpc.ServerCertificateConfiguration:
    of = svid.material
    return grpc.ssl_server_certificate_configuration(
        [(of.key_pem, of.chain_pem)], of.bundle_pem if require_client else None
    )


def _in_force(source: SvidSource) -> Svid:
    if (svid := source.current) is None:
        raise NoCertificate("no certificate in force")
    return svid
