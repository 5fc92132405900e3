"""Links outlive leaves: each side proves its next leaf inside the tunnel, and no other is believed."""

import asyncio
import dataclasses
import datetime as dt
import hashlib
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from certs.trust.bans import Ban, Bans, Guard, pod_serial
from certs.trust.chain import ChainChecker
from certs.trust.contexts import TlsMaterial
from certs.trust.identity import WorkloadIdentity
from certs.trust.possession import ProofJudge, Prover
from certs.trust.renewal import Claim
from certs.trust.svid import SvidChecker
from kit.buckets import Buckets
from kit.clock import monotonic
from kit.contract import ALPN, ALPNS
from policy.rules import Policy, PolicySet, Rule, Source
from sidecar.carrier import trust_of
from sidecar.dataplane.plane import Trust
from sidecar.dataplane.sweep import Sweep
from sidecar.dataplane.tunnels import renewal
from sidecar.dataplane.tunnels.tunnel import Tunnel
from sidecar.directory import Workload
from sidecar.wire.frames import (
    ACCEPT,
    CHALLENGE,
    OPEN,
    PING_FRAME,
    PONG,
    PROOF,
    RENEW,
    RENEWED,
    RESET,
    encode,
)
from sidecar.wire.opening import Opening
from sidecar.wire.renewal import (
    BELIEVED,
    NOT_LATER,
    NOT_NOW,
    OTHER_WORKLOAD,
    UNTRUSTED,
    encode_proof,
)
from tests.certs.forge import Forge
from tests.certs.forge import Pair as Leaf
from tests.patience import PATIENCE_S
from tests.sidecar.dataplane.conftest import API, WEB, Pair, Side, StartPair
from tests.sidecar.dataplane.test_attacks import App, inbound_address

_random_bits = itertools.count(1)


def leaf_of(
    forge: Forge,
    identity: WorkloadIdentity,
    seconds: float,
    pod: str = "",
    ips: tuple[str, ...] = ("127.0.0.1",),
) -> Leaf:
    """A leaf as our CA makes them for a pod; it ends in so many seconds."""
    return forge.leaf(
        str(identity),
        ips=ips,
        serial=pod_serial(pod or f"uid-{identity.service_account}", next(_random_bits)),
        not_after=dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds),
    )


def trust(forge: Forge, leaf: Leaf, identity: WorkloadIdentity, seconds: float) -> Trust:
    material = TlsMaterial(leaf.key_pem, leaf.chain_pem, forge.root_pem)
    return trust_of(material, str(identity), monotonic() + seconds)


def give_leaf(side: Side, forge: Forge, identity: WorkloadIdentity, seconds: float) -> None:
    """As a carrier does when the CA has answered."""
    side.plane.trust = trust(forge, leaf_of(forge, identity, seconds), identity, seconds)
    side.plane.renewals.look()


async def until(true: Callable[[], object], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)


@pytest.fixture
async def app() -> App:
    return App()


@pytest.fixture
async def pair(start_pair: StartPair, serve: Any, forge: Forge) -> Pair:
    """Both sides hold leaves of sixty seconds; the app echoes."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while got := await reader.read(65536):
            writer.write(got)
            await writer.drain()
        writer.close()

    pair = start_pair(await serve(echo))
    give_leaf(pair.near, forge, WEB, 60)
    give_leaf(pair.far, forge, API, 60)
    return pair


async def linked(pair: Pair) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client whose link is open."""
    reader, writer = await pair.client()
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    return reader, writer


def ends(side: Side) -> float:
    """Seconds to the end of the tunnel of its only link."""
    (link,) = side.plane.live
    assert link.tunnel_expires_at is not None
    return link.tunnel_expires_at - monotonic()


