"""Every leaf that our CA's key could sign and that must still prove nothing.

The names are for people; the reasons are those that `certs.trust.svid` must give. What stock
OpenSSL lets through is everything not listed in OPENSSL_REFUSES: the reason why the validator
exists.
"""

import datetime as dt
import functools
import ipaddress
from collections.abc import Callable

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID as Use
from cryptography.x509.oid import ExtensionOID, NameOID

from tests.certs.forge import DEFAULT, PRIVATE_OID, BadLeaf, Forge, Pair, Usage, uri_san

Recipe = Callable[[], BadLeaf]
BAD_PATHS = {
    "dot-dot": b"spiffe://cluster.local/ns/shop/../sa/api",
    "dot": b"spiffe://cluster.local/ns/./sa/api",
    "double slash": b"spiffe://cluster.local/ns//sa/api",
    "trailing slash": b"spiffe://cluster.local/ns/shop/sa/api/",
    "empty path": b"spiffe://cluster.local",
    "root path": b"spiffe://cluster.local/",
    "percent-encoded dots": b"spiffe://cluster.local/ns/%2e%2e/sa/api",
    "upper-case trust domain": b"spiffe://CLUSTER.local/ns/shop/sa/api",
    "upper-case scheme": b"SPIFFE://cluster.local/ns/shop/sa/api",
    "userinfo": b"spiffe://root@cluster.local/ns/shop/sa/api",
    "port": b"spiffe://cluster.local:443/ns/shop/sa/api",
    "query": b"spiffe://cluster.local/ns/shop/sa/api?admin",
    "fragment": b"spiffe://cluster.local/ns/shop/sa/api#x",
    "2049 bytes": b"spiffe://cluster.local/ns/shop/sa/" + b"a" * 2015,
    "non-ASCII": "spiffe://cluster.local/ns/shop/sa/\u0430pi".encode(),
    "byte 0xff": b"spiffe://cluster.local/ns/shop/sa/api\xff",
    "NUL": b"spiffe://cluster.local/ns/shop/sa/api\0.evil",
    "tab": b"spiffe://cluster.local/ns/shop/sa/a\tpi",
    "newline": b"spiffe://cluster.local/ns/shop/sa/api\n",
    "leading space": b" spiffe://cluster.local/ns/shop/sa/api",
    "other scheme": b"https://cluster.local/ns/shop/sa/api",
    "no service account": b"spiffe://cluster.local/ns/shop",
    "other path": b"spiffe://cluster.local/agent/node-1",
    "empty": b"",
}

OPENSSL_REFUSES = frozenset(
    {
        "no digitalSignature",
        "EKU serverAuth only",
        "EKU clientAuth only",
        "EKU emailProtection only",
        "expired",
        "not yet valid",
        "unknown critical extension",
        "subjectAltName twice",
        "basicConstraints twice",
        "keyUsage twice",
    }
)
"""Those that OpenSSL with its default flags refuses by itself in at least one role."""

STRICT_REFUSES = OPENSSL_REFUSES | {
    "SAN not critical with empty subject",
    "CA:TRUE",
    "keyCertSign",
    "cRLSign",
    "X.509 version 1",
}
"""Those that our contexts refuse before the validator runs, thanks to VERIFY_X509_STRICT."""


def recipes(forge: Forge) -> dict[str, Recipe]:
    """How each is made; made is none until it is asked for."""
    return {
        **_bad_names(forge),
        **_bad_usage(forge),
        **_bad_keys(forge),
        **_bad_times(forge),
        **_bad_extensions(forge),
    }


def _bad(make: Callable[[], Pair], reason: str) -> Recipe:
    def made() -> BadLeaf:
        pair = make()
        return BadLeaf(pair.key_pem, pair.chain_pem, reason)

    return made


def _bad_names(forge: Forge) -> dict[str, Recipe]:
    other = "spiffe://cluster.local/ns/prod/sa/db"
    directory = x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")]))
    found = {
        "two URI SANs": _bad(lambda: forge.leaf(uris=[DEFAULT, other]), "identity_ambiguous"),
        "the same URI SAN twice": _bad(
            lambda: forge.leaf(uris=[DEFAULT, DEFAULT]), "identity_ambiguous"
        ),
        "only a DNS SAN": _bad(lambda: forge.leaf(None, dns=["api.shop.svc"]), "identity_missing"),
        "only an IP SAN": _bad(lambda: forge.leaf(None, ips=["10.0.0.7"]), "identity_missing"),
        "only a CN": _bad(lambda: forge.leaf(san=False, subject=DEFAULT), "identity_missing"),
        "an e-mail SAN": _bad(
            lambda: forge.leaf(names=[x509.RFC822Name("a@b.example")]), "san_kind"
        ),
        "a directory name SAN": _bad(lambda: forge.leaf(names=[directory]), "san_kind"),
        "a network as an IP SAN": _bad(
            lambda: forge.leaf(names=[x509.IPAddress(ipaddress.ip_network("10.0.0.0/8"))]),
            "san_kind",
        ),
        "foreign trust domain": _bad(
            lambda: forge.leaf("spiffe://elsewhere.example/ns/shop/sa/api"), "trust_domain_foreign"
        ),
        "trust domain with a suffix": _bad(
            lambda: forge.leaf("spiffe://cluster.local.evil.example/ns/shop/sa/api"),
            "trust_domain_foreign",
        ),
        "SAN not critical with empty subject": _bad(
            lambda: forge.leaf(san_critical=False), "san_not_critical"
        ),
    }
    for name, uri in BAD_PATHS.items():
        # The parser itself refuses bytes that are no UTF-8; either way nothing is proved.
        reason = "leaf_malformed" if b"\xff" in uri else "identity_malformed"
        make = functools.partial(forge.leaf, raw_san=uri_san(uri))
        found[f"URI: {name}"] = _bad(make, reason)
    return found


