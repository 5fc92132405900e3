"""The two RPCs: admit, then sign or stream. Only wiring; each decision has its own file."""

import asyncio
import datetime as dt
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from certs.authority.issue import (
    Authority,
    AuthorityExpired,
    CertificateUnsound,
    Issued,
    Order,
    clamp_lifetime,
)
from certs.evidence.anchor import MESSAGE, Head, anchor_statement
from certs.evidence.chain import EvidenceMalformed
from certs.evidence.signed import WorkloadSigner
from certs.names import CONTROL_PLANE_ACCOUNTS, service_dns_names
from certs.server.access import Needs, needs
from certs.server.csr import read_csr
from certs.server.feed import BundleFeed, News, Watcher
from certs.server.issuance import describe
from certs.server.ledger import Ledger
from certs.server.limits import Limits
from certs.server.pods import (
    Addresses,
    PodSeen,
    check_placed,
    check_source,
    choose_addresses,
    read_peer,
)
from certs.server.refusal_log import RefusalLog
from certs.server.refusals import (
    BANNED,
    PUBLIC_TEXT,
    RETRY_AFTER,
    CallerBanned,
    CallerForbidden,
    CallRefused,
    CannotAnswer,
    RequestRefused,
    TokenRefused,
)
from certs.server.report import Refusal, Sink
from certs.server.review import Caller, read_bearer
from certs.server.tokens import TokenDesk
from certs.trust.contexts import MaterialRefused
from kit.clock import Clock, Monotonic
from kit.limited_log import LimitedLog
from kit.tasks import spawn, stop
from proto import ca_pb2

PROVISIONAL_LIFETIME = dt.timedelta(minutes=5)
ACK_PAUSE_S = 0.05
READ_S = 5.0
"""From the beginning of a call to its request."""
LONGEST_STREAM_S = 3600.0
"""Then the pod asks again with its token: one that is gone, or another CA's load, shows by then."""
Context = grpc.aio.ServicerContext[Any, Any]
_log = logging.getLogger(__name__)
_limited = LimitedLog(_log)


@dataclass(slots=True)
class _Call:
    """One call while it is looked at; `caller` as soon as it is known."""

    rpc: str
    context: Context
    caller: Caller | None = None

    @property
    def source_ip(self) -> str:
        return read_peer(self.context.peer())


