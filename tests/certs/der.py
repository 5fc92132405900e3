"""Just enough DER to build what `cryptography` refuses to build: read and write one element."""

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

SEQUENCE, BIT_STRING, EXTENSIONS = 0x30, 0x03, 0xA3


def element(tag: int, content: bytes) -> bytes:
    """One DER element with a definite length."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content


def elements(der: bytes) -> list[tuple[int, bytes, bytes]]:
    """Every element of `der`, one after the other, as (tag, content, whole)."""
    found = []
    while der:
        tag, size, head = der[0], der[1], 2
        if size & 0x80:
            head += size & 0x7F
            size = int.from_bytes(der[2:head], "big")
        found.append((tag, der[head : head + size], der[: head + size]))
        der = der[head + size :]
    return found


def with_extension_twice(
    cert: x509.Certificate, oid: str, issuer: ec.EllipticCurvePrivateKey
) -> bytes:
    """The same certificate with one of its extensions repeated, signed anew by `issuer`."""
    fields = _fields(cert)
    tag, content, _ = fields[-1]
    assert tag == EXTENSIONS, "a version 3 certificate ends with its extensions"
    ((_, listed, _),) = elements(content)
    wanted = element(0x06, _oid(oid))
    again = next(whole for _, body, whole in elements(listed) if body.startswith(wanted))
    extensions = element(EXTENSIONS, element(SEQUENCE, listed + again))
    return _signed(cert, [whole for _, _, whole in fields[:-1]] + [extensions], issuer)


def with_serial(
    cert: x509.Certificate, content: bytes, issuer: ec.EllipticCurvePrivateKey
) -> bytes:
    """The same certificate with these bytes as its serial number, signed anew by `issuer`."""
    whole = [field for _, _, field in _fields(cert)]
    whole[1] = element(0x02, content)  # after the version
    return _signed(cert, whole, issuer)


def as_version_1(cert: x509.Certificate, issuer: ec.EllipticCurvePrivateKey) -> bytes:
    """The same certificate as version 1, which has no extensions, signed anew by `issuer`."""
    whole = [field for _, _, field in _fields(cert)]
    return _signed(cert, whole[1:-1], issuer)  # the version comes first, extensions last


def _fields(cert: x509.Certificate) -> list[tuple[int, bytes, bytes]]:
    ((_, tbs, _),) = elements(cert.tbs_certificate_bytes)
    return elements(tbs)


def _signed(
    cert: x509.Certificate, fields: list[bytes], issuer: ec.EllipticCurvePrivateKey
) -> bytes:
    tbs = element(SEQUENCE, b"".join(fields))
    ((_, outer, _),) = elements(cert.public_bytes(Encoding.DER))
    algorithm = elements(outer)[1][2]
    signature = issuer.sign(tbs, ec.ECDSA(hashes.SHA256()))
    return element(SEQUENCE, tbs + algorithm + element(BIT_STRING, b"\0" + signature))


def _oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    out = bytearray((first * 40 + second,))
    for arc in rest:
        septets = [arc & 0x7F]
        while arc := arc >> 7:
            septets.append(0x80 | (arc & 0x7F))
        out += bytes(reversed(septets))
    return bytes(out)
