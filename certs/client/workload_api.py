"""`WorkloadApiSource`: the SvidSource that asks a SPIFFE agent (SPIRE's) on a socket of the node.

The agent renews; here its answers are judged like our own CA's, by the same validator and the same
proof by handshake, and a bad one leaves the old leaf in force. What differs from our CA:

- leaves of SPIRE carry no IP addresses, so peers know a pod by its identity alone;
- nobody tells of bans: what may not be believed any more is the agent's to say, by not renewing.

(SPIFFE Workload API, sections 4 to 6; SPIFFE Workload Endpoint, sections 3 and 4.)
"""

import asyncio
import logging
import re
from collections.abc import Mapping

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from certs.client.answer import AnswerRefused, prove
from certs.client.source import BansSubscriber, Subscriber, Svid
from certs.trust.bans import NO_BANS, Bans
from certs.trust.bundle import BundleRefused, TrustBundle
from certs.trust.contexts import MAX_CHAIN, TlsMaterial
from certs.trust.identity import IdentityMalformed, WorkloadIdentity
from certs.trust.pem import to_pem
from certs.trust.svid import SvidRefused, check_leaf
from kit.backoff import Backoff
from kit.clock import Clock, Monotonic, monotonic, utcnow
from proto import workload_pb2 as pb
from proto.workload_pb2_grpc import SpiffeWorkloadAPIStub

METADATA = (("workload.spiffe.io", "true"),)
"""Without it an agent refuses the call: no browser or proxy sends it by accident."""
_SOCKET = re.compile(r"unix:(//)?(?P<path>/[^\s\0?#]{1,100})", re.ASCII)
_MAX_ANSWER_BYTES = 1024 * 1024
_MAX_SVIDS = 32
_log = logging.getLogger(__name__)


class EndpointMalformed(ValueError):
    """Not the address of an agent's socket."""


def read_endpoint(text: str) -> str:
    """The gRPC target of `unix:///run/spire/agent.sock`; raises EndpointMalformed.

    The standard also knows TCP, where anybody on the node might answer or listen: not for us.
    """
    found = _SOCKET.fullmatch(text)
    if found is None:
        raise EndpointMalformed(f"must be like unix:///run/spire/agent.sock, not {text[:256]!r}")
    return f"unix:{found['path']}"


