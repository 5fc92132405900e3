"""Holds gRPC to TLS 1.3. Imported by `kit` and `certs` before anything of theirs imports grpc.

gRPC's Python API has no setting for the lowest TLS version; its server would speak TLS 1.2 with
whoever asks. But it takes the cipher suites of TLS 1.2 from the environment, once, when its core is
loaded. The only one left here needs an RSA certificate, and ours are all ECDSA: so no TLS 1.2
handshake with a certificate of this mesh can end, while TLS 1.3, whose suites are not configurable,
is untouched. A collector outside the mesh with an RSA certificate can still be reached.
"""

import os
import sys

_NAME = "GRPC_SSL_CIPHER_SUITES"
_SUITE = "ECDHE-RSA-AES256-GCM-SHA384"
_CORE = "grpc._cython.cygrpc"

if _CORE not in sys.modules:
    # Set, not defaulted: the environment of a pod must not be able to weaken this.
    os.environ[_NAME] = _SUITE
    _IN_TIME = True
else:
    _IN_TIME = False


class TlsTooOld(RuntimeError):
    """gRPC was loaded before it could be held to TLS 1.3: a bug in the order of imports."""

    reason = "tls_too_old"


def demand_tls13() -> None:
    """Call before listening with gRPC over TLS; raises TlsTooOld if 1.2 would be spoken too."""
    if not _IN_TIME or os.environ.get(_NAME) != _SUITE:
        raise TlsTooOld("grpc was imported before kit.tls13")
