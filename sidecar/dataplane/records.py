"""Fills the records of links: on the acceptor's side from what was checked there, on both at a cut."""

from certs.trust.facts import LeafFacts
from kit.contract import CONFIG_PREFIX
from policy.judge import Permit
from sidecar.dataplane.loop.connect import APP_TIMEOUT_S
from sidecar.dataplane.plane import Plane
from sidecar.dataplane.tunnels.tunnel import Tunnel
from sidecar.directory import Workload
from sidecar.errors import (
    AppUnreachable,
    Denied,
    EndpointUnreachable,
    PeerBanned,
    PeerLost,
    SidecarError,
)
from sidecar.report import LinkRecord
from sidecar.wire.opening import CUT_AT_EXPIRY, CUT_BY_BAN, RESETS, SHUTDOWN


def new_record(plane: Plane, peer: tuple[str, int], to: tuple[str, int]) -> LinkRecord:
    """The record of a link that came from `peer` (IP, port) and was going to `to`."""
    record = LinkRecord("inbound")
    plane.new_ids(record)
    record.start_ns = plane.unix_ns()
    record.source_ip, record.source_port = peer
    record.original_ip, record.original_port = to
    record.destination_ip, record.destination_port = to
    record.destination_pod = plane.own.pod
    if plane.trust is not None:
        record.destination_identity = plane.trust.identity
    known = plane.directory.known(peer[0])
    if isinstance(known, Workload):
        record.source_pod = known.pod
    return record


def describe_peer(record: LinkRecord, tunnel: Tunnel) -> None:
    """Who is at the other end of the tunnel, by its checked leaf."""
    peer = tunnel.peer
    record.source_identity = tunnel.peer_name
    record.peer_serial, record.peer_sha256 = peer.serial, peer.sha256
    record.peer_not_after = int(peer.not_after.timestamp())
    record.direct, record.tls_cipher, record.alpn = tunnel.direct, tunnel.cipher, tunnel.alpn


def refused_peer(record: LinkRecord, leaf: LeafFacts) -> None:
    """Who was refused at the handshake though its leaf is lawful: whoever asks for that identity finds
    its attempts."""
    record.source_identity = str(leaf.identity)
    record.peer_serial, record.peer_sha256 = leaf.serial, leaf.sha256
    record.peer_not_after = int(leaf.not_after.timestamp())


def error_of_cut(code: int) -> SidecarError:
    """Why a link that no app has heard of yet was cut; `code` is that of its RESET."""
    if code == CUT_BY_BAN:
        return PeerBanned("the peer was banned before the link was open")
    if code == CUT_AT_EXPIRY:
        return PeerLost("the tunnel's certificates ended before the link was open")
    if code == SHUTDOWN:
        return PeerLost("the proxy stopped before the link was open")
    return PeerLost(f"the link was cut before it was open ({RESETS.get(code, code)})")


def no_app(port: int, error: SidecarError | None, *, on_loopback: bool) -> AppUnreachable:
    """Why the app did not take a connection that was let in; `error` is what its address answered, and
    `on_loopback` whether it listens there."""
    if is_silent(error):
        return AppUnreachable(
            f"the app took no connection on port {port} for {APP_TIMEOUT_S:.0f} s: its queue is full"
        )
    if on_loopback:
        return AppUnreachable(
            f"the app listens on port {port} on loopback only: have it listen on the pod's address, "
            f"or annotate the pod with {CONFIG_PREFIX}expose-loopback-ports: '{port}'"
        )
    return AppUnreachable(f"nothing listens on port {port}")


def is_silent(error: SidecarError | None) -> bool:
    """Whether nobody answered at all: somebody listens there, or packets are dropped."""
    return isinstance(error, EndpointUnreachable) and error.silent


def explain(record: LinkRecord, error: SidecarError) -> None:
    """Why there is no link; for a denial also which rule spoke, and which came nearest."""
    record.reason, record.error = error.reason, str(error)
    if isinstance(error, PeerBanned) and error.leaf is not None and record.direction == "inbound":
        refused_peer(record, error.leaf)
    if isinstance(error, Denied):
        record.policy, record.rule, record.nearest_rule = error.policy, error.rule, error.nearest


def permitted(record: LinkRecord, permit: Permit) -> None:
    """The link is let in: by which rule, or past which auditing policy that would have refused it."""
    if permit.would_deny:
        record.verdict, record.policy, record.rule = (
            "audited",
            permit.would_deny,
            permit.would_deny_rule,
        )
        if not record.reason:  # plaintext has said its own
            record.reason = Denied.reason
    else:
        record.verdict, record.policy, record.rule = "allowed", permit.policy, permit.rule
