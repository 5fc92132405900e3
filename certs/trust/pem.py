"""DER to PEM, for chains. Imports no `cryptography`. (RFC 7468.)"""

import base64
import ssl
from collections.abc import Iterable

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def to_pem(chain_der: Iterable[bytes]) -> bytes:
    """The certificates one after the other."""
    return "".join(map(ssl.DER_cert_to_PEM_cert, chain_der)).encode("ascii")


def to_der(pem: bytes) -> tuple[bytes, ...]:
    """Each certificate of a concatenation, DER."""
    return tuple(map(base64.b64decode, split_pem(pem)))


def split_pem(pem: bytes) -> list[str]:
    """Each certificate of a concatenation, as its base64 text without line ends: for comparing."""
    parts = pem.decode("ascii").split(_END)[:-1]
    return ["".join(part.partition(_BEGIN)[2].split()) for part in parts]
