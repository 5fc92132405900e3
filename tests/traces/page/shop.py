"""Two days of a shop's life, written by the real writer with a clock that is turned: what the page's
tests look at, and what its pictures show."""

import asyncio
import hashlib
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from sidecar.report import LinkRecord
from sidecar.telemetry.encode import SpanEncoder, export_request, framed
from sidecar.telemetry.resource import PodResource
from tests.sidecar.telemetry.records import inbound_of, outbound
from traces.config import TracesConfig
from traces.writer import Writer

HOUR = 3600 * 10**9
EVIL = "<img src=x onerror=alert(1)>\"'</script><script>alert(2)</script>\u202egnp.exe"
"""What nobody's name should do."""


@dataclass(frozen=True)
class Talk:
    """One edge of the shop: `count` links in each hour of its life."""

    source: str
    destination: str
    port: int
    count: int = 4
    since_h: float = 47.0
    kind: str = "mtls"
    size: int = 20_000


TALKS = (
    Talk("shop/web", "shop/cart", 8080, 6),
    Talk("shop/web", "shop/orders", 8080, 9, size=90_000),
    Talk("shop/web", "shop/catalog", 8080, 12, size=240_000),
    Talk("shop/cart", "shop/orders", 8080, 4),
    Talk("shop/orders", "prod/ledger", 5432, 5, size=400_000),
    Talk("shop/catalog", "prod/search", 9200, 6),
    Talk("shop/cart", "prod/cache", 6379, 8),
    Talk("ops/prometheus", "shop/web", 9100, 2),
    Talk("ops/prometheus", "shop/orders", 9100, 2),
    Talk("batch/report", "prod/ledger", 5432, 2, 3.0, "denied"),
    Talk("batch/report", "prod/search", 9200, 1, 5.0),
    Talk("legacy/cron", "shop/orders", 8080, 1, 20.0, "permissive"),
    Talk("legacy/cron", "shop/cart", 8080, 1, 6.0, "plaintext_denied"),
    Talk("shop/orders", "10.8.4.12", 5432, 3, 30.0, "external", 60_000),
    Talk("shop/web", "prod/cache", 6379, 2, 2.0),
    Talk("shop/web", "203.0.113.9", 443, 1, 8.0, "external"),
    Talk("shop/catalog", "prod/cache", 6379, 3, 30.0, "mixed"),
    Talk("prod/cache", "prod/cache", 16379, 2),
    Talk("shop/cart", "prod/mail", 25, 1, 10.0, "failed"),
)


def identity(name: str) -> str:
    namespace, _, account = name.partition("/")
    return f"spiffe://cluster.local/ns/{namespace}/sa/{account}"