async def test_a_link_lives_on_when_both_sides_have_proved_their_next_leaves(
    pair: Pair, forge: Forge
) -> None:
    reader, writer = await pair.client()
    writer.write(b"before")
    assert await reader.readexactly(6) == b"before"
    assert ends(pair.near) < 61 and ends(pair.far) < 61
    give_leaf(pair.near, forge, WEB, 500)
    await until(lambda: pair.far.plane.renewals.theirs["believed"])
    assert ends(pair.far) < 61, "the first of both leaves ends the tunnel"
    give_leaf(pair.far, forge, API, 400)
    await until(lambda: ends(pair.near) > 300 and ends(pair.far) > 300)
    assert ends(pair.near) < 401 and ends(pair.far) < 401
    writer.write(b"after")
    assert await reader.readexactly(5) == b"after"
    writer.close()
    for side in (pair.near, pair.far):
        record = await side.record()
        assert (record.close, record.renewed, record.verdict) == ("fin", 1, "allowed")
        (told,) = record.renewals
        serial, _, when = told.partition(" ")
        assert int(serial, 16) >> 80 and when.endswith("Z")
        assert serial != record.peer_serial


async def test_renewals_follow_each_other_and_both_at_once(pair: Pair, forge: Forge) -> None:
    reader, writer = await linked(pair)
    for seconds in (100, 200, 300, 400):
        writer.write(b"hello")
        give_leaf(pair.near, forge, WEB, seconds)
        give_leaf(pair.far, forge, API, seconds)
        assert await reader.readexactly(5) == b"hello"
        await until(lambda s=seconds: ends(pair.near) > s - 20 < ends(pair.far))  # type: ignore[misc]
    renewals: Any = pair.near.plane.renewals
    assert renewals.under_way == 0
    writer.close()
    assert (await pair.near.record()).renewed == (await pair.far.record()).renewed == 4


async def test_a_link_without_a_proof_in_time_is_cut_as_ever(pair: Pair, forge: Forge) -> None:
    _, writer = await linked(pair)
    give_leaf(pair.near, forge, WEB, 500)
    await until(lambda: pair.far.plane.renewals.theirs["believed"])
    sweep = Sweep(pair.near.plane, pair.arrivals)
    at = monotonic() + 61
    pair.near.plane.now = lambda: at
    sweep.look()
    sweep.close()
    assert (await pair.near.record()).close == "expired"
    writer.close()


async def test_a_peer_of_the_version_before_is_cut_as_before(pair: Pair, forge: Forge) -> None:
    """`podlink/1`: nothing is asked of it, and nothing ends."""
    near = pair.near.plane.trust
    assert near is not None
    leaf = leaf_of(forge, WEB, 60)
    material = TlsMaterial(leaf.key_pem, leaf.chain_pem, forge.root_pem)
    old = material.client_context(["podlink/1"])
    pair.near.plane.trust = dataclasses.replace(near, client=old)
    reader, writer = await pair.client()
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    give_leaf(pair.near, forge, WEB, 500)
    give_leaf(pair.far, forge, API, 500)
    await asyncio.sleep(0.5)
    assert ends(pair.near) < 61 and ends(pair.far) < 61
    writer.write(b"again")
    assert await reader.readexactly(5) == b"again"
    writer.close()
    for side in (pair.near, pair.far):
        assert (await side.record()).alpn == "podlink/1"


async def test_a_tunnel_at_rest_is_replaced_and_not_renewed(pair: Pair, forge: Forge) -> None:
    _, writer = await linked(pair)
    writer.close()
    await pair.near.record()
    await until(lambda: len(pair.near.plane.pool))
    give_leaf(pair.near, forge, WEB, 500)
    await asyncio.sleep(0.3)
    assert not pair.far.plane.renewals.theirs


async def test_a_link_over_a_tunnel_of_an_older_leaf_is_renewed_too(
    pair: Pair, forge: Forge
) -> None:
    for _ in range(2):
        reader, writer = await pair.client()
        writer.write(b"hello")
        await reader.readexactly(5)
        if not len(pair.near.records):
            writer.close()
            await pair.near.record()
            await until(lambda: len(pair.near.plane.pool))
            give_leaf(pair.near, forge, WEB, 500)
            give_leaf(pair.far, forge, API, 500)
    for side in (pair.near, pair.far):
        side.plane.renewals.look()  # as the sweep does
    await until(lambda: ends(pair.near) > 400 < ends(pair.far))
    writer.close()
    assert (await pair.near.record(2)).pooled
    assert pair.near.records[1].alpn == pair.far.records[1].alpn == "podlink/2"


