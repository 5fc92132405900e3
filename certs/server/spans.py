"""A span for each certificate issued or refused, each ban and each step of a rotation, over OTLP.

What was issued, banned and rotated has a queue of its own: who floods the CA with bad tokens cannot
push it out. A collector that is down costs memory up to the bounds, then spans, which are counted;
never a signature. (Names and attributes: `certs.ledger`, docs/spans.md.)
"""

import asyncio
import datetime as dt
from collections.abc import Callable, Mapping

import grpc

from certs import ledger as a
from certs.server.issuance import Issuance
from certs.server.report import BanChange, Item, Refusal, RotationStep
from kit.clock import monotonic
from kit.otlp import SpanSender, Value
from kit.tasks import spawn, stop

_ROOM = 4096
_GRACE_S = 10.0
_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 10_000),
)


Dialling = Callable[[], tuple[grpc.ChannelCredentials, float]]
"""Credentials for the trace store, and when to ask for new ones (monotonic seconds)."""


class SpanExporter:
    """Give it items by calling it; run `run` in a task. An empty endpoint keeps and sends nothing."""

    def __init__(
        self,
        endpoint: str,
        replica: str,
        namespace: str,
        room: int = _ROOM,
        dialling: Dialling | None = None,
    ) -> None:
        """`dialling` gives the credentials of mutual TLS; None is insecure, in plaintext."""
        self._endpoint, self._dialling = endpoint, dialling
        self._channel: grpc.aio.Channel | None = None
        self._redial_at = 0.0
        resource = {
            "service.namespace": namespace,
            "service.instance.id": replica,
            "k8s.pod.name": replica,
            "k8s.namespace.name": namespace,
        }
        self._kept = SpanSender("podlink-ca", self._connected, resource, room=room)
        self._refusals = SpanSender("podlink-ca", self._connected, resource, room=room)

    @property
    def dropped(self) -> int:
        return self._kept.dropped + self._refusals.dropped

    @property
    def sent(self) -> int:
        return self._kept.sent + self._refusals.sent

    def __call__(self, item: Item) -> None:
        if self._endpoint:
            sender = self._refusals if isinstance(item, Refusal) else self._kept
            name, attributes = describe(item)
            sender.emit(name, attributes, int(item.at.timestamp() * 1e6) * 1000)

    def redial(self) -> None:
        """Roots or signer have changed: ask for new credentials before the next request."""
        if self._dialling is not None:
            self._redial_at = 0.0

    async def run(self) -> None:
        """Send until cancelled; what is left then gets two seconds."""
        if not self._endpoint:
            return
        senders = (self._kept, self._refusals)
        running = [spawn(sender.run(), name="send spans of the CA") for sender in senders]
        try:
            await asyncio.wait(running)
        finally:
            await stop(*running)
            for sender in senders:
                await sender.close()
            if self._channel is not None:
                await self._channel.close()

    def _connected(self) -> grpc.aio.Channel:
        if self._channel is not None and monotonic() < self._redial_at:
            return self._channel
        passed, self._channel = self._channel, None
        if passed is not None:
            spawn(passed.close(_GRACE_S), name="close the old channel to the trace store")
        if self._dialling is None:
            self._redial_at = float("inf")
            self._channel = grpc.aio.insecure_channel(self._endpoint, _OPTIONS)
        else:
            credentials, self._redial_at = self._dialling()
            self._channel = grpc.aio.secure_channel(self._endpoint, credentials, _OPTIONS)
        return self._channel


def describe(item: Item) -> tuple[str, Mapping[str, Value | None]]:
    """The name and attributes of the span for `item`."""
    match item:
        case Issuance():
            return a.ISSUED, _issued(item)
        case Refusal():
            return a.REFUSED, _refused(item)
        case BanChange():
            return a.BANNED, _banned(item)
        case RotationStep():
            found = {a.ROTATION_PHASE: item.phase, a.ROTATION_BY: item.by}
            return a.ROTATED, {**found, a.ROTATION_SAID: item.said}


def _issued(item: Issuance) -> dict[str, Value | None]:
    return {
        a.SERIAL: item.serial,
        a.SHA256: item.sha256.upper(),
        a.IDENTITY: item.identity,
        a.POD: f"{item.namespace}/{item.pod_name}",
        a.POD_UID: item.pod_uid,
        a.NODE: item.node,
        a.IPS: ",".join(item.ips),
        a.ISSUER: f"{item.issuer_name} {item.issuer[:16]}",
        a.NOT_BEFORE: _text_time(item.not_before),
        a.NOT_AFTER: _text_time(item.not_after),
        a.DIRECT: item.direct,
        a.PROVISIONAL: item.provisional,
        a.CLIENT_ADDRESS: item.source_ip,
    }


def _refused(item: Refusal) -> dict[str, Value | None]:
    found: dict[str, Value | None] = {
        a.REASON: item.reason,
        a.ERROR_MESSAGE: item.detail,
        a.CLIENT_ADDRESS: item.source_ip,
    }
    if (caller := item.caller) is not None:
        found[a.IDENTITY] = str(caller.identity)
        found[a.POD] = f"{caller.identity.namespace}/{caller.pod_name}"
        found[a.POD_UID], found[a.NODE] = caller.pod_uid, caller.node_name
    return found


def _banned(item: BanChange) -> dict[str, Value | None]:
    note, ban = item.note, item.note.ban
    name = {"identity": a.IDENTITY, "pod": a.POD_UID, "serial": a.SERIAL}[ban.kind]
    return {
        a.BAN: ban.kind,
        name: ban.value,
        a.BAN_BY: note.by,
        a.BAN_LIFTED: item.lifted,
        a.REASON: "ban_lifted" if item.lifted else "banned",
        a.ERROR_MESSAGE: note.why,
    }


def _text_time(at: dt.datetime) -> str:
    return at.replace(microsecond=0).isoformat().replace("+00:00", "Z")