def serial(name: str) -> str:
    """Of the leaf that the pods of this name hold."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def records(talk: Talk, at_ns: int, dice: random.Random) -> list[LinkRecord]:
    """One link of this edge as its two sides, or the one that has a sidecar, would tell it."""
    external = "/" not in talk.destination
    kind = talk.kind
    if kind == "mixed":
        kind = "unmeshed_peer" if dice.random() < 0.25 else "mtls"
    duration = dice.randrange(2, 400) * 1_000_000
    out = outbound(
        start_ns=at_ns - duration,
        end_ns=at_ns,
        source_pod=f"{talk.source}-7d9f",
        source_identity=identity(talk.source),
        destination_pod="" if external else f"{talk.destination}-7d9f",
        destination_identity="" if external else identity(talk.destination),
        destination_ip=talk.destination if external else "10.1.0.9",
        destination_port=talk.port,
        original_ip=talk.destination if external else "10.96.0.12",
        original_port=talk.port,
        service="" if external else ".".join(reversed(talk.destination.split("/"))),
        policy="",
        rule="",
        peer_serial=serial(talk.destination),
        bytes_sent=dice.randrange(200, 2000),
        bytes_received=dice.randrange(talk.size // 2, talk.size),
    )
    if kind == "mtls":
        return [
            out,
            inbound_of(
                out, policy="", rule="default:allow-meshed", peer_serial=serial(talk.source)
            ),
        ]
    if kind == "denied":
        for name, value in {
            "verdict": "denied",
            "reason": "policy_denied",
            "close": "refused",
        }.items():
            setattr(out, name, value)
        out.bytes_sent = out.bytes_received = 0
        return [
            out,
            inbound_of(
                out,
                policy="prod/ledger",
                rule="no-rule",
                nearest_rule="prod/ledger allow[0] allows shop/orders, not batch/report",
                error="no rule of the policies that select this pod allows it",
            ),
        ]
    if kind in ("permissive", "plaintext_denied"):
        denied = kind == "plaintext_denied"
        return [
            inbound_of(
                out,
                parent_span_id=b"",
                source_identity="",
                security="none" if denied else "plaintext",
                verdict="denied" if denied else "allowed",
                reason=kind,
                policy="",
                rule="plaintext:deny" if denied else "plaintext:allow",
                peer_serial="",
                peer_sha256="",
                peer_not_after=0,
                direct=None,
            )
        ]
    out.peer_serial, out.peer_sha256, out.peer_not_after, out.direct = "", "", 0, None
    if kind == "failed":
        out.security, out.verdict, out.reason, out.close = (
            "none",
            "failed",
            "endpoint_unreachable",
            "refused",
        )
        return [out]
    out.security, out.reason, out.endpoint_choice = "plaintext", kind, kind
    out.service, out.destination_identity = "", ""
    return [out]


def request(pod: str, *links: LinkRecord) -> ExportTraceServiceRequest:
    namespace, _, name = pod.partition("/")
    resource = PodResource(
        pod=f"{name}-7d9f", namespace=namespace, node="node-1", service_account=name
    ).encode()
    encoder = SpanEncoder()
    spans = [framed(encoder.encode(record)) for record in links]
    return ExportTraceServiceRequest.FromString(export_request(resource, spans))


def certificate(name: str, at_ns: int, pod: str, **more: str) -> ExportTraceServiceRequest:
    """A span of the CA: `certificate issued`, `refused` or `banned`."""
    asked = ExportTraceServiceRequest()
    resource = asked.resource_spans.add()
    resource.resource.attributes.append(
        KeyValue(key="service.name", value=AnyValue(string_value="podlink-ca"))
    )
    span = resource.scope_spans.add().spans.add()
    span.trace_id, span.span_id = random.randbytes(16), random.randbytes(8)
    span.name, span.start_time_unix_nano, span.end_time_unix_nano = name, at_ns, at_ns
    begin, end = at_ns // 10**9 - 60, at_ns // 10**9 + 3540
    facts = {
        "podlink.certificate.pod": f"{pod}-7d9f",
        "podlink.certificate.pod_uid": "0f6a8b1e-0000-4000-8000-0000000000aa",
        "podlink.certificate.node": "node-1",
        "podlink.certificate.identity": identity(pod),
        **more,
    }
    if name == "certificate issued":
        facts |= {
            "podlink.certificate.serial": more.get("serial", random.randbytes(16).hex()),
            "podlink.certificate.issuer": "podlink root 9c1d2e3f4a5b6c7d",
            "podlink.certificate.not_before": _rfc3339(begin),
            "podlink.certificate.not_after": _rfc3339(end),
        }
    for key, value in facts.items():
        span.attributes.append(KeyValue(key=key, value=AnyValue(string_value=value)))
    return asked


def _rfc3339(unix_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix_s))


def days(now_ns: int) -> Iterator[tuple[int, ExportTraceServiceRequest]]:
    """(time of arrival, what arrives), in order."""
    dice = random.Random(4)
    events: list[tuple[int, ExportTraceServiceRequest]] = []
    for talk in TALKS:
        for hour in range(48):
            for _ in range(talk.count):
                at_ns = now_ns - int((47.9 - hour - 0.9 * dice.random()) * HOUR)
                if now_ns - at_ns <= talk.since_h * HOUR and at_ns < now_ns:
                    for record in records(talk, at_ns, dice):
                        events.append((at_ns, request(talk.source, record)))
    pods = sorted(
        {n for t in TALKS for n in (t.source, t.destination) if "/" in n} - {"legacy/cron"}
    )
    for i, pod in enumerate(pods):
        age = int((0.05 + 0.08 * i) % 0.5 * HOUR)
        if pod == "prod/mail":
            age = int(0.9 * HOUR)
        issued = certificate("certificate issued", now_ns - age, pod, serial=serial(pod))
        events.append((now_ns - age, issued))
    events.append(
        (
            now_ns - HOUR // 3,
            certificate(
                "certificate refused",
                now_ns - HOUR // 3,
                pod="batch/ghost",
                **{"podlink.reason": "token_refused"},
            ),
        )
    )
    return iter(sorted(events, key=lambda event: event[0]))


def write(folder: Path, events: Iterator[tuple[int, ExportTraceServiceRequest]]) -> None:
    """Let the real writer keep these events, each at its time."""
    clock = [0]

    async def run() -> None:
        config = TracesConfig(db_path=folder / "traces.db", token_path=folder / "token")
        writer = Writer(config, clock_ns=lambda: clock[0], sweep_every_s=3600.0)
        writer.start()
        waiting: list[asyncio.Future[Counter[str]]] = []
        for at_ns, asked in events:
            if at_ns - clock[0] > HOUR // 2:  # a group is written under one reading of the clock
                await asyncio.gather(*waiting)
                waiting.clear()
                clock[0] = at_ns + HOUR // 2
            waiting.append(asyncio.ensure_future(writer.write(asked)))
        await asyncio.gather(*waiting)
        await writer.stop()

    asyncio.run(run())
