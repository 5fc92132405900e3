"""`CaClient`: the SvidSource that asks our CA.

Two loops beside each other: one renews the leaf, with a new key each time; one watches the bundle.
Both end in `_swap`, a single assignment, so nobody ever sees a key without its chain or a chain
without its bundle. A failure keeps the old leaf until it expires; expired means gone.
"""

import asyncio
import contextlib
import datetime as dt
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from certs.client.answer import (
    SKEW_WORTH_SAYING_S,
    AnswerRefused,
    Grant,
    judge_answer,
    judge_bans,
    judge_bundle,
    prove,
    skew_s,
)
from certs.client.renewal import (
    ask_for_addresses_after_s,
    longest_pause_s,
    pause_s,
    renew_after_s,
)
from certs.client.source import BansSubscriber, Subscriber, Svid
from certs.client.wire import SIGN_TIMEOUT_S, CaAddress, CaUnreachable
from certs.evidence.anchor import Head
from certs.trust.bans import NO_BANS, Bans
from certs.trust.bundle import TrustBundle
from certs.trust.clock import TrustedClock
from certs.trust.contexts import TlsMaterial
from certs.trust.facts import LeafFacts
from kit.backoff import Backoff
from kit.clock import Clock, Monotonic, monotonic, utcnow
from kit.tasks import spawn, stop
from proto import ca_pb2
from proto.ca_pb2_grpc import CertificateAuthorityStub

_log = logging.getLogger(__name__)
_FIRST_PAUSE_S = 5.0
_LOOK_EVERY_S = 15.0
_RETRY_AFTER = "retry-after-ms"
"""As certs.server.refusals has it; a test keeps the two equal."""
_BANNED = "podlink-banned"
"""Likewise."""
_LONGEST_HINT_S = 60.0
REFUSED_FOR_S = 60.0
"""How long the CA may answer and refuse us before we take its word that we are nobody's any more."""
_EXPECTED = (AnswerRefused, CaUnreachable, grpc.aio.AioRpcError, asyncio.InvalidStateError)
"""What a network and a CA can do to us; anything else is logged with its traceback."""


