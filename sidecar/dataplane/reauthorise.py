"""Judges every open link again when what is in force changes, and cuts those that are now denied.

A link was let in by the rules of its first moment; one that outlived them would make a revocation a
matter of patience. Only the receiving end judges; a change of `external` ends links of our own app.
"""

from policy.judge import Denial, judge
from sidecar.authorise import refusal
from sidecar.dataplane.context import LiveLink, Plane
from sidecar.errors import ExternalDenied, SidecarError

_OUTSIDE = frozenset({"external", "unmeshed_peer", "host_network"})


def reauthorise(plane: Plane) -> int:
    """Cut what may no longer be, by `plane.policy` and `plane.allow_external`; returns how many."""
    cut = 0
    for link in list(plane.live):
        error = _objection(plane, link)
        if error is not None:
            link.deny(error)
            cut += 1
    return cut


def _objection(plane: Plane, link: LiveLink) -> SidecarError | None:
    record = link.record
    if record.direction == "outbound":
        if (
            record.security == "plaintext"
            and record.reason in _OUTSIDE
            and not plane.allow_external
        ):
            where = record.destination_pod or record.destination_ip
            return ExternalDenied(f"{where} is outside the mesh ({record.reason})")
        return None
    peer = link.peer.identity if link.peer is not None else None
    verdict = judge(peer, record.source_ip, record.destination_port, plane.policy)
    return refusal(verdict) if isinstance(verdict, Denial) else None