class WorkloadApiSource:
    """Keeps an Svid from the agent at `endpoint`; of several it takes the one for `wanted`."""

    def __init__(
        self,
        endpoint: str,
        wanted: WorkloadIdentity,
        *,
        clock: Clock = utcnow,
        monotonic: Monotonic = monotonic,
    ) -> None:
        self._target, self._wanted = read_endpoint(endpoint), wanted
        self._clock, self._monotonic = clock, monotonic
        self._svid: Svid | None = None
        self._roots: tuple[bytes, ...] = ()
        self._bundles = 0
        self._ready = asyncio.Event()
        self._subscribers: list[Subscriber] = []
        self.renewals = 0
        self.failures = 0
        """Counted since the start, for metrics."""

    @property
    def current(self) -> Svid | None:
        svid = self._svid
        if svid is None or self._monotonic() >= svid.deadline or self._clock() >= svid.expires_at:
            return None
        return svid

    @property
    def bans(self) -> Bans:
        """None: an agent tells of no bans."""
        return NO_BANS

    @property
    def refreshes(self) -> Mapping[str, int]:
        return {"ok": self.renewals, "failed": self.failures}

    def subscribe(self, callback: Subscriber) -> None:
        self._subscribers.append(callback)

    def told_banned(self, by: str) -> None:
        """An agent says so by not renewing."""

    def subscribe_bans(self, callback: BansSubscriber) -> None:
        """Never called."""

    async def wait_ready(self) -> None:
        await self._ready.wait()

    async def run(self) -> None:
        """Listen to the agent until cancelled; a stream that ends or fails is opened again."""
        backoff = Backoff(first_s=0.5, longest_s=15.0)
        while True:
            try:
                await self._follow(backoff)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as e:
                self._failed(e)
            await asyncio.sleep(max(0.25, backoff.next_s()))

    async def _follow(self, backoff: Backoff) -> None:
        options = (
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_receive_message_length", _MAX_ANSWER_BYTES),
            ("grpc.use_local_subchannel_pool", 1),
        )
        async with grpc.aio.insecure_channel(self._target, options) as channel:
            stream = SpiffeWorkloadAPIStub(channel).FetchX509SVID(
                pb.X509SVIDRequest(), metadata=METADATA
            )
            async for answer in stream:
                try:
                    self._use(answer)
                    backoff.reset()
                except AnswerRefused as e:
                    self._failed(e)

    def _use(self, answer: pb.X509SVIDResponse) -> None:
        """Put the answer in force; raises AnswerRefused, with nothing changed."""
        now, at = self._clock(), self._monotonic()
        found = self._choose(answer)
        domain = self._wanted.trust_domain
        chain = split_der(found.x509_svid)
        if not 1 <= len(chain) <= MAX_CHAIN:
            raise AnswerRefused("chain_length", f"{len(chain)} certificates")
        try:
            bundle = TrustBundle.of(domain, 0, split_der(found.bundle))
            facts = check_leaf(chain[0], trust_domain=domain, now=now)
        except (BundleRefused, SvidRefused) as e:
            raise AnswerRefused(e.reason, str(e)) from e
        if facts.identity != self._wanted:
            raise AnswerRefused("identity_other", f"the leaf is for {facts.identity}")
        material = TlsMaterial(read_key(found.x509_svid_key), to_pem(chain), bundle.to_pem())
        prove(material)
        if bundle.roots != self._roots:
            self._roots = bundle.roots
            self._bundles += 1
        self.renewals += 1
        left_s = (facts.not_after - now).total_seconds()
        self._svid = svid = Svid(
            material=material,
            facts=facts,
            generation=self._svid.generation + 1 if self._svid else 1,
            expires_at=facts.not_after,
            deadline=at + left_s,
            bundle_generation=self._bundles,
        )
        self._ready.set()
        for callback in self._subscribers:
            try:
                callback(svid)
            except Exception:
                _log.exception("a subscriber of the certificate failed")

    def _choose(self, answer: pb.X509SVIDResponse) -> pb.X509SVID:
        for svid in answer.svids[:_MAX_SVIDS]:
            try:
                if WorkloadIdentity.parse(svid.spiffe_id) == self._wanted:
                    return svid
            except IdentityMalformed:
                continue  # an identity of another form, for another program
        offered = ", ".join(svid.spiffe_id[:128] for svid in answer.svids[:4])
        raise AnswerRefused(
            "identity_missing", f"the agent offers {offered or 'nothing'}, not {self._wanted}"
        )

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        if isinstance(error, grpc.aio.AioRpcError):
            said = f"{error.code().name}: {error.details()}"
        else:
            said = f"{type(error).__name__}: {error}"
        left_s = self._svid.deadline - self._monotonic() if self._svid else None
        _log.warning(
            "no certificate from the workload API",
            extra={"endpoint": self._target, "error": said, "leaf_left_s": left_s},
        )


def split_der(raw: bytes) -> list[bytes]:
    """Certificates that stand one behind the other; raises AnswerRefused for anything else."""
    found: list[bytes] = []
    while raw:
        # A certificate is a SEQUENCE with a length in the definite form (X.690, 8.1.3).
        if len(raw) < 4 or raw[0] != 0x30 or raw[1] != 0x82:
            raise AnswerRefused("certificates_malformed", "no DER certificate where one belongs")
        size = 4 + int.from_bytes(raw[2:4], "big")
        if size > len(raw) or len(found) > 64:
            raise AnswerRefused("certificates_malformed", "cut short, or too many")
        found.append(raw[:size])
        raw = raw[size:]
    for der in found:
        try:
            x509.load_der_x509_certificate(der)
        except ValueError as e:
            raise AnswerRefused("certificates_malformed", str(e)) from e
    return found


def read_key(der: bytes) -> bytes:
    """A PKCS #8 key as PEM; raises AnswerRefused, never quoting it."""
    try:
        key = load_der_private_key(der, password=None)
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    except Exception as e:
        raise AnswerRefused("key_malformed", type(e).__name__) from None
