"""What a checked leaf says, as plain values. Pure, so the data plane may import it."""

import datetime as dt
from dataclasses import dataclass

from certs.trust.identity import WorkloadIdentity


@dataclass(frozen=True, slots=True)
class LeafFacts:
    """Proof that `certs.trust.svid.check_leaf` accepted a leaf; only that function makes one.

    `ips` are the pod's addresses in canonical text, `serial` and `sha256` lower-case hex; the times
    are aware, in UTC.
    """

    identity: WorkloadIdentity
    ips: frozenset[str]
    serial: str
    sha256: str
    not_before: dt.datetime
    not_after: dt.datetime
