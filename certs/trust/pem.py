"""DER to PEM, for chains. Imports no `cryptography`. (RFC 7468.)"""

import ssl
from collections.abc import Iterable


def to_pem(chain_der: Iterable[bytes]) -> bytes:
    """The certificates one after the other."""
    return "".join(map(ssl.DER_cert_to_PEM_cert, chain_der)).encode("ascii")
