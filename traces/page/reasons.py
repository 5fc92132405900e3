"""What each reason means, in a few words for the page. docs/reasons.md says more; a test holds the
two together."""

from collections.abc import Iterable, Mapping
from typing import Final

SAYS: Final[Mapping[str, str]] = {
    "alpn_mismatch": "the other side speaks TLS, but not podlink's protocol",
    "app_unreachable": "nothing listens on the app's port",
    "banned": "the CA has banned this identity, pod or certificate",
    "bug": "podlink broke a promise of its own",
    "endpoint_unreachable": "the endpoint took no connection in time",
    "external": "leaves the mesh",
    "external_denied": "leaves the mesh, which this pod may not",
    "handshake_failed": "TLS did not come about",
    "handshake_timeout": "the other side did not answer in time",
    "host_network": "the other pod shares its node's address",
    "identity_mismatch": "somebody else answered than was expected at that address",
    "no_certificate": "this side had no certificate in force",
    "no_endpoints": "the Service had nobody to answer",
    "overloaded": "this side takes no more for now",
    "own_port": "aimed at podlink itself",
    "peer_lost": "the tunnel broke",
    "peer_untrusted": "a certificate that is no valid SVID",
    "permissive": "let in because 'plaintext: allow' says so",
    "plaintext_denied": "no mutual TLS, where only mesh peers may come in",
    "policy_denied": "policy says no",
    "protocol_error": "the protocol was broken",
    "registry_unavailable": "nobody could say who is at that address",
    "self": "never left the pod",
    "skip_port": "this port is left out of capture",
    "unmeshed_peer": "the other pod has no sidecar",
}


def in_words(reasons: Iterable[str]) -> str:
    """Reasons as one line; an unknown slug stands for itself."""
    return "; ".join(SAYS.get(reason, reason) for reason in reasons)
