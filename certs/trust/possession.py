"""Makes and judges proofs that a new leaf is ours, or a peer's. What they cover is in `renewal`.

The judge is the handshake's, in the same order of trust: the SVID rules and bans (the very callable that
judges handshakes), the chain against the bundle in force, the key by its signature.
"""

import hashlib
from collections.abc import Callable, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from certs.trust.bans import Verify
from certs.trust.facts import LeafFacts
from certs.trust.renewal import Claim, ProofRefused

_ECDSA = ec.ECDSA(hashes.SHA256())


class Prover:
    """Signs for one leaf. Holds the key that its TLS contexts hold, and no longer than they do."""

    __slots__ = ("_key", "leaf")

    def __init__(self, key_pem: bytes, leaf_der: bytes) -> None:
        """Raises ValueError for a key that is not on P-256."""
        key = load_pem_private_key(key_pem, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError(f"a key of kind {type(key).__name__}")
        self._key = key
        self.leaf = hashlib.sha256(leaf_der).digest()

    def __call__(self, claim: Claim) -> bytes:
        """The signature (ECDSA with SHA-256, DER)."""
        return self._key.sign(claim.signed_bytes(self.leaf), _ECDSA)


class ProofJudge:
    """Judges a peer's chain and signature for a claim.

    `verify` is who judges leaves in handshakes; `trusts` judges chains and is set anew with each bundle.
    """

    def __init__(self, verify: Verify, trusts: Callable[[Sequence[bytes]], None]) -> None:
        self._verify, self.trusts = verify, trusts

    def __call__(self, chain_der: Sequence[bytes], signature: bytes, claim: Claim) -> LeafFacts:
        """The facts of the new leaf; raises ProofRefused, or what `verify` does."""
        if not chain_der:
            raise ProofRefused("malformed", "no certificate", forged=True)
        facts = self._verify(chain_der[0])
        self.trusts(chain_der)
        public = x509.load_der_x509_certificate(chain_der[0]).public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)  # `verify` has seen to it
        try:
            public.verify(signature, claim.signed_bytes(bytes.fromhex(facts.sha256)), _ECDSA)
        except InvalidSignature as e:
            raise ProofRefused(
                "signature", "not made by this leaf's key for this tunnel", forged=True
            ) from e
        return facts