async def test_a_root_is_replaced_in_the_middle_of_a_link(pair: Pair, forge: Forge) -> None:
    """New root beside the old; the new one signs; the old one goes. Each step after the other."""
    reader, writer = await linked(pair)
    other = Forge(name="the next root")

    def believe(*roots: Forge) -> None:
        for side in (pair.near, pair.far):
            judge: Any = side.plane.judge_proof
            judge.trusts = ChainChecker([root.root_der for root in roots])

    def sign(by: Forge, seconds: float) -> None:
        for side, identity in ((pair.near, WEB), (pair.far, API)):
            give_leaf(side, by, identity, seconds)

    sign(other, 100)  # nobody has heard of this root yet
    await until(lambda: pair.far.plane.renewals.theirs["untrusted"])
    await until(lambda: pair.near.plane.renewals.theirs["untrusted"])
    assert ends(pair.near) < 61
    believe(forge, other)
    sign(other, 200)
    await until(lambda: ends(pair.near) > 150 < ends(pair.far))
    believe(other)
    sign(other, 300)
    await until(lambda: ends(pair.near) > 250 < ends(pair.far))
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    writer.close()
    assert (await pair.far.record()).renewed == 2


async def test_whoever_was_not_believed_yet_tries_again_by_itself(
    pair: Pair, forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "AGAIN_AFTER_S", 0.5)
    _, writer = await linked(pair)
    pair.far.plane.renewal_rate = Buckets(2.0, 1.0)
    pair.far.plane.renewal_rate.take("127.0.0.1", monotonic())
    give_leaf(pair.near, forge, WEB, 500)
    await until(lambda: pair.near.plane.renewals.ours["not_now"])
    await until(lambda: pair.near.plane.renewals.ours["believed"])
    assert pair.far.plane.turned_away["renewals_per_source"] >= 1
    writer.close()


# --- attacks ----------------------------------------------------------------------------------


class Attacker:
    """A peer that dials with a lawful leaf, has a link, and writes its frames itself."""

    def __init__(self, pair: Pair, forge: Forge, leaf: Leaf) -> None:
        self.pair, self.forge, self.leaf = pair, forge, leaf
        self.received = b""

    async def connect(self, *, alpn: str = ALPN) -> "Attacker":
        material = TlsMaterial(self.leaf.key_pem, self.leaf.chain_pem, self.forge.root_pem)
        self.reader, self.writer = await asyncio.open_connection(
            *inbound_address(self.pair), ssl=material.client_context([alpn])
        )
        payload = Opening(self.pair.app_port, b"t" * 16, b"s" * 8).encode()
        self.writer.write(encode(OPEN, payload))
        await self.frame(ACCEPT)
        return self

    async def frame(self, kind: int) -> bytes:
        """The payload of the next frame, which must be of this kind."""
        async with asyncio.timeout(PATIENCE_S):
            head = await self.reader.readexactly(4)
            payload = await self.reader.readexactly(int.from_bytes(head[1:], "big"))
        assert head[0] == kind, (head[0], payload)
        return payload

    async def challenge(self, nonce: bytes = b"n" * 32) -> bytes:
        self.writer.write(encode(RENEW, nonce))
        return await self.frame(CHALLENGE)

    def claim(self, judge_nonce: bytes, nonce: bytes = b"n" * 32) -> Claim:
        far = self.far_tunnel.own.digest  # the leaf of the handshake: none has been believed since
        former = Prover(self.leaf.key_pem, self.leaf.der).leaf
        return Claim(True, nonce, judge_nonce, former, far, self.channel)

    @property
    def channel(self) -> bytes:
        """As the tunnel has it, by the public interface of Python's own TLS."""
        finished = self.writer.get_extra_info("ssl_object").get_channel_binding("tls-unique")
        return hashlib.sha256(b"podlink tunnel" + finished).digest()

    def proof(self, new: Leaf, claim: Claim, key: Leaf | None = None) -> bytes:
        signer = Prover((key or new).key_pem, new.der)
        return encode(PROOF, encode_proof(signer(claim), [new.der]))

    async def outcome(self) -> int:
        return (await self.frame(RENEWED))[0]

    async def renew(self, new: Leaf) -> int:
        self.writer.write(self.proof(new, self.claim(await self.challenge())))
        return await self.outcome()

    async def lives(self) -> bool:
        """Whether the tunnel still answers."""
        try:
            self.writer.write(PING_FRAME)
            await self.frame(PONG)
        except (OSError, asyncio.IncompleteReadError, AssertionError):
            return False
        return True

    async def cut_off(self) -> bool:
        """Whether the far side ends the tunnel, and says nothing before."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self.reader.readexactly(1)
        except (OSError, asyncio.IncompleteReadError):
            return True
        return False

    async def closed(self) -> bool:
        """Whether the far side has ended the tunnel."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while await self.reader.read(65536):
                    pass
        except OSError:
            pass
        return True

    @property
    def far_tunnel(self) -> Tunnel:
        """The far side's end of this attacker's tunnel."""
        tunnels = [link.tunnel for link in self.pair.far.plane.live]
        (found,) = [t for t in tunnels if t is not None and t.peer_port == self.port]
        return found

    @property
    def port(self) -> int:
        port: int = self.writer.get_extra_info("sockname")[1]
        return port

    @property
    def ends_in_s(self) -> float:
        return self.far_tunnel.expires_at - monotonic()


