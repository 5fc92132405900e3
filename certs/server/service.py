"""The two RPCs: admit, then sign or stream. Only wiring; each decision has its own file."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc

from certs.authority.issue import (
    Authority,
    AuthorityExpired,
    CertificateUnsound,
    Issued,
    Order,
    clamp_lifetime,
)
from certs.names import CONTROL_PLANE_ACCOUNTS, service_dns_names
from certs.server.access import Needs, needs
from certs.server.csr import read_csr
from certs.server.feed import BundleFeed, Watcher
from certs.server.issuance import Report, describe
from certs.server.limits import InFlight, TokenBuckets
from certs.server.pods import Addresses, choose_addresses, read_peer
from certs.server.refusal_log import RefusalLog
from certs.server.refusals import PUBLIC_TEXT, CallRefused, CannotAnswer
from certs.server.review import Caller, read_bearer
from certs.server.tokens import TokenDesk
from certs.trust.bundle import TrustBundle
from certs.trust.identity import WorkloadIdentity
from kit.clock import Clock
from kit.tasks import spawn, stop
from proto import ca_pb2
from proto.ca_pb2_grpc import CertificateAuthorityServicer

PROVISIONAL_LIFETIME = dt.timedelta(minutes=5)
ACK_PAUSE_S = 0.05
Context = grpc.aio.ServicerContext[Any, Any]


class CaService(CertificateAuthorityServicer):
    def __init__(
        self,
        *,
        authority: Authority,
        desk: TokenDesk,
        feed: BundleFeed,
        report: Report,
        system_namespace: str,
        leaf_ttl: dt.timedelta,
        in_flight: InFlight,
        buckets: TokenBuckets,
        refusals: RefusalLog,
        clock: Clock,
    ) -> None:
        self._authority, self._desk, self._feed, self._report = authority, desk, feed, report
        self._system_namespace, self._leaf_ttl = system_namespace, leaf_ttl
        self._in_flight, self._buckets, self._clock = in_flight, buckets, clock
        self._refusals = refusals

    async def Sign(  # noqa: N802 - the name is gRPC's
        self, request: ca_pb2.SignRequest, context: Context
    ) -> ca_pb2.SignResponse:
        try:
            with self._in_flight.one(read_peer(context.peer())):
                return await self._sign(request, context)
        except Exception as e:
            await self._refuse("Sign", context, e)

    async def WatchBundle(  # noqa: N802 - the name is gRPC's
        self, request_iterator: AsyncIterator[ca_pb2.BundleAck], context: Context
    ) -> AsyncIterator[ca_pb2.Bundle]:
        try:
            with self._in_flight.one(read_peer(context.peer())):
                caller = await self._admit("WatchBundle", context)
                await self._desk.pod_of(caller)
            name = f"{caller.identity.namespace}/{caller.pod_name}"
            with self._feed.watcher(caller.pod_uid, name) as watcher:
                acks = spawn(_read_acks(request_iterator, watcher), name=f"acks of {name}")
                try:
                    async for bundle in watcher.bundles():
                        yield to_message(bundle)
                finally:
                    await stop(acks)
        except Exception as e:
            await self._refuse("WatchBundle", context, e)

    async def _admit(self, rpc: str, context: Context) -> Caller:
        match needs(rpc):
            case Needs.POD_TOKEN:
                metadata = list(context.invocation_metadata() or ())
                caller = await self._desk.who(read_bearer(metadata))
                self._buckets.take(caller.pod_uid)
                return caller

    async def _refuse(self, rpc: str, context: Context, error: Exception) -> NoReturn:
        """End the call with a code and a fixed text; the log gets the rest."""
        code = error.code if isinstance(error, CallRefused) else grpc.StatusCode.INTERNAL
        self._refusals.write(rpc, context.peer(), code.name, error)
        await context.abort(code, PUBLIC_TEXT[code])
        raise AssertionError("abort returns never")

    async def _sign(self, request: ca_pb2.SignRequest, context: Context) -> ca_pb2.SignResponse:
        caller = await self._admit("Sign", context)
        public_key = read_csr(request.csr_der)
        pod = await self._desk.pod_of(caller)
        source_ip = read_peer(context.peer())
        addresses = choose_addresses(pod, source_ip)
        now = self._clock()
        order = self._order(caller.identity, addresses, request.ttl_s)
        issued = self._issue(order, public_key, now)
        self._report(describe(caller, pod, addresses, order, issued, source_ip, now))
        return ca_pb2.SignResponse(
            chain_der=issued.chain_der,
            bundle=to_message(self._feed.current),
            lifetime_s=int(issued.lifetime.total_seconds()),
            signed_at_unix_s=int(now.timestamp()),
        )

    def _order(self, identity: WorkloadIdentity, addresses: Addresses, wished_s: int) -> Order:
        longest = self._leaf_ttl
        if addresses.provisional:
            longest = min(longest, PROVISIONAL_LIFETIME)
        lifetime = clamp_lifetime(wished_s, self._leaf_ttl, longest)
        names: tuple[str, ...] = ()
        account = identity.service_account
        if identity.namespace == self._system_namespace and account in CONTROL_PLANE_ACCOUNTS:
            names = service_dns_names(account, identity.namespace)
        return Order(identity, addresses.ips, names, lifetime)

    def _issue(self, order: Order, public_key: Any, now: dt.datetime) -> Issued:
        try:
            return self._authority.issue(order, public_key, now)
        except (AuthorityExpired, CertificateUnsound) as e:
            raise CannotAnswer(e.reason, str(e)) from e


def to_message(bundle: TrustBundle) -> ca_pb2.Bundle:
    return ca_pb2.Bundle(
        trust_domain=bundle.trust_domain, generation=bundle.generation, root_der=bundle.roots
    )


async def _read_acks(acks: AsyncIterator[ca_pb2.BundleAck], watcher: Watcher) -> None:
    async for ack in acks:
        watcher.ack(ack.generation)
        # An honest pod acknowledges once per change; one that floods meets its own flow control.
        await asyncio.sleep(ACK_PAUSE_S)
