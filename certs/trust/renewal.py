"""What a proof of a new leaf inside a running tunnel covers, and whose it must be. Pure.

A proof is a signature by the new leaf's key over `Claim.signed_bytes`. It is made for one tunnel, one
direction and one moment: nonces of both sides, the role of who proves, the leaf believed so far, the
other side's leaf and the new one. (docs/protocol.md, "A new leaf"; the idea is RFC 9261's.)
"""

from dataclasses import dataclass
from typing import NamedTuple

from certs.trust.bans import RANDOM_BITS
from certs.trust.facts import LeafFacts

NONCE_BYTES = 32
_CONTEXT = b" " * 64 + b"podlink/2, proof of a new leaf" + b"\0"
"""Built as TLS 1.3 builds what CertificateVerify signs (RFC 8446, section 4.4.3), with words of our own:
no signature that this key makes in a handshake is one here, or the other way round."""


class OwnLeaf(NamedTuple):
    """What one side must know of its own leaf, once peers believe it."""

    digest: bytes
    """SHA-256 of its DER."""
    expires_at: float
    """Its end by this process's monotonic clock."""


class ProofRefused(Exception):
    """This proof moves nothing. `reason` is a stable slug; the text adds what was found.

    `forged`: no honest peer sends it, whatever its clock, its bundle or its CA's state may be.
    """

    def __init__(self, reason: str, detail: str = "", *, forged: bool = False) -> None:
        super().__init__(f"{reason}: {detail[:256]}" if detail else reason)
        self.reason, self.forged = reason, forged


@dataclass(frozen=True, slots=True)
class Claim:
    """All that a proof is about besides the new leaf. Digests are SHA-256 of a leaf's DER."""

    by_dialler: bool
    """Whether the side that proves dialled the tunnel: a proof sent back to its maker is none."""
    prover_nonce: bytes
    judge_nonce: bytes
    former_leaf: bytes
    """The one by which the side that proves was believed in this tunnel so far."""
    judge_leaf: bytes
    """The one by which the side that judges is believed in this tunnel."""
    channel: bytes
    """What only the two ends of this TLS connection know of it (`Tunnel.channel`): whoever holds the
    keys of both former leaves has two connections, and carries no proof from one to the other."""

    def signed_bytes(self, new_leaf: bytes) -> bytes:
        """What the key of the new leaf (given by its digest) signs. Every field has a fixed size."""
        fields = (
            self.prover_nonce,
            self.judge_nonce,
            self.former_leaf,
            self.judge_leaf,
            self.channel,
            new_leaf,
        )
        assert all(len(each) == NONCE_BYTES for each in fields)
        return _CONTEXT + (b"\1" if self.by_dialler else b"\2") + b"".join(fields)


def check_same_workload(former: LeafFacts, new: LeafFacts, *, names_pods: bool) -> None:
    """Raise ProofRefused unless `new` is a later leaf of the very workload that showed `former`.

    `names_pods`: leaves carry their pod in serial and addresses, as our CA's do. Under a SPIFFE agent
    a pod is known by its identity alone, in the handshake as here.
    """
    if new.identity != former.identity:
        raise ProofRefused("identity_changed", f"{former.identity} has become {new.identity}")
    if names_pods:
        if int(new.serial, 16) >> RANDOM_BITS != int(former.serial, 16) >> RANDOM_BITS:
            raise ProofRefused("pod_changed", "a leaf of another pod")
        if not former.ips <= new.ips:  # a pod may have got an address; none is ever taken from it
            raise ProofRefused("pod_changed", "without " + ", ".join(sorted(former.ips - new.ips)))
    if new.not_after <= former.not_after:
        raise ProofRefused("not_later", f"it ends {new.not_after.isoformat()}")