class CaService:
    """`signer` is asked for each leaf; it raises CannotAnswer while none may sign."""

    def __init__(
        self,
        *,
        signer: Callable[[], Authority],
        desk: TokenDesk,
        feed: BundleFeed,
        ledger: Ledger,
        report: Sink,
        system_namespace: str,
        leaf_ttl: dt.timedelta,
        bind_tokens: bool,
        limits: Limits,
        refusals: RefusalLog,
        clock: Clock,
        monotonic: Monotonic,
        longest_stream_s: float = LONGEST_STREAM_S,
        anchors: Callable[[], WorkloadSigner],
    ) -> None:
        self._signer, self._desk, self._feed = signer, desk, feed
        self._ledger, self._report = ledger, report
        self._system_namespace, self._leaf_ttl = system_namespace, leaf_ttl
        self._bind_tokens, self._limits, self._refusals = bind_tokens, limits, refusals
        self._clock, self._monotonic = clock, monotonic
        self._longest_stream_s = longest_stream_s
        self._anchors = anchors

    def handlers(self) -> grpc.GenericRpcHandler:
        """For `server.add_generic_rpc_handlers`. Not the generated ones: those wait for a request as
        long as a caller likes before anybody looks at its token, and log a traceback if it is none."""
        sign: Any = grpc.stream_unary_rpc_method_handler(
            self.sign, None, ca_pb2.SignResponse.SerializeToString
        )
        watch: Any = grpc.stream_stream_rpc_method_handler(
            self.watch_bundle, None, ca_pb2.Bundle.SerializeToString
        )
        name = ca_pb2.DESCRIPTOR.services_by_name["CertificateAuthority"].full_name
        return grpc.method_handlers_generic_handler(name, {"Sign": sign, "WatchBundle": watch})

    async def sign(self, requests: AsyncIterator[bytes], context: Context) -> ca_pb2.SignResponse:
        call = _Call("Sign", context)
        try:
            with self._limits.unread.one(call.source_ip):
                read_bearer(list(context.invocation_metadata() or ()))
                request = await _read_request(requests)
            with self._limits.in_flight.one(call.source_ip):
                return await self._sign(call, request)
        except Exception as e:
            await self._refuse(call, e)

    async def watch_bundle(
        self, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[ca_pb2.Bundle]:
        call = _Call("WatchBundle", context)
        try:
            with self._limits.in_flight.one(call.source_ip):
                caller, _ = await self._admit(call)
            identity = str(caller.identity)
            name = f"{caller.identity.namespace}/{caller.pod_name}"
            with self._feed.watcher(caller.pod_uid, name) as watcher:
                self._ledger.watches(caller.pod_uid, name, identity, self._clock(), self._leaf_ttl)
                acks = spawn(self._read_acks(call, requests, watcher), name=f"acks of {name}")
                try:
                    async with aclosing(self._until_old(watcher)) as stream:
                        async for news in stream:
                            self._check_bans(caller, news)
                            yield to_message(news)
                finally:
                    await stop(acks)
        except Exception as e:
            await self._refuse(call, e)

    async def _until_old(self, watcher: Watcher) -> AsyncGenerator[News, None]:
        """The watcher's news, until the stream has lived long enough."""
        # Jittered, or every stream of a restart would end together an hour later.
        ends = self._monotonic() + self._longest_stream_s * random.uniform(0.8, 1.0)  # noqa: S311
        async with aclosing(watcher.news()) as news:
            while True:
                try:
                    async with asyncio.timeout(max(0.0, ends - self._monotonic())):
                        item = await anext(news)
                except TimeoutError:
                    return
                yield item

    async def _admit(self, call: _Call) -> tuple[Caller, PodSeen]:
        """Every question before the RPC's own work. Raises CallRefused."""
        match needs(call.rpc):
            case Needs.POD_TOKEN:
                limits, source = self._limits, call.source_ip
                limits.per_source.take(source)
                token = read_bearer(list(call.context.invocation_metadata() or ()))
                limits.bad_tokens.demand(source)
                try:
                    call.caller = caller = await self._desk.who(token)
                except TokenRefused:
                    limits.bad_tokens.spend(source)
                    raise
                limits.in_all.take("")
                self._check_bans(caller, self._feed.news)
                limits.per_pod.take(caller.pod_uid)
                limits.per_identity.take(str(caller.identity))
                with limits.identities_in_flight.one(str(caller.identity)):
                    pod = await self._desk.pod_of(caller)
                    await self._check_member(caller, pod)
                    if self._bind_tokens:
                        check_source(pod, source)
                    check_placed(pod, source)
                return caller, pod

    async def _check_member(self, caller: Caller, pod: PodSeen) -> None:
        """A leaf is for a proxy, for the control plane, or where the namespace lets any pod have one."""
        if pod.has_proxy or self._is_control_plane(caller):
            return
        if not await self._desk.any_pod_in(caller.identity.namespace):
            raise CallerForbidden(
                "pod_without_proxy", f"{caller.pod_name} carries no proxy of ours"
            )

    def _is_control_plane(self, caller: Caller) -> bool:
        identity = caller.identity
        return (
            identity.namespace == self._system_namespace
            and identity.service_account in CONTROL_PLANE_ACCOUNTS
        )

    def _check_bans(self, caller: Caller, news: News) -> None:
        if (kind := news.bans.covers_caller(caller.identity, caller.pod_uid)) is not None:
            raise CallerBanned(kind)

    async def _refuse(self, call: _Call, error: Exception) -> NoReturn:
        """End the call with a code and a fixed text; log and traces get the rest."""
        refused = error if isinstance(error, CallRefused) else None
        code = refused.code if refused else grpc.StatusCode.INTERNAL
        who = str(call.caller.identity) if call.caller else ""
        self._refusals.write(call.rpc, call.context.peer(), code.name, error, who)
        self._report(
            Refusal(
                at=self._clock(),
                rpc=call.rpc,
                code=code.name,
                reason=refused.reason if refused else "bug",
                detail=str(error)[:512] if refused else type(error).__name__,
                source_ip=call.source_ip,
                caller=call.caller,
            )
        )
        hint: tuple[tuple[str, str], ...] = ()
        if refused is not None and refused.retry_after_s is not None:
            hint = ((RETRY_AFTER, str(max(1, round(refused.retry_after_s * 1000)))),)
        elif isinstance(refused, CallerBanned):
            hint = ((BANNED, refused.kind),)
        await call.context.abort(code, PUBLIC_TEXT[code], hint)
        raise AssertionError("abort returns never")

    async def _sign(self, call: _Call, request: ca_pb2.SignRequest) -> ca_pb2.SignResponse:
        caller, pod = await self._admit(call)
        public_key = read_csr(request.csr_der)
        addresses = choose_addresses(pod)
        now = self._clock()
        order = self._order(caller, addresses, request.ttl_s)
        issued = self._issue(order, public_key, now)
        # The ban may have come while the API server was asked.
        self._check_bans(caller, self._feed.news)
        self._report(describe(caller, pod, addresses, order, issued, call.source_ip, now))
        if request.HasField("head"):
            self._anchor(request.head, caller, now)
        return ca_pb2.SignResponse(
            chain_der=issued.chain_der,
            bundle=to_message(self._feed.news),
            lifetime_s=int(issued.lifetime.total_seconds()),
            signed_at_unix_s=int(now.timestamp()),
        )

    def _anchor(self, raw: ca_pb2.ChainHead, caller: Caller, now: dt.datetime) -> None:
        """Write down how far the caller says that its records have come, signed, where whoever keeps the
        store cannot reach it. What is malformed costs the caller nothing but its anchor."""
        try:
            head = Head(raw.chain, raw.sequence, raw.hash)
            pod = f"{caller.identity.namespace}/{caller.pod_name}"
            at_ns = int(now.timestamp()) * 10**9
            said = anchor_statement(head, pod, str(caller.identity), at_ns)
            signed = self._anchors().sign(said)
        except (EvidenceMalformed, AuthorityExpired, MaterialRefused, ValueError) as e:
            _limited.warning("no chain anchor", extra={"error": str(e)})
            return
        _log.info(
            MESSAGE,
            extra={
                "statement": said,
                "signature": signed.signature,
                "certificates": signed.certificates,
            },
        )

    def _order(self, caller: Caller, addresses: Addresses, wished_s: int) -> Order:
        longest = self._leaf_ttl
        if addresses.provisional:
            longest = min(longest, PROVISIONAL_LIFETIME)
        lifetime = clamp_lifetime(wished_s, self._leaf_ttl, longest)
        names: tuple[str, ...] = ()
        identity = caller.identity
        if self._is_control_plane(caller):
            names = service_dns_names(identity.service_account, identity.namespace)
        return Order(identity, addresses.ips, names, lifetime, caller.pod_uid)

    def _issue(self, order: Order, public_key: Any, now: dt.datetime) -> Issued:
        try:
            return self._signer().issue(order, public_key, now)
        except (AuthorityExpired, CertificateUnsound) as e:
            raise CannotAnswer(e.reason, str(e)) from e

    async def _read_acks(self, call: _Call, acks: AsyncIterator[bytes], watcher: Watcher) -> None:
        async for raw in acks:
            try:
                ack = ca_pb2.BundleAck.FromString(raw)
            except DecodeError:
                refused = RequestRefused("request_malformed", "no BundleAck")
                self._refusals.write(call.rpc, call.context.peer(), refused.code.name, refused)
                return  # nothing that it says is heard any more
            watcher.ack(ack.generation, ack.revision)
            self._ledger.acked(watcher.pod_uid, watcher.acked, ack.serial)
            # An honest pod acknowledges once per change; one that floods meets its own flow control.
            await asyncio.sleep(ACK_PAUSE_S)


async def _read_request(requests: AsyncIterator[bytes]) -> ca_pb2.SignRequest:
    """Raises RequestRefused for one that does not come soon, or is none."""
    try:
        async with asyncio.timeout(READ_S):
            return ca_pb2.SignRequest.FromString(await anext(aiter(requests)))
    except (TimeoutError, StopAsyncIteration) as e:
        raise RequestRefused("request_missing", f"within {READ_S:g} s") from e
    except DecodeError as e:
        raise RequestRefused("request_malformed", "no SignRequest") from e


def to_message(news: News) -> ca_pb2.Bundle:
    bundle, bans = news.bundle, news.bans
    known = ca_pb2.Bans(
        identity=sorted(bans.identities), pod_uid=sorted(bans.pods), serial=sorted(bans.serials)
    )
    return ca_pb2.Bundle(
        trust_domain=bundle.trust_domain,
        generation=bundle.generation,
        root_der=bundle.roots,
        bans=known if news.bans_known else None,
        revision=news.revision,
    )
