"""The gRPC service of `proto/registry.proto`: one stream per sidecar, for as long as it lives."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from certs.client.rpc import Verify, peer_facts
from certs.trust.bans import Bans
from certs.trust.facts import LeafFacts
from certs.trust.identity import WorkloadIdentity
from certs.trust.svid import SvidRefused
from kit.addresses import canonical_ip
from kit.buckets import Buckets
from kit.clock import Clock, Monotonic, monotonic, utcnow
from kit.limited_log import LimitedLog
from kit.tasks import spawn, stop
from proto import registry_pb2 as pb
from registry.admit import HelloRefused, admit
from registry.facts import PodFacts
from registry.hub import Hub, Subscription
from registry.keys import Key, KeyMalformed
from registry.limits import USUAL, StreamLimits
from registry.model import Model
from registry.overview import overview

Context = aio.ServicerContext[bytes, bytes]

HELLO_TIMEOUT_S = 5.0
POD_TIMEOUT_S = 5.0
"""How long a pod may be unknown to us after its sidecar calls: the watch may lag behind it."""
_POD_POLL_S = 0.1
MAX_STREAMS = 20_000
_log = logging.getLogger(__name__)


class RegistryService:
    """Answers sidecars out of `hub`.

    `verify` judges a DER leaf (`certs.trust.svid`), raising an exception with a `reason`.
    """

    def __init__(
        self,
        hub: Hub,
        model: Model,
        verify: Verify,
        clock: Clock = utcnow,
        leaves_name_pods: bool = True,
        store: WorkloadIdentity | None = None,
        mesh_default: str = "",
        monotonic: Monotonic = monotonic,
        limits: StreamLimits = USUAL,
    ) -> None:
        """`store` alone may ask for the policies; None: nobody may."""
        self._store, self._mesh_default = store, mesh_default
        self._leaves_name_pods = leaves_name_pods
        self._hub, self._model, self._verify, self._clock = hub, model, verify, clock
        self.streams = 0
        self.keys_refused: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        """Streams, by reason."""
        self._limited = LimitedLog(_log)
        self._open: dict[asyncio.Task[Any], tuple[LeafFacts, str]] = {}
        """The reader of each open stream, oldest first: the leaf that opened it, and its pod's UID."""
        self._replaced: set[asyncio.Task[Any]] = set()
        self._monotonic, self._limits = monotonic, limits
        self._begun = Buckets(limits.begun_per_s, limits.begun_burst)
        self._strangers: Counter[str] = Counter()
        """By address: streams that have not shown whose they are."""

    def cut_banned(self, bans: Bans) -> None:
        """End the streams of callers that `bans` covers; new ones are refused by `verify`."""
        for reader, (leaf, _) in list(self._open.items()):
            if bans.covers(leaf) is not None:
                reader.cancel()

    def handlers(self) -> grpc.GenericRpcHandler:
        """For `server.add_generic_rpc_handlers`. Not the generated ones: those would encode each
        answer once per stream, and ours come encoded."""
        discover: Any = grpc.stream_stream_rpc_method_handler(self.discover, None, None)
        name = pb.DESCRIPTOR.services_by_name["Registry"].full_name
        return grpc.method_handlers_generic_handler(name, {"Discover": discover})

    def review_handlers(self) -> grpc.GenericRpcHandler:
        # As a stream of one request: who may not ask is refused before gRPC waits for the question.
        policies: Any = grpc.stream_unary_rpc_method_handler(
            self.policies, None, pb.PoliciesResponse.SerializeToString
        )
        name = pb.DESCRIPTOR.services_by_name["Review"].full_name
        return grpc.method_handlers_generic_handler(name, {"Policies": policies})

    async def policies(
        self, requests: AsyncIterator[bytes], context: aio.ServicerContext[Any, Any]
    ) -> pb.PoliciesResponse:
        """Whose pods a policy selects and whom it lets in is for the trace store, which shows it to
        those who hold its token."""
        try:
            leaf = peer_facts(context, self._verify)
        except SvidRefused as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, error.reason)
        if self._store is None or leaf.identity != self._store:
            self._limited.warning("policies refused", caller=str(leaf.identity))
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not_the_trace_store")
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                request = pb.PoliciesRequest.FromString(await anext(aiter(requests)))
        except (TimeoutError, StopAsyncIteration, DecodeError):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "request_malformed")
        return overview(self._model, self._mesh_default, with_labels=request.with_labels)

    async def discover(self, requests: AsyncIterator[bytes], context: Context) -> None:
        source = context.peer().rpartition(":")[0]
        if self.streams >= MAX_STREAMS:
            await self._turn_away(context, "too_many_streams")
        if not self._begun.take(source, self._monotonic()):
            await self._turn_away(context, "stream_rate")
        if self._strangers[source] >= self._limits.strangers_per_source:
            await self._turn_away(context, "too_many_strangers")
        self.streams += 1
        try:
            await self._serve(requests, context, source)
        finally:
            self.streams -= 1

    async def _turn_away(self, context: Context, reason: str) -> None:
        """Before anything is read; the log says nothing of it, the metric does."""
        self.refused[reason] += 1
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)

    def _stranger(self, source: str, step: int) -> None:
        self._strangers[source] += step
        if not self._strangers[source]:
            del self._strangers[source]

    def _make_room(self, uid: str) -> None:
        """The newest stream of a pod counts: an old one may be a connection that nobody ended."""
        of_pod = [reader for reader, (_, of) in self._open.items() if of == uid]
        for reader in of_pod[: max(0, len(of_pod) + 1 - self._limits.per_pod)]:
            self.refused["replaced"] += 1
            self._replaced.add(reader)
            reader.cancel()

    async def _serve(self, requests: AsyncIterator[bytes], context: Context, source: str) -> None:
        self._stranger(source, 1)
        try:
            leaf, pod = await self._admit(requests, context)
        finally:
            self._stranger(source, -1)
        self._make_room(pod.uid)
        lifetime_s = (leaf.not_after - self._clock()).total_seconds()
        subscription = self._hub.open(pod.uid)
        reader = spawn(
            self._read(requests, subscription), name=f"discover {pod.namespace}/{pod.name}"
        )
        writer = spawn(_write(subscription, context), name=f"push {pod.namespace}/{pod.name}")
        self._open[reader] = leaf, pod.uid
        try:
            # A stream lives no longer than the leaf that opened it.
            done, _ = await asyncio.wait(
                {reader, writer}, timeout=lifetime_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            subscription.close()
            del self._open[reader]
            cut = reader.cancelled()
            replaced = reader in self._replaced
            self._replaced.discard(reader)
            await stop(reader, writer)
        if replaced:
            await context.abort(grpc.StatusCode.ABORTED, "replaced")
        if cut:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "banned")
        if not done:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "leaf_expired")
        if subscription.pod_gone:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "pod_unknown")
        if reader in done and (refused := reader.result()) is not None:
            await context.abort(*refused)

    async def _admit(
        self, requests: AsyncIterator[bytes], context: Context
    ) -> tuple[LeafFacts, PodFacts]:
        try:
            leaf = peer_facts(context, self._verify)
            hello = await _hello(requests)
            pod = await self._await_pod(hello.pod_uid)
            caller = caller_ip(context.peer())
            admitted = admit(hello, leaf, caller, pod, self._leaves_name_pods)
            if self._leaves_name_pods:
                self._hub.changed(self._model.vouch(admitted.uid, sorted(leaf.ips)))
            return leaf, admitted
        except Exception as error:
            # A refusal carries its slug; anything else is refused too, and says no more outside.
            reason = str(getattr(error, "reason", "hello_malformed"))
            self.refused[reason] += 1
            self._limited.warning(
                "sidecar refused", reason=reason, error=str(error), caller=context.peer()
            )
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, reason)
            raise AssertionError("abort always raises") from error

    async def _read(
        self, requests: AsyncIterator[bytes], subscription: Subscription
    ) -> tuple[grpc.StatusCode, str] | None:
        """Take the stream's questions until it ends; returns why it must be ended from here, if so.

        A key that cannot be answered is left out alone: whoever waits for it is refused in time, and
        the other keys of the stream are answered.
        """
        async for raw in requests:
            try:
                request = pb.DiscoverRequest.FromString(raw)
            except DecodeError:
                return grpc.StatusCode.INVALID_ARGUMENT, "request_malformed"
            match request.WhichOneof("request"):
                case "subscribe":
                    asked = request.subscribe
                    keys = [self._key(text, subscription.uid) for text in asked.keys]
                    if left_out := subscription.ask(keys, asked.held):
                        self.keys_refused["too_many_keys"] += left_out
                case "unsubscribe":
                    subscription.drop(request.unsubscribe.keys)
                case "ack":
                    subscription.ack(request.ack.version)
                case _:
                    return grpc.StatusCode.INVALID_ARGUMENT, "request_unexpected"
        return None

    def _key(self, text: str, uid: str) -> Key | None:
        try:
            return Key.parse(text)
        except KeyMalformed as error:
            self.keys_refused[error.reason] += 1
            self._limited.warning("key refused", error=str(error), pod_uid=uid)
            return None

    async def _await_pod(self, uid: str) -> PodFacts | None:
        waited_s = 0.0
        while (pod := self._model.pod(uid)) is None and waited_s < POD_TIMEOUT_S:
            await asyncio.sleep(_POD_POLL_S)
            waited_s += _POD_POLL_S
        return pod


async def _hello(requests: AsyncIterator[bytes]) -> pb.Hello:
    try:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            first = pb.DiscoverRequest.FromString(await anext(aiter(requests)))
    except (StopAsyncIteration, TimeoutError):
        raise HelloRefused("hello_missing") from None
    except DecodeError:
        raise HelloRefused("hello_malformed") from None
    if first.WhichOneof("request") != "hello":
        raise HelloRefused("hello_missing")
    return first.hello


async def _write(subscription: Subscription, context: Context) -> None:
    while (response := await subscription.take()) is not None:
        await context.write(response)


def caller_ip(peer: str) -> str:
    """The canonical address of a gRPC peer, "ipv4:10.0.0.7:1234" or "ipv6:%5Bfd00::7%5D:1234".

    Raises HelloRefused for a peer that has none, such as one on a unix socket.
    """
    family, _, rest = peer.replace("%5B", "[").replace("%5D", "]").partition(":")
    host = rest.rpartition(":")[0].strip("[]")
    if family not in ("ipv4", "ipv6"):
        raise HelloRefused("caller_address_unknown", peer)
    try:
        return canonical_ip(host)
    except ValueError:
        raise HelloRefused("caller_address_unknown", peer) from None
