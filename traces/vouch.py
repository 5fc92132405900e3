"""May this sender say this? Pure.

Where senders prove who they are, nobody tells of another's links, and nobody but the CA of
certificates. What stays open: two pods of one service account cannot be told apart by their identity.
"""

from dataclasses import dataclass

from certs.trust.identity import IdentityMalformed, WorkloadIdentity
from traces.rows import LEDGER, SpanRow


@dataclass(frozen=True, slots=True)
class Voucher:
    """`ca` is the identity that alone may tell of certificates."""

    ca: WorkloadIdentity

    def believes(self, sender: str, resource_namespace: str, row: SpanRow) -> bool:
        """`sender` is the identity that the connection proved; `resource_namespace` the namespace that
        the resource names, or empty."""
        if row.name in LEDGER:
            return sender == str(self.ca)
        try:
            who = WorkloadIdentity.parse(sender)
        except IdentityMalformed:
            return False
        if resource_namespace not in ("", who.namespace):
            return False
        if row.edge is None:
            return True
        if row.direction == "outbound":
            kind, name, namespace = row.edge[:3]
        else:
            kind, name, namespace = row.edge[3:6]
        if kind == "identity" and name != sender:
            return False
        # Of a link without identity (its pod had no certificate yet) this is all that is known; of one
        # with it, it keeps the link from being filed under another namespace by a pod's name.
        return namespace in ("", who.namespace)
