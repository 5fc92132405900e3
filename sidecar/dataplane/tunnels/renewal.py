"""Links outlive leaves: each side proves its next leaf inside the running tunnel (docs/protocol.md).

    us                                   the peer
    RENEW      a nonce of ours    ->
                                  <-     CHALLENGE  a nonce of the peer's
    PROOF      chain, signature   ->     judged as in a handshake: leaf, bans, chain, key; the same pod
                                  <-     RENEWED    and only now the tunnel's end moves, on both sides

Nothing is kept for a tunnel at rest, and only tunnels that carry a link are renewed: an idle one is
replaced. Where a proof would not be heard in time a new handshake does the same (`continuation`).
Whoever proves nothing in time is cut at the end of its leaf (`sweep`), as under `podlink/1`.
"""

import random
import secrets
from collections import Counter
from math import ceil
from typing import Final

from certs.trust.bans import Banned
from certs.trust.facts import LeafFacts
from certs.trust.renewal import Claim, ProofRefused, check_same_workload
from sidecar.dataplane.plane import LiveLink, Plane, Trust
from sidecar.dataplane.revocation import objection
from sidecar.dataplane.tunnels.continuation import Continuations
from sidecar.dataplane.tunnels.place import contradicted
from sidecar.dataplane.tunnels.tunnel import Tunnel
from sidecar.errors import LeafElsewhere, ProtocolViolation, SidecarError
from sidecar.report import LinkRecord, utc_text
from sidecar.wire.frames import CHALLENGE, CONTINUE, CONTINUED, PROOF, RENEW, RENEWED, encode
from sidecar.wire.opening import CUT_BY_BAN
from sidecar.wire.renewal import (
    BELIEVED,
    NONCE_BYTES,
    NOT_LATER,
    NOT_NOW,
    OTHER_WORKLOAD,
    OUTCOMES,
    UNTRUSTED,
    WORTH_ANOTHER_TRY,
    Judging,
    Proving,
    check_nonce,
    check_order,
    decode_outcome,
    decode_proof,
    encode_outcome,
    encode_proof,
)
from sidecar.wire.session import Role

TICK_S: Final = 0.1
SPREAD_S: Final = 30.0
"""Over so long the tunnels of a proxy that has a new leaf are renewed, or a quarter of what is left to
the first of them: thousands at once would be a burst of signatures at both ends."""
AGAIN_AFTER_S: Final = 30.0
"""A peer that would not believe us yet is asked again after so long, or an eighth of what is left."""
SOONEST_S: Final = 0.25
RENEWALS_TOLD: Final = 16
"""The newest so many stand in a link's record."""

_CODES: Final = {
    "not_later": NOT_LATER,
    "identity_changed": OTHER_WORKLOAD,
    "pod_changed": OTHER_WORKLOAD,
}


class _UnderWay:
    """What is under way on one tunnel, in either direction."""

    __slots__ = ("judge_nonce", "judging", "nonce", "peer_nonce", "proved", "proving")

    def __init__(self) -> None:
        self.proving = Proving.RESTING
        self.nonce = b""
        self.proved: Trust | None = None
        self.judging = Judging.RESTING
        self.peer_nonce = self.judge_nonce = b""


