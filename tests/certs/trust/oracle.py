"""A second opinion about leaves, which shares nothing with `certs.trust.svid`: no code, no parser.

OpenSSL prints the certificate as text, and regular expressions take the text apart. What a rule of
the X509-SVID standard or of ours asks for is looked for in what a person would read.
"""

import datetime as dt
import ipaddress
import re
import subprocess
from typing import NamedTuple

from tests.patience import PATIENCE_S

_EXTENSION = re.compile(r"^ {12}(?P<name>[^ ].*?): ?(?P<critical>critical)?\s*$")
_ID = re.compile(
    r"spiffe://(?P<td>[a-z0-9-]+(\.[a-z0-9-]+)*)/ns/(?P<ns>[a-z0-9-]{1,63})"
    r"/sa/(?P<sa>[a-z0-9.-]{1,253})\Z",
    re.ASCII,
)
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z", re.ASCII)
_KNOWN = {
    "X509v3 Basic Constraints",
    "X509v3 Key Usage",
    "X509v3 Extended Key Usage",
    "X509v3 Subject Alternative Name",
}
_BOTH = {"TLS Web Server Authentication", "TLS Web Client Authentication"}
_HASHES = ("SHA256", "SHA384", "SHA512", "sha256", "sha384", "sha512")


class Opinion(NamedTuple):
    identity: str
    ips: frozenset[str]
    serial: str


class Unlawful(Exception):
    """The text breaks a rule; which one is for the reader of a failed test."""


def opinion(der: bytes, trust_domain: str, now: dt.datetime) -> Opinion:
    """What a careful reader of OpenSSL's text makes of this leaf; raises Unlawful."""
    _demand(len(der) <= 4096, "too long")
    printed = subprocess.run(
        ["openssl", "x509", "-inform", "DER", "-noout", "-text", "-certopt", "ext_error"],
        input=der,
        capture_output=True,
        check=False,
        timeout=PATIENCE_S,
    )
    if printed.returncode != 0:
        raise Unlawful("OpenSSL cannot read it")
    text = printed.stdout.decode("latin-1")
    _head(text, now)
    found = _extensions(text)
    _uses(found)
    identity, ips = _names(found, text)
    if identity.split("/")[2] != trust_domain:
        raise Unlawful("trust domain")
    return Opinion(identity, ips, _serial(text))


def _demand(holds: object, rule: str) -> None:
    if not holds:
        raise Unlawful(rule)


def _head(text: str, now: dt.datetime) -> None:
    _demand("Version: 3 (0x2)" in text, "version")
    _demand("Public Key Algorithm: id-ecPublicKey" in text, "key algorithm")
    _demand(re.search(r"ASN1 OID: prime256v1\n", text), "curve")
    inner, outer = re.findall(r"Signature Algorithm: (\S+)", text)
    _demand(inner == outer, "two signature algorithms")
    _demand(any(h in inner for h in _HASHES), "hash")
    starts, ends = (
        dt.datetime.strptime(re.search(rf"Not {w}\s*: (.+) GMT", text)[1], "%b %d %H:%M:%S %Y")  # type: ignore[index]
        for w in ("Before", "After ")
    )
    naive = now.replace(tzinfo=None)
    _demand(starts <= naive < ends, "time")


def _serial(text: str) -> str:
    short = re.search(r"Serial Number: (-?)(\d+) \((-?)0x([0-9a-f]+)\)", text)
    if short:
        negative, number = short[1], int(short[2])
    else:
        long = re.search(r"Serial Number:\s*\n\s*( \(Negative\))?\s*([0-9a-f:]+)\n", text)
        if long is None:
            raise Unlawful("serial")
        negative, number = long[1] or "", int(long[2].replace(":", ""), 16)
    _demand(not negative and 0 < number < 1 << 159, "serial")
    return f"{number:x}"


def _extensions(text: str) -> dict[str, tuple[bool, str]]:
    """Name -> (critical, the lines below it)."""
    found: dict[str, tuple[bool, str]] = {}
    name, critical, lines = "", False, list[str]()
    body = text.partition("X509v3 extensions:\n")[2].partition("\n    Signature Algorithm")[0]
    for line in [*body.split("\n"), " " * 12 + "end: "]:
        head = _EXTENSION.match(line)
        if head is None:
            lines.append(line.strip(" "))
            continue
        if name:
            _demand(name not in found, "an extension twice")
            found[name] = (critical, "\n".join(lines))
        name, critical, lines = head["name"], bool(head["critical"]), []
    for name, (critical, _) in found.items():
        _demand(not critical or name in _KNOWN, "unknown critical extension")
    return found


def _uses(found: dict[str, tuple[bool, str]]) -> None:
    _demand("X509v3 Basic Constraints" in found, "no basicConstraints")
    # A certificate of an end entity may leave CA:FALSE unsaid, for it is DER's default.
    _demand("CA:TRUE" not in found["X509v3 Basic Constraints"][1], "CA:TRUE")
    critical, usage = found.get("X509v3 Key Usage", (False, ""))
    _demand(critical, "keyUsage missing or not critical")
    bits = set(usage.split(", "))
    _demand("Digital Signature" in bits, "no digitalSignature")
    _demand(not bits & {"Certificate Sign", "CRL Sign"}, "may sign certificates")
    uses = found.get("X509v3 Extended Key Usage", (False, ""))[1]
    _demand(set(uses.split(", ")) == _BOTH, "extendedKeyUsage")


def _names(found: dict[str, tuple[bool, str]], text: str) -> tuple[str, frozenset[str]]:
    _demand("X509v3 Subject Alternative Name" in found, "no subjectAltName")
    critical, names = found["X509v3 Subject Alternative Name"]
    subject = re.search(r"^ {8}Subject:(.*)$", text, re.M)
    _demand(critical or (subject and subject[1].strip()), "subjectAltName not critical")
    uris, ips = list[str](), set[str]()
    for name in names.split(", "):
        kind, _, value = name.partition(":")
        if kind == "URI":
            uris.append(value)
        elif kind == "IP Address":
            _demand(not value.startswith("<invalid"), "a network")
            address = ipaddress.ip_address(value)
            mapped = getattr(address, "ipv4_mapped", None)
            ips.add(str(mapped or address))
        else:
            _demand(kind == "DNS", f"a name of kind {kind}")
    _demand(len(uris) == 1, f"{len(uris)} URIs")
    identity = _ID.match(uris[0])
    _demand(identity, "no identity of ours")
    assert identity is not None
    _demand(len(uris[0]) <= 2048 and len(identity["td"]) <= 255, "too long")
    for part in (*identity["td"].split("."), identity["ns"], *identity["sa"].split(".")):
        _demand(_LABEL.match(part), f"label {part!r}")
    return uris[0], frozenset(ips)