@pytest.fixture
async def attacker(pair: Pair, forge: Forge) -> AsyncIterator[Attacker]:
    found = await Attacker(pair, forge, leaf_of(forge, WEB, 60)).connect()
    yield found
    found.writer.close()


async def moved_by_the_lawful_proof(attacker: Attacker) -> bool:
    """The positive control: the same frames, honestly made, do move the end."""
    outcome = await attacker.renew(leaf_of(attacker.forge, WEB, 59.0 + 500))
    return outcome == BELIEVED


async def test_the_attacker_may_do_what_is_lawful(attacker: Attacker, forge: Forge) -> None:
    give_leaf(attacker.pair.far, forge, API, 500)
    await attacker.frame(RENEW)  # the far side has its own next leaf to prove
    assert await moved_by_the_lawful_proof(attacker)
    assert await attacker.lives()


@pytest.mark.attack_row(51)
async def test_a_proof_relayed_by_whoever_holds_both_leaves_moves_nothing(
    attacker: Attacker, forge: Forge
) -> None:
    """All fits, nonces and leaves too: only the TLS connection is another one."""
    claim = attacker.claim(await attacker.challenge())
    relayed = dataclasses.replace(claim, channel=b"c" * 32)
    attacker.writer.write(attacker.proof(leaf_of(forge, WEB, 59.0 + 500), relayed))
    with pytest.raises((OSError, asyncio.IncompleteReadError)):  # a forgery ends the tunnel
        await attacker.outcome()


@pytest.mark.attack_row(51)
async def test_a_proof_of_another_tunnel_moves_nothing(attacker: Attacker, forge: Forge) -> None:
    new = leaf_of(forge, WEB, 500)
    other = await Attacker(attacker.pair, forge, attacker.leaf).connect()
    theirs = await other.challenge()
    proof = other.proof(new, other.claim(theirs))
    await attacker.challenge()
    attacker.writer.write(proof)
    assert await attacker.cut_off(), "a forged proof ends the tunnel"
    other.writer.write(proof)
    assert await other.outcome() == BELIEVED, "where it belongs it was a good one"
    other.writer.close()
    record = await attacker.pair.far.record()
    assert record.reason == "protocol_error" and "forged proof" in record.error


@pytest.mark.attack_row(51)
async def test_the_same_proof_twice_moves_nothing(attacker: Attacker, forge: Forge) -> None:
    new = leaf_of(forge, WEB, 500)
    proof = attacker.proof(new, attacker.claim(await attacker.challenge()))
    attacker.writer.write(proof)
    assert await attacker.outcome() == BELIEVED
    await attacker.challenge()
    attacker.writer.write(proof)
    assert await attacker.cut_off()


@pytest.mark.attack_row(51)
async def test_our_own_proof_sent_back_moves_nothing(attacker: Attacker, forge: Forge) -> None:
    """Reflected: the far side's own nonces, leaf and signature come back to it."""
    give_leaf(attacker.pair.far, forge, API, 500)
    nonce = await attacker.frame(RENEW)
    theirs = await attacker.challenge(nonce)
    attacker.writer.write(encode(CHALLENGE, theirs))
    proof = await attacker.frame(PROOF)
    attacker.writer.write(encode(PROOF, proof))
    assert await attacker.cut_off()


