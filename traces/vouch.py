"""May this sender say this? Pure.

Where senders prove who they are, each is believed for what its own side of a link saw and for nothing
else, and nobody but the CA of certificates. What stays open: two pods of one service account cannot be
told apart by their identity.
"""

from dataclasses import dataclass

from certs.trust.identity import IdentityMalformed, WorkloadIdentity
from traces.rows import LEDGER, LINK_NAMES, SpanRow


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
        if row.own is not None and row.own != sender:
            return False  # also of a request within a link, whose name is its method
        if row.edge is None:
            # A link that names no side of its own is nobody's to tell.
            return row.name not in LINK_NAMES
        # The identity of the edge's own end is the sender's; this keeps a pod's name from filing the
        # link under another namespace.
        return row.edge[2 if row.direction == "outbound" else 5] == who.namespace
