"""Which RPC may be called by whom: the whole attack surface of the CA on one screen.

An RPC that is missing here is refused, whatever else is registered. There is no debug service, no
reflection, and no exception for callers from localhost (CVE-2022-39388).
"""

import enum
from collections.abc import Mapping

from certs.server.refusals import CallerForbidden


class Needs(enum.Enum):
    """What a caller must show before the RPC's own code runs."""

    POD_TOKEN = "a token for our audience, bound to a living pod"  # noqa: S105


ACCESS: Mapping[str, Needs] = {
    "Sign": Needs.POD_TOKEN,
    "WatchBundle": Needs.POD_TOKEN,
}


def needs(rpc: str) -> Needs:
    """What `rpc` asks of its caller; raises CallerForbidden if it is not in the table."""
    try:
        return ACCESS[rpc]
    except KeyError:
        raise CallerForbidden("rpc_unknown", rpc) from None