@pytest.mark.attack_row(51)
@pytest.mark.parametrize(
    ("identity", "pod", "ips", "outcome"),
    [
        (API, "", ("127.0.0.1",), OTHER_WORKLOAD),
        (WEB, "another pod's uid", ("127.0.0.1",), OTHER_WORKLOAD),
        (WEB, "", ("127.0.0.2",), OTHER_WORKLOAD),
        (WEB, "", (), OTHER_WORKLOAD),
    ],
)
async def test_another_workloads_leaf_moves_nothing(
    attacker: Attacker,
    forge: Forge,
    identity: WorkloadIdentity,
    pod: str,
    ips: tuple[str, ...],
    outcome: int,
) -> None:
    """Whoever holds two lawful leaves cannot make one link out of both."""
    assert await attacker.renew(leaf_of(forge, identity, 500, pod, ips)) == outcome
    assert attacker.ends_in_s < 61
    assert attacker.far_tunnel.peer.identity == WEB
    assert await moved_by_the_lawful_proof(attacker)


@pytest.mark.attack_row(51)
async def test_a_leaf_that_the_registry_contradicts_moves_nothing(
    attacker: Attacker, forge: Forge
) -> None:
    """The address is another pod's by now: whoever still speaks from there is believed no longer."""
    directory = attacker.pair.far.directory
    new = leaf_of(forge, WEB, 500)
    directory.entries["127.0.0.1"] = Workload("another-uid", "shop", "web-1", WEB, ("127.0.0.1",))
    assert await attacker.renew(new) == UNTRUSTED
    assert attacker.ends_in_s < 61
    directory.entries["127.0.0.1"] = Workload("uid-web", "shop", "web-0", WEB, ("127.0.0.1",))
    assert await attacker.renew(new) == BELIEVED


@pytest.mark.attack_row(51)
async def test_a_leaf_that_ends_no_later_moves_nothing(attacker: Attacker, forge: Forge) -> None:
    assert await attacker.renew(attacker.leaf) == NOT_LATER
    assert await attacker.renew(leaf_of(forge, WEB, 30)) == NOT_LATER
    assert 50 < attacker.ends_in_s < 61


@pytest.mark.attack_row(51)
async def test_an_expired_leaf_moves_nothing(attacker: Attacker, forge: Forge) -> None:
    assert await attacker.renew(leaf_of(forge, WEB, -5)) == UNTRUSTED
    assert attacker.ends_in_s < 61


@pytest.mark.attack_row(51)
async def test_an_unlawful_leaf_or_a_strangers_chain_moves_nothing(
    attacker: Attacker, forge: Forge
) -> None:
    for bad in (
        forge.leaf(str(WEB), ips=["127.0.0.1"], ca=True),
        forge.leaf(str(WEB), uris=[str(WEB), str(API)]),
        leaf_of(Forge(), WEB, 500),
        leaf_of(Forge(name="a stranger"), WEB, 500),
    ):
        assert await attacker.renew(bad) == UNTRUSTED
    assert attacker.ends_in_s < 61
    assert await moved_by_the_lawful_proof(attacker)


@pytest.mark.attack_row(51)
async def test_a_signature_by_the_old_key_moves_nothing(attacker: Attacker, forge: Forge) -> None:
    """A thief of the old key who reads a new leaf on the wire has not its key."""
    claim = attacker.claim(await attacker.challenge())
    attacker.writer.write(attacker.proof(leaf_of(forge, WEB, 500), claim, key=attacker.leaf))
    assert await attacker.cut_off()


@pytest.mark.attack_row(51)
@pytest.mark.parametrize("by", ["identity", "pod", "serial"])
async def test_a_banned_leaf_cuts_the_link(attacker: Attacker, forge: Forge, by: Any) -> None:
    far = attacker.pair.far.plane
    guard = Guard(SvidChecker("cluster.local"))
    far.judge_proof = ProofJudge(guard, ChainChecker([forge.root_der]))
    new = leaf_of(forge, WEB, 500)
    facts = SvidChecker("cluster.local")(new.der)
    value = {"identity": str(WEB), "pod": "uid-web", "serial": facts.serial}[by]
    guard.bans = Bans.of([Ban(by, value)])
    attacker.writer.write(attacker.proof(new, attacker.claim(await attacker.challenge())))
    assert (await attacker.frame(RESET))[0] == 6
    assert (await attacker.pair.far.record()).close == "banned"


