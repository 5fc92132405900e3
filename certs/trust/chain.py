"""Whether a chain ends in a root that we trust, where no TLS handshake asks OpenSSL.

The path is built and judged by `cryptography`'s verifier under its rules for CAs of the web, which are
at least as strict as OpenSSL's with X509_V_FLAG_X509_STRICT: what one refuses in a chain, the other must
refuse too (tests/certs/trust/test_chain.py holds both to the same verdicts). Of the leaf itself only the
times and the signature are judged here: `certs.trust.svid` has its rules.
"""

import datetime as dt
import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from certs.trust.contexts import MAX_CHAIN
from certs.trust.renewal import ProofRefused
from kit.clock import Clock, utcnow

_REMEMBERED = 1024
LONGEST_RSA = 4096
"""Bits. The verifier begins at the leaf, so a signature by whatever key a peer made up is checked before
anything is known of it: with 16,384 bits for milliseconds."""
_AGNOSTIC = verification.Criticality.AGNOSTIC


class ChainChecker:
    """Judges chains against the roots of one bundle. Peers come with one chain on many tunnels, so
    those that passed are remembered, until the first certificate in them ends."""

    def __init__(self, roots_der: Iterable[bytes], clock: Clock = utcnow) -> None:
        roots = [x509.load_der_x509_certificate(root) for root in roots_der]
        self._store = verification.Store(roots) if roots else None
        self._clock = clock
        self._passed: OrderedDict[bytes, dt.datetime] = OrderedDict()

    def __call__(self, chain_der: Sequence[bytes]) -> None:
        """Raise ProofRefused unless the chain, leaf first, verifies now."""
        if not 1 <= len(chain_der) <= MAX_CHAIN:
            raise ProofRefused("chain_untrusted", f"{len(chain_der)} certificates")
        now = self._clock()
        digest = hashlib.sha256()
        for der in chain_der:
            digest.update(len(der).to_bytes(4, "big") + der)
        key = digest.digest()
        ends = self._passed.get(key)
        if ends is not None and now < ends:
            self._passed.move_to_end(key)
            return
        self._passed[key] = self._verify(chain_der, now)
        if len(self._passed) > _REMEMBERED:
            self._passed.popitem(last=False)

    def _verify(self, chain_der: Sequence[bytes], now: dt.datetime) -> dt.datetime:
        """When the first certificate of the path ends; raises ProofRefused if there is no path."""
        if self._store is None:
            raise ProofRefused("chain_untrusted", "there is no bundle yet")
        verifier = (
            verification.PolicyBuilder()
            .store(self._store)
            .time(now)
            .max_chain_depth(MAX_CHAIN)
            .extension_policies(ca_policy=_authorities(), ee_policy=_leaves())
            .build_client_verifier()
        )
        try:
            leaf, *above = map(x509.load_der_x509_certificate, chain_der)
            for each in above:
                key = each.public_key()
                if isinstance(key, rsa.RSAPublicKey) and key.key_size > LONGEST_RSA:
                    raise ValueError(f"an RSA key of {key.key_size} bits")
            path = verifier.verify(leaf, above).chain
        except Exception as e:  # as in `svid`: what a peer shows is never a bug of ours
            raise ProofRefused("chain_untrusted", str(e).partition(" (encountered")[0]) from e
        return min(each.not_valid_after_utc for each in path)


def _authorities() -> verification.ExtensionPolicy:
    """The web's rules, and OpenSSL's strict ones: every CA says which key it has, and by which key it
    was signed unless by its own (X509_V_ERR_MISSING_SUBJECT_KEY_IDENTIFIER and its sibling)."""
    return (
        verification.ExtensionPolicy.webpki_defaults_ca()
        .require_present(x509.SubjectKeyIdentifier, _AGNOSTIC, None)
        .may_be_present(x509.AuthorityKeyIdentifier, _AGNOSTIC, _names_its_issuers_key)
    )


def _leaves() -> verification.ExtensionPolicy:
    """None of the web's rules, some of which contradict SPIFFE's: `svid.check_leaf` judges leaves. But
    the verifier must find names and uses, and OpenSSL the issuer's key."""
    return (
        verification.ExtensionPolicy.permit_all()
        .require_present(x509.SubjectAlternativeName, _AGNOSTIC, None)
        .require_present(x509.ExtendedKeyUsage, _AGNOSTIC, _for_both_sides)
        .require_present(x509.AuthorityKeyIdentifier, _AGNOSTIC, None)
    )


def _names_its_issuers_key(
    _policy: verification.Policy,
    authority: x509.Certificate,
    identifier: x509.AuthorityKeyIdentifier | None,
) -> None:
    if identifier is None and authority.issuer != authority.subject:
        raise ValueError("a CA that does not say whose key signed it")


def _for_both_sides(
    _policy: verification.Policy, _leaf: x509.Certificate, uses: x509.ExtendedKeyUsage
) -> None:
    if not {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH} <= set(uses):
        raise ValueError("not for clients and servers")
