"""Every way a link can fail, and who is to blame.

`reason` is a fixed slug: spans, metrics, logs and alerts all use it, so the set below is part of
podlink's public interface (docs/reasons.md lists it, and a test compares the two).
"""

from certs.trust.facts import LeafFacts


class SidecarError(Exception):
    """Base of all; never raised itself."""

    reason = "internal"


class PeerError(SidecarError):
    """The other side broke a rule. Expected on a hostile network; never a traceback."""


class ProtocolViolation(PeerError):
    """A frame that the tunnel protocol does not allow here, or a malformed one."""

    reason = "protocol_error"


class HandshakeFailed(PeerError):
    """TLS did not come about: no certificate, unknown root, wrong version, or no TLS at all."""

    reason = "handshake_failed"


class AlpnMismatch(PeerError):
    """TLS came about, but the peer speaks no tunnel protocol of ours. Python does not fail on this."""

    reason = "alpn_mismatch"


class PeerUntrusted(PeerError):
    """The peer's leaf is no valid SVID, though OpenSSL accepted its chain."""

    reason = "peer_untrusted"


class IdentityMismatch(PeerError):
    """A valid SVID, but not the one expected at this pod IP."""

    reason = "identity_mismatch"


class PeerBanned(PeerError):
    """The peer's identity, pod or leaf is on the CA's ban list, or our own is."""

    reason = "banned"

    def __init__(self, message: str, leaf: LeafFacts | None = None) -> None:
        super().__init__(message)
        self.leaf = leaf
        """What the peer showed, proved to hold the key of, and was refused for."""


class LeafElsewhere(PeerError):
    """A lawful leaf, shown from where its pod is not, or in the name of a pod that is no more."""

    reason = "leaf_elsewhere"


class PeerOverloaded(PeerError):
    """The peer takes no more links now: a limit of its own is reached, or ours there."""

    reason = "peer_overloaded"


class Denied(PeerError):
    """Policy says no: which policy and rule, and the rule that came nearest to allowing it."""

    reason = "policy_denied"

    def __init__(
        self, message: str, *, policy: str = "", rule: str = "", nearest: str = ""
    ) -> None:
        super().__init__(f"{message} (nearest: {nearest})" if nearest else message)
        self.policy, self.rule, self.nearest = policy, rule, nearest


class PlaintextDenied(Denied):
    """A plaintext connection where only mesh peers may come in."""

    reason = "plaintext_denied"


class ExternalDenied(Denied):
    """The app may not leave the mesh (`external: deny`)."""

    reason = "external_denied"


class OwnPort(PeerError):
    """The original destination is one of our own ports: a loop or an attack."""

    reason = "own_port"


class HandshakeTimeout(PeerError):
    """The peer did not finish its handshake, or did not open a link, in time."""

    reason = "handshake_timeout"


class PeerLost(PeerError):
    """The tunnel broke before the link had ended on both sides.

    `orderly`: the peer said by TLS that it closes, so all that it had sent has been read. A FIN says
    nothing of the kind: whoever sits on the path may send one, and hold back what came before it.
    """

    reason = "peer_lost"

    def __init__(self, message: str, *, orderly: bool = False) -> None:
        super().__init__(message)
        self.orderly = orderly


class LocalError(SidecarError):
    """The app, our settings, our CA or our registry let us down. Retrying may help."""


class AppUnreachable(LocalError):
    """Nothing accepts connections on the app's port."""

    reason = "app_unreachable"


class EndpointUnreachable(LocalError):
    """The chosen endpoint does not accept connections. `silent`: it did not even refuse one."""

    reason = "endpoint_unreachable"

    def __init__(self, message: str, *, silent: bool = False) -> None:
        super().__init__(message)
        self.silent = silent


class NoEndpoints(LocalError):
    """The Service has no endpoint that may be dialled."""

    reason = "no_endpoints"


class Overloaded(LocalError):
    """A limit of ours is reached: memory, descriptors, or open links."""

    reason = "overloaded"


class NotReady(LocalError):
    """We hold no certificate yet, or ours has expired."""

    reason = "no_certificate"


class RegistryUnavailable(LocalError):
    """Nobody can say who is at this address of the cluster, so we do not dial it."""

    reason = "registry_unavailable"


class Bug(SidecarError):
    """Our own code failed. The link that it served ends by that, and no other."""

    reason = "bug"

    @classmethod
    def of(cls, error: Exception) -> SidecarError:
        """What a callback raised, as the end of the link it served."""
        if isinstance(error, SidecarError):
            return error
        return cls(f"podlink's own code failed: {type(error).__name__} (the proxy's log has more)")