@pytest.mark.attack_row(51)
async def test_policy_is_asked_again(attacker: Attacker, forge: Forge) -> None:
    """What is in force may say no now, and nobody has looked since."""
    attacker.pair.far.plane.policy = PolicySet(
        policies=(Policy("shop/none", deny=(Rule("deny[0]", (Source("shop"),)),)),)
    )
    new = leaf_of(forge, WEB, 500)
    attacker.writer.write(attacker.proof(new, attacker.claim(await attacker.challenge())))
    await attacker.frame(RESET)
    record = await attacker.pair.far.record()
    assert (record.verdict, record.reason) == ("denied", "policy_denied")


@pytest.mark.attack_row(51)
@pytest.mark.parametrize(
    "frames",
    [
        encode(PROOF, b"p" * 300),
        encode(CHALLENGE, b"c" * 32),
        encode(RENEWED, b"\0"),
        encode(RENEW, b"n" * 31),
        encode(RENEW, b""),
        encode(RENEW, b"n" * 32) * 2,
    ],
    ids=["proof", "challenge", "renewed", "short", "empty", "twice"],
)
async def test_garbage_ends_the_tunnel(attacker: Attacker, frames: bytes) -> None:
    attacker.writer.write(frames)
    assert await attacker.closed()


@pytest.mark.attack_row(51)
@pytest.mark.parametrize(
    "payload", [b"", b"\0", b"\0\4junk", b"\0\1s\0\1c", b"\0\1s" + b"\xff" * 50]
)
async def test_a_proof_that_is_garbage_ends_the_tunnel_or_proves_nothing(
    attacker: Attacker, payload: bytes
) -> None:
    await attacker.challenge()
    attacker.writer.write(encode(PROOF, payload))
    try:
        assert await attacker.outcome() == UNTRUSTED
    except (OSError, asyncio.IncompleteReadError):
        pass
    else:
        assert attacker.ends_in_s < 61


@pytest.mark.attack_row(51)
async def test_who_never_answers_a_challenge_is_cut_at_the_end_of_its_leaf(
    attacker: Attacker, pair: Pair
) -> None:
    await attacker.challenge()
    renewals: Any = pair.far.plane.renewals
    assert renewals.under_way == 1
    sweep = Sweep(pair.far.plane, pair.arrivals)
    at = monotonic() + 61
    pair.far.plane.now = lambda: at
    sweep.look()
    sweep.close()
    assert (await pair.far.record()).close == "expired"
    assert renewals.under_way == 0, "nothing is kept of a closed tunnel"


@pytest.mark.attack_row(51)
async def test_renewals_have_a_budget(attacker: Attacker, forge: Forge) -> None:
    """Each costs the judge a signature to check: over the rate nothing is judged, and nothing breaks."""
    far = attacker.pair.far.plane
    far.renewal_rate = Buckets(0.0, 3)
    for seconds in (100, 200, 300):
        new = leaf_of(forge, WEB, seconds)
        assert await attacker.renew(new) == BELIEVED
        attacker.leaf = new
    attacker.writer.write(encode(RENEW, b"n" * 32))
    assert await attacker.outcome() == NOT_NOW
    assert far.turned_away["renewals_per_source"] == 1
    assert await attacker.lives()


async def test_a_peer_that_answers_without_a_proof_is_believed_in_nothing(
    attacker: Attacker, forge: Forge
) -> None:
    give_leaf(attacker.pair.far, forge, API, 500)
    await attacker.frame(RENEW)
    attacker.writer.write(encode(RENEWED, bytes((BELIEVED,))))
    assert await attacker.closed()


@pytest.mark.attack_row(51)
async def test_the_first_protocol_has_no_renewal(pair: Pair, forge: Forge) -> None:
    attacker = await Attacker(pair, forge, leaf_of(forge, WEB, 60)).connect(alpn="podlink/1")
    attacker.writer.write(encode(RENEW, b"n" * 32))
    assert await attacker.closed()
    assert ALPNS[-1] == "podlink/1"