class CaClient:
    """Keeps an Svid for the pod that the token at `token_path` belongs to.

    `ca_address` is `name:port`; `server_name` only if the CA's certificate names something else.
    `bundle_path` is the mounted ConfigMap's PEM file.
    """

    def __init__(
        self,
        ca_address: str,
        token_path: Path,
        bundle_path: Path,
        trust_domain: str,
        *,
        server_name: str | None = None,
        clock: Clock = utcnow,
        monotonic: Monotonic = monotonic,
    ) -> None:
        self._ca = CaAddress(ca_address, token_path, bundle_path, trust_domain, server_name)
        self._trust_domain = trust_domain
        self._clock = TrustedClock(clock, monotonic)
        self._monotonic = monotonic
        self._raw_clock = clock
        self._said_at: dt.datetime | None = None
        self._heard_at = 0.0
        self._svid: Svid | None = None
        self._bundle: TrustBundle | None = None
        self._ready = asyncio.Event()
        self._subscribers: list[Subscriber] = []
        self._bans = NO_BANS
        self._is_banned = False
        self._refused_since: float | None = None
        self._look_now = asyncio.Event()
        self.head: Callable[[], Head | None] = lambda: None
        """How far our chain of records has come in the store; told to the CA with each renewal."""
        self._bans_subscribers: list[BansSubscriber] = []
        self._watching = False
        self._acknowledged = 0
        self.renewals = 0
        self.failures = 0
        """Counted since the start, for metrics."""
        self.clock_ahead_s = 0.0
        """How far this node's clock was ahead of the CA's at the last renewal; negative: behind."""

    @property
    def current(self) -> Svid | None:
        """The Svid in force; None before the first, after the last has expired, and while banned."""
        svid = self._svid
        if (
            svid is None
            or self._is_banned
            or self._monotonic() >= svid.deadline
            or self._clock() >= svid.expires_at
        ):
            return None
        return svid

    def subscribe(self, callback: Subscriber) -> None:
        self._subscribers.append(callback)

    @property
    def bans(self) -> Bans:
        """What the CA last said of bans, also of ourselves; kept while it is away."""
        return self._bans

    def told_banned(self, by: str) -> None:
        """Somebody else of the control plane says so. The CA knows better, where it is heard."""
        if not self._watching:
            self._drop_own_leaf(by)

    @property
    def refreshes(self) -> Mapping[str, int]:
        return {"ok": self.renewals, "failed": self.failures}

    def subscribe_bans(self, callback: BansSubscriber) -> None:
        self._bans_subscribers.append(callback)

    async def wait_ready(self) -> None:
        await self._ready.wait()

    async def run(self) -> None:
        """Renew and watch until cancelled."""
        watching = spawn(self._watch_forever(), name="watch the trust bundle")
        try:
            await self._renew_forever()
        finally:
            await stop(watching)

    async def _renew_forever(self) -> None:
        # Until there is a first leaf the pod waits for it, so the pauses stay short.
        backoff = Backoff(first_s=0.5, longest_s=_FIRST_PAUSE_S)
        without_addresses = 0
        while True:
            try:
                grant = await self._renew(self._monotonic())
            except Exception as e:  # whatever it is, the next try may succeed; the leaf lives on
                self.failures += 1
                self._heard_refusal(e)
                wait_s = self._pause_after(e, backoff)
                self._log_failure("certificate not renewed", e, wait_s)
                await asyncio.sleep(wait_s)
                continue
            lifetime_s = grant.lifetime_s
            backoff = Backoff(first_s=0.5, longest_s=longest_pause_s(lifetime_s))
            without_addresses = 0 if grant.facts.ips else without_addresses + 1
            if without_addresses:
                await self._rest(ask_for_addresses_after_s(lifetime_s, without_addresses))
            else:
                await self._rest(renew_after_s(lifetime_s))

    def _pause_after(self, error: Exception, backoff: Backoff) -> float:
        """As the CA hints if it sheds load, jittered; else as the back-off says."""
        own_s = pause_s(backoff.next_s())
        hint_s = retry_hint_s(error)
        if hint_s is None:
            return own_s
        return min(max(own_s, hint_s * random.uniform(1.0, 2.0)), backoff.longest_s)  # noqa: S311

    async def _rest(self, seconds: float) -> None:
        """Sleep, but not on while the leaf has expired early because somebody set the clock."""
        until = self._monotonic() + seconds
        while self.current is not None and (left_s := until - self._monotonic()) > 0:
            self._look_now.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, _LOOK_EVERY_S)):
                    await self._look_now.wait()

    async def _renew(self, asked_at: float) -> Grant:
        """One new key, one new leaf, in force. Its life is counted from `asked_at`."""
        key_pem, csr_der = make_request()
        answer = await self._sign(csr_der)
        now = self._raw_clock()
        if abs(ahead_s := skew_s(answer.signed_at_unix_s, now)) >= SKEW_WORTH_SAYING_S:
            _log.error("this node's clock differs from the CA's", extra={"ahead_s": ahead_s})
        self.clock_ahead_s = ahead_s
        grant = judge_answer(answer, key_pem, trust_domain=self._trust_domain, now=now)
        if self._svid is not None and grant.facts.identity != self._svid.facts.identity:
            raise AnswerRefused("identity_changed", str(grant.facts.identity))
        self.renewals += 1
        self._said_at = dt.datetime.fromtimestamp(answer.signed_at_unix_s, dt.UTC)
        self._heard_at = self._monotonic()
        self._clock.heard(self._said_at, self._heard_at)
        if not self._watching:  # a stream's word is newer than that of an answer on its way
            self._adopt_bans(answer.bundle)
        material, bundle = self._with_newest_bundle(grant)
        self._swap(material, grant.facts, bundle, asked_at + grant.lifetime_s)
        return grant

    def _with_newest_bundle(self, grant: Grant) -> tuple[TlsMaterial, TrustBundle]:
        """The stream may have brought a newer bundle while the answer was on its way."""
        if self._bundle is None or self._bundle.generation <= grant.bundle.generation:
            return grant.material, grant.bundle
        of = grant.material
        material = TlsMaterial(of.key_pem, of.chain_pem, self._bundle.to_pem())
        try:
            prove(material)
        except AnswerRefused:  # the CA was founded anew and counts from one again
            return grant.material, grant.bundle
        return material, self._bundle

    async def _sign(self, csr_der: bytes) -> ca_pb2.SignResponse:
        request = ca_pb2.SignRequest(csr_der=csr_der)
        if (head := self.head()) is not None:
            request.head.chain, request.head.sequence = head.chain, head.sequence
            request.head.hash = head.hash
        async with self._ca.channel(self._learnt_roots()) as channel:
            return await CertificateAuthorityStub(channel).Sign(
                request,
                metadata=self._ca.metadata(),
                timeout=SIGN_TIMEOUT_S,
            )

    async def _watch_forever(self) -> None:
        await self._ready.wait()
        backoff = Backoff(first_s=0.5, longest_s=30.0)
        while True:
            try:
                async for _ in self._watch():
                    backoff.reset()
                wait_s = pause_s(backoff.next_s())
            except Exception as e:  # as above: this loop must outlive every failure
                self._heard_refusal(e)
                wait_s = pause_s(backoff.next_s())
                self._log_failure("trust bundle not watched", e, wait_s)
            await asyncio.sleep(wait_s)

    async def _watch(self) -> AsyncIterator[TrustBundle]:
        """Yield each bundle once it is in force and acknowledged; ends when the CA ends it."""
        async with self._ca.channel(self._learnt_roots()) as channel:
            call = CertificateAuthorityStub(channel).WatchBundle(metadata=self._ca.metadata())
            try:
                async for message in call:
                    self._watching = True
                    self._refused_since = None
                    self._adopt_bans(message)  # first: a bundle of no use does not make them so
                    bundle = judge_bundle(message, self._trust_domain)
                    self._adopt(bundle)
                    self._acknowledged = message.revision
                    await call.write(self._ack())
                    yield bundle
            finally:
                self._watching = False

    def _ack(self) -> ca_pb2.BundleAck:
        return ca_pb2.BundleAck(
            generation=self._bundle.generation if self._bundle else 0,
            revision=self._acknowledged,
            serial=self._svid.facts.serial if self._svid else "",
        )

    def _adopt_bans(self, message: ca_pb2.Bundle) -> None:
        if not message.HasField("bans"):
            return  # a CA that could not read them yet must not lift them
        self._put_bans(judge_bans(message))

    def _put_bans(self, bans: Bans) -> None:
        if bans == self._bans:
            return
        self._bans = bans
        _log.info("bans changed", extra={"bans": len(bans)})
        was_banned, svid = self._is_banned, self._svid
        self._is_banned = svid is not None and bans.covers(svid.facts) is not None
        for callback in self._bans_subscribers:
            try:
                callback(bans)
            except Exception:
                _log.exception("a subscriber of the bans failed")
        if self._is_banned and not was_banned:
            self._look_now.set()  # of one banned leaf there may be another at once
        elif was_banned and svid is not None and self._bundle is not None:
            self._swap(svid.material, svid.facts, self._bundle, svid.deadline)

    def _heard_refusal(self, error: Exception) -> None:
        """A CA that was reached and says no is no outage. If it names a ban it is one; if it goes on to
        refuse us whatever the cause, it vouches for us no more, and tells us of no ban either."""
        if not isinstance(error, grpc.aio.AioRpcError):
            return
        if error.code() is not grpc.StatusCode.PERMISSION_DENIED:
            return
        if any(key == _BANNED for key, _ in error.trailing_metadata() or ()):
            return self._drop_own_leaf("the CA says that we are banned")
        now = self._monotonic()
        self._refused_since = self._refused_since if self._refused_since is not None else now
        if now - self._refused_since >= REFUSED_FOR_S:
            self._drop_own_leaf("the CA refuses us")

    def _drop_own_leaf(self, why: str) -> None:
        """As if our leaf were on the list: nobody is shown it any more. Until the CA tells us of bans
        again, or gives us another."""
        svid = self._svid
        if svid is None or self._is_banned:
            return
        _log.error("our certificate is dropped", extra={"why": why, "serial": svid.facts.serial})
        self._put_bans(self._bans.and_serial(svid.facts.serial))

    def _adopt(self, bundle: TrustBundle) -> None:
        """Put `bundle` in force beside the present leaf; raises AnswerRefused if unfit."""
        svid = self._svid
        if svid is None or bundle == self._bundle:
            return
        if self._bundle is not None and bundle.generation < self._bundle.generation:
            # One CA of several may not have heard of the newest bundle yet. Going back would undo
            # what we have acknowledged.
            raise AnswerRefused(
                "bundle_older", f"{bundle.generation} after {self._bundle.generation}"
            )
        old = svid.material
        material = TlsMaterial(old.key_pem, old.chain_pem, bundle.to_pem())
        prove(material)
        self._swap(material, svid.facts, bundle, svid.deadline)
        _log.info(
            "trust bundle changed",
            extra={"generation": bundle.generation, "roots": ",".join(bundle.fingerprints())},
        )

    def _swap(
        self, material: TlsMaterial, facts: LeafFacts, bundle: TrustBundle, deadline: float
    ) -> None:
        self._bundle = bundle
        self._is_banned = self._bans.covers(facts) is not None
        self._svid = svid = Svid(
            material=material,
            facts=facts,
            generation=self._svid.generation + 1 if self._svid else 1,
            expires_at=facts.not_after,
            deadline=deadline,
            bundle_generation=bundle.generation,
            said_at=self._said_at,
            heard_at=self._heard_at,
        )
        self._ready.set()
        for callback in self._subscribers:
            try:
                callback(svid)
            except Exception:
                _log.exception("a subscriber of the certificate failed")

    def _learnt_roots(self) -> tuple[bytes, ...]:
        return self._bundle.roots if self._bundle else ()

    def _log_failure(self, text: str, error: BaseException, wait_s: float) -> None:
        if isinstance(error, grpc.aio.AioRpcError):
            said = f"{error.code().name}: {error.details()}"
        else:
            said = f"{type(error).__name__}: {error}"
        left_s = self._svid.deadline - self._monotonic() if self._svid else None
        unexpected = None if isinstance(error, _EXPECTED) else error
        _log.warning(
            text,
            extra={
                "error": said,
                "retry_in_s": round(wait_s, 2),
                "leaf_left_s": left_s,
                "clock": self._ca.clock_doubt(self._raw_clock()),
            },
            exc_info=unexpected,
        )


def retry_hint_s(error: Exception) -> float | None:
    """When a CA that sheds load asks to come again, in seconds; None if it says nothing of it."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return None
    for key, value in error.trailing_metadata() or ():
        if key == _RETRY_AFTER and isinstance(value, str) and value.isdigit() and len(value) < 9:
            return min(int(value) / 1000, _LONGEST_HINT_S)
    return None


def make_request() -> tuple[bytes, bytes]:
    """A new P-256 key (PEM) and a CSR (DER) that proves we hold it and says nothing else."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder(subject_name=x509.Name([])).sign(
        key, hashes.SHA256()
    )
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return key_pem, csr.public_bytes(Encoding.DER)