def _bad_usage(forge: Forge) -> dict[str, Recipe]:
    return {
        "CA:TRUE": _bad(lambda: forge.leaf(ca=True), "leaf_is_ca"),
        "no basicConstraints": _bad(lambda: forge.leaf(constraints=False), "basic_constraints"),
        "keyCertSign": _bad(lambda: forge.leaf(usage=Usage(key_cert_sign=True)), "leaf_is_ca"),
        "cRLSign": _bad(lambda: forge.leaf(usage=Usage(crl_sign=True)), "leaf_is_ca"),
        "no keyUsage": _bad(lambda: forge.leaf(usage=None), "key_usage"),
        "keyUsage not critical": _bad(lambda: forge.leaf(usage_critical=False), "key_usage"),
        "no digitalSignature": _bad(
            lambda: forge.leaf(usage=Usage(digital_signature=False, key_encipherment=True)),
            "key_usage",
        ),
        "EKU serverAuth only": _bad(
            lambda: forge.leaf(uses=[Use.SERVER_AUTH]), "extended_key_usage"
        ),
        "EKU clientAuth only": _bad(
            lambda: forge.leaf(uses=[Use.CLIENT_AUTH]), "extended_key_usage"
        ),
        "EKU emailProtection only": _bad(
            lambda: forge.leaf(uses=[Use.EMAIL_PROTECTION]), "extended_key_usage"
        ),
        "EKU with codeSigning besides": _bad(
            lambda: forge.leaf(uses=[Use.SERVER_AUTH, Use.CLIENT_AUTH, Use.CODE_SIGNING]),
            "extended_key_usage",
        ),
        "no EKU": _bad(lambda: forge.leaf(uses=[]), "extended_key_usage"),
    }


@functools.cache
def _rsa_key() -> rsa.RSAPrivateKey:
    """Made once: of all that is made here, it alone takes time."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _bad_keys(forge: Forge) -> dict[str, Recipe]:
    return {
        "RSA-2048 key": _bad(lambda: forge.leaf(key=_rsa_key()), "leaf_key"),
        "P-384 key": _bad(
            lambda: forge.leaf(key=ec.generate_private_key(ec.SECP384R1())), "leaf_key"
        ),
        "P-521 key": _bad(
            lambda: forge.leaf(key=ec.generate_private_key(ec.SECP521R1())), "leaf_key"
        ),
        "Ed25519 key": _bad(
            lambda: forge.leaf(key=ed25519.Ed25519PrivateKey.generate()), "leaf_key"
        ),
    }


def _bad_times(forge: Forge) -> dict[str, Recipe]:
    hour = dt.timedelta(hours=1)
    return {
        "expired": _bad(
            lambda: forge.leaf(not_before=forge.now - 2 * hour, not_after=forge.now - hour),
            "leaf_expired",
        ),
        "not yet valid": _bad(
            lambda: forge.leaf(not_before=forge.now + hour, not_after=forge.now + 2 * hour),
            "leaf_not_yet_valid",
        ),
    }


def _bad_extensions(forge: Forge) -> dict[str, Recipe]:
    private = x509.UnrecognizedExtension(PRIVATE_OID, b"\x05\x00")
    padding = x509.UnrecognizedExtension(PRIVATE_OID, b"\x04\x82\x20\x00" + bytes(8192))
    twice = {
        "subjectAltName": ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        "basicConstraints": ExtensionOID.BASIC_CONSTRAINTS,
        "keyUsage": ExtensionOID.KEY_USAGE,
    }
    return {
        "unknown critical extension": _bad(
            lambda: forge.leaf(extra=[(private, True)]), "extension_unknown_critical"
        ),
        "serial number 0": _bad(lambda: forge.odd_serial(b"\x00"), "leaf_malformed"),
        "negative serial number": _bad(lambda: forge.odd_serial(b"\x85"), "leaf_malformed"),
        "serial number of 21 bytes": _bad(lambda: forge.odd_serial(b"\x01" * 21), "leaf_malformed"),
        "X.509 version 1": _bad(forge.version_1, "leaf_malformed"),
        "8 KiB of padding": _bad(lambda: forge.leaf(extra=[(padding, False)]), "leaf_too_long"),
        **{
            f"{name} twice": _bad(
                functools.partial(forge.duplicate_extension, oid), "extension_duplicate"
            )
            for name, oid in twice.items()
        },
    }
