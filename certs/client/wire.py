"""One connection to the CA: ask for a signature, or watch the bundle.

The CA is recognised by its DNS name in a certificate under the roots we know: those of the mounted
ConfigMap, and those the CA itself told us about since. An address that is an IP is refused, since
any pod's leaf carries its own IP and could pass for the CA there.
"""

import base64
import datetime as dt
import ipaddress
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import grpc

from certs.trust.bundle import BundleRefused, TrustBundle

SIGN_TIMEOUT_S = 15.0
_DOUBT_S = 60.0
_MAX_TOKEN_BYTES = 16 * 1024
_MAX_ANSWER_BYTES = 1024 * 1024
"""Sixteen roots and a thousand bans take less than half of it."""
_OPTIONS: list[tuple[str, int | str]] = [
    # The address is the mesh's own: no proxy out of somebody's environment belongs in between.
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", _MAX_ANSWER_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 10_000),
    # Two clients in one process must not share a connection made under older roots.
    ("grpc.use_local_subchannel_pool", 1),
]


class CaUnreachable(Exception):
    """The CA cannot even be called: no token, no bundle, or an address that proves nothing."""

    reason = "ca_unreachable"


@dataclass(frozen=True, slots=True)
class CaAddress:
    """Where the CA is, and where its token and roots lie. Files are read anew at each use."""

    address: str
    token_path: Path
    bundle_path: Path
    trust_domain: str
    server_name: str | None = None
    """The DNS name to expect, if `address` is not that name itself."""

    def channel(self, learnt_roots: Iterable[bytes] = ()) -> grpc.aio.Channel:
        """A fresh channel; raises CaUnreachable."""
        host = self.address.rpartition(":")[0].strip("[]")
        if self.server_name is None and _is_ip(host):
            raise CaUnreachable(f"the CA's address must be a name, not {host}")
        options = list(_OPTIONS)
        if self.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.server_name))
        roots = grpc.ssl_channel_credentials(self._roots_pem(learnt_roots))
        return grpc.aio.secure_channel(self.address, roots, options=options)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The token as it lies there now (the kubelet renews it); raises CaUnreachable."""
        try:
            with self.token_path.open("rb") as file:
                token = file.read(_MAX_TOKEN_BYTES + 1).decode("ascii").strip()
        except (OSError, ValueError) as e:
            raise CaUnreachable(f"{self.token_path}: {e}") from e
        if not token or len(token) > _MAX_TOKEN_BYTES or not token.isprintable():
            raise CaUnreachable(f"{self.token_path}: no token in it")
        return (("authorization", f"Bearer {token}"),)

    def clock_doubt(self, now: dt.datetime) -> str:
        """What the token's own times say against this node's clock; "" if nothing.

        They are claims that nobody checked, good for a hint in a log: with a wrong clock the CA's
        certificate itself seems expired, and TLS can only say that it does not verify.
        """
        try:
            payload = self.metadata()[0][1].split(".")[1]
            claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
            issued, ends = float(claims["iat"]), float(claims["exp"])
        except (CaUnreachable, IndexError, KeyError, TypeError, ValueError):
            return ""
        if (behind_s := issued - now.timestamp()) > _DOUBT_S:
            return f"this node's clock is at least {behind_s:.0f} s behind the API server's"
        if (ahead_s := now.timestamp() - ends) > _DOUBT_S:
            return f"this node's clock is {ahead_s:.0f} s past the token's end: is it ahead?"
        return ""

    def _roots_pem(self, learnt_roots: Iterable[bytes]) -> bytes:
        learnt = tuple(learnt_roots)
        try:
            pem = self.bundle_path.read_bytes()
            mounted = TrustBundle.from_pem(self.trust_domain, 0, pem).roots
        except (OSError, BundleRefused) as e:
            if not learnt:
                raise CaUnreachable(f"{self.bundle_path}: {e}") from e
            mounted = ()
        both = dict.fromkeys((*mounted, *learnt))
        return TrustBundle(self.trust_domain, 0, tuple(both)).to_pem()


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