class Renewals:
    """The renewals of all tunnels of a plane: a `tunnel.Renews`."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._under_way: dict[Tunnel, _UnderWay] = {}
        self._queue: dict[Tunnel, None] = {}
        """Whose turn to be renewed will come."""
        self._resting: dict[Tunnel, bytes] = {}
        """Tunnels whose peer would not believe the leaf of this digest, now or at all."""
        self._continuations = Continuations(plane, self._continued)
        self._was_continued: dict[Tunnel, None] = {}
        """A proof that was under way meanwhile names leaves of before: it is no forgery."""
        self._per_tick = 0
        self._ticking = False
        self.ours: Counter[str] = Counter()
        """What peers said of our proofs, by outcome."""
        self.theirs: Counter[str] = Counter()
        """What we said of theirs."""

    # --- ours: when -------------------------------------------------------------------------

    def look(self) -> None:
        """Called when we have a new leaf, and every few seconds: give a turn to each link's tunnel whose
        peer has not heard of our newest leaf."""
        self._renew()
        self._continuations.look()

    def _renew(self) -> None:
        plane, queue = self._plane, self._queue
        trust = plane.trust
        if trust is None or trust.prove is None:
            return
        found = [
            tunnel
            for link in plane.live
            if (tunnel := link.tunnel) is not None
            and tunnel.own is not trust.own
            and tunnel not in queue
            and self._is_due(tunnel, trust)
        ]
        if not found:
            return
        random.shuffle(found)
        queue.update(dict.fromkeys(found))
        left_s = min(tunnel.own.expires_at for tunnel in found) - plane.now()
        window_s = max(TICK_S, min(SPREAD_S, left_s / 4))
        self._per_tick = max(1, ceil(len(queue) * TICK_S / window_s))
        if not self._ticking:
            self._ticking = True
            plane.poller.call_later(random.uniform(0, TICK_S), self._tick)  # noqa: S311

    def _tick(self) -> None:
        for tunnel in list(self._queue)[: self._per_tick]:
            del self._queue[tunnel]
            self._plane.poller.call(self._ask, tunnel)
        if self._queue:
            self._plane.poller.call_later(TICK_S, self._tick)
        else:
            self._ticking = False

    def broken(self, error: Exception) -> None:
        """A renewal of ours could not begin: the link ends with its leaf, and the others go on."""

    def _is_due(self, tunnel: Tunnel, trust: Trust) -> bool:
        """A leaf that ends no later moves nothing: the one after it will."""
        if not tunnel.renewable or trust.own.expires_at <= tunnel.own.expires_at:
            return False
        if tunnel.channel is None:  # nothing that a proof could be bound to
            return False
        if self._resting.get(tunnel) == trust.own.digest:
            return False
        state = self._under_way.get(tunnel)
        return state is None or state.proving is Proving.RESTING

    # --- ours: how --------------------------------------------------------------------------

    def _ask(self, tunnel: Tunnel) -> None:
        trust = self._plane.usable_trust()
        if trust is None or trust.prove is None or not self._is_due(tunnel, trust):
            return
        state = self._under_way.setdefault(tunnel, _UnderWay())
        state.proving, state.nonce = Proving.ASKED, secrets.token_bytes(NONCE_BYTES)
        tunnel.write(encode(RENEW, state.nonce))

    def _prove(self, tunnel: Tunnel, state: _UnderWay, judge_nonce: bytes) -> None:
        trust = self._plane.trust
        assert (
            trust is not None and trust.prove is not None
        )  # `_ask` had them, and they only get newer
        channel = tunnel.channel
        assert channel is not None  # it does not change, and `_is_due` has seen it
        claim = Claim(
            tunnel.session.role is Role.DIALLER,
            state.nonce,
            judge_nonce,
            tunnel.own.digest,
            bytes.fromhex(tunnel.peer.sha256),
            channel,
        )
        state.proving, state.proved = Proving.PROVED, trust
        tunnel.write(encode(PROOF, encode_proof(trust.prove(claim), trust.chain)))

    def _answered(self, tunnel: Tunnel, state: _UnderWay, code: int) -> None:
        """The peer's RENEWED. It may say what it likes: our own leaf's end binds us all the same."""
        proved, plane = state.proved, self._plane
        state.proving, state.proved, state.nonce = Proving.RESTING, None, b""
        self.ours[OUTCOMES.get(code, "unknown")] += 1
        if code == BELIEVED:
            if proved is None:
                raise ProtocolViolation("RENEWED without a proof")
            tunnel.own = proved.own
            self._resting.pop(tunnel, None)
            return self._move_end(tunnel)
        trust = plane.trust
        if trust is not None:
            self._resting[tunnel] = trust.own.digest
        if code in WORTH_ANOTHER_TRY:
            left_s = tunnel.expires_at - plane.now()
            wait_s = max(SOONEST_S, min(AGAIN_AFTER_S, left_s / 8))
            plane.poller.call_later(wait_s * random.uniform(0.5, 1.0), self._again, tunnel)  # noqa: S311
        return None

    def _again(self, tunnel: Tunnel) -> None:
        if self._resting.pop(tunnel, None) is not None and tunnel.link is not None:
            self._ask(tunnel)

    # --- the peer's -------------------------------------------------------------------------

    def _challenge(self, tunnel: Tunnel, state: _UnderWay, peer_nonce: bytes) -> None:
        plane = self._plane
        if tunnel.channel is None:  # nothing that a proof could be bound to
            return self._say(tunnel, NOT_NOW)
        if plane.judge_proof is None or not plane.renewal_rate.take(tunnel.peer_ip, plane.now()):
            plane.count_turned_away("renewals_per_source")
            return self._say(tunnel, NOT_NOW)
        state.judging, state.peer_nonce = Judging.CHALLENGED, peer_nonce
        state.judge_nonce = secrets.token_bytes(NONCE_BYTES)
        tunnel.await_proof(True)
        tunnel.write(encode(CHALLENGE, state.judge_nonce))
        return None

    def _judge(self, tunnel: Tunnel, state: _UnderWay, payload: bytes) -> None:
        """Raises ProtocolViolation for what no honest peer sends."""
        plane = self._plane
        channel = tunnel.channel
        assert channel is not None  # else there was no challenge
        claim = Claim(
            tunnel.session.role is Role.ACCEPTOR,  # the peer dialled
            state.peer_nonce,
            state.judge_nonce,
            bytes.fromhex(tunnel.peer.sha256),
            tunnel.own.digest,
            channel,
        )
        state.judging, state.peer_nonce, state.judge_nonce = Judging.RESTING, b"", b""
        tunnel.await_proof(False)
        signature, chain = decode_proof(payload)
        assert plane.judge_proof is not None  # else there was no challenge
        try:
            facts = plane.judge_proof(chain, signature, claim)
            check_same_workload(tunnel.peer, facts, names_pods=plane.leaves_name_pods)
            if tunnel.session.role is Role.ACCEPTOR and (
                why := contradicted(plane, facts, tunnel.peer_ip)
            ):
                raise ProofRefused(LeafElsewhere.reason, why)
        except Banned:
            self.theirs["banned"] += 1
            return self._cut_banned(tunnel)
        except ProofRefused as e:
            if e.forged and tunnel not in self._was_continued:
                self.theirs["forged"] += 1
                raise ProtocolViolation(f"a forged proof of a new leaf: {e}") from e
            return self._say(tunnel, _CODES.get(e.reason, UNTRUSTED))
        except Exception as e:  # the SVID rules, by their slug; what is none is our own bug
            if not getattr(e, "reason", ""):
                raise
            return self._say(tunnel, UNTRUSTED)
        link: LiveLink | None = tunnel.link  # type: ignore[assignment]
        if link is not None:
            error = objection(plane, link)
            if error is not None:
                self.theirs["denied"] += 1
                return link.deny(error)
            _note(link.record, facts, plane.unix_ns())
        tunnel.peer, tunnel.direct = facts, tunnel.peer_ip in facts.ips
        self._move_end(tunnel)
        return self._say(tunnel, BELIEVED)

    def _say(self, tunnel: Tunnel, code: int) -> None:
        self.theirs[OUTCOMES[code]] += 1
        tunnel.write(encode(RENEWED, encode_outcome(code)))

    def _continued(self, tunnel: Tunnel, fresh: Tunnel) -> None:
        """Both sides of `fresh` have proved in its handshake that they are those of `tunnel`."""
        link: LiveLink | None = tunnel.link  # type: ignore[assignment]
        if tunnel.peer.sha256 != fresh.peer.sha256:
            if link is not None:
                _note(link.record, fresh.peer, self._plane.unix_ns())
            tunnel.peer, tunnel.direct = fresh.peer, tunnel.peer_ip in fresh.peer.ips
        if fresh.own.expires_at > tunnel.own.expires_at:
            tunnel.own = fresh.own
        self._was_continued[tunnel] = None
        whose = self.ours if tunnel.session.role is Role.DIALLER else self.theirs
        whose["continued"] += 1
        self._move_end(tunnel)

    def _cut_banned(self, tunnel: Tunnel) -> None:
        link: LiveLink | None = tunnel.link  # type: ignore[assignment]
        if link is not None:
            link.cut(CUT_BY_BAN, "banned")
        else:
            tunnel.lose(SidecarError("banned"))

    def _move_end(self, tunnel: Tunnel) -> None:
        """The first of both leaves that are believed now ends the tunnel."""
        plane = self._plane
        peer_left_s = tunnel.peer.not_after.timestamp() - plane.unix_s()
        tunnel.expires_at = min(tunnel.own.expires_at, plane.now() + peer_left_s)

    # --- frames -----------------------------------------------------------------------------

    def frame(self, tunnel: Tunnel, kind: int, payload: bytes) -> None:
        """A frame of a renewal came. Raises ProtocolViolation."""
        if kind == CONTINUE:
            return self._continuations.asked(tunnel, payload)
        if kind == CONTINUED:
            return self._continuations.answered(tunnel, payload)
        state = self._under_way.get(tunnel) or _UnderWay()
        check_order(kind, state.proving, state.judging)
        if kind == RENEW:
            self._challenge(tunnel, state, check_nonce(payload))
        elif kind == CHALLENGE:
            self._prove(tunnel, state, check_nonce(payload))
        elif kind == PROOF:
            self._judge(tunnel, state, payload)
        else:
            self._answered(tunnel, state, decode_outcome(payload))
        rests = state.proving is Proving.RESTING and state.judging is Judging.RESTING
        if rests or tunnel.closed:
            self._under_way.pop(tunnel, None)
        else:
            self._under_way[tunnel] = state
        return None

    def forget(self, tunnel: Tunnel) -> None:
        """The tunnel is closed."""
        self._under_way.pop(tunnel, None)
        self._queue.pop(tunnel, None)
        self._resting.pop(tunnel, None)
        self._was_continued.pop(tunnel, None)

    @property
    def under_way(self) -> int:
        """Tunnels on which a renewal has begun and not ended."""
        return len(self._under_way)


def _note(record: LinkRecord, peer: LeafFacts, at_ns: int) -> None:
    record.renewed += 1
    record.renewals = (*record.renewals, f"{peer.serial} {utc_text(at_ns)}")[-RENEWALS_TOLD:]
