"""What a link's span costs the sidecar, in microseconds: `python -m bench.span_cost`.

Prints the cost of handing a record over, of encoding it with its place in the hash chain and without,
for links that repeat (the same peers, only ids, times and byte counts differ) and for links that never
do, of the access line, and of a signed checkpoint (one in a thousand records, or one in 30 s).
"""

import asyncio
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.certificates import make_certificates
from certs.evidence.chain import Chain
from certs.evidence.signed import WorkloadSigner
from certs.trust.contexts import TlsMaterial
from sidecar.report import LinkRecord
from sidecar.telemetry.access import AccessLines
from sidecar.telemetry.config import TelemetryConfig
from sidecar.telemetry.encode import SpanEncoder, export_request, framed
from sidecar.telemetry.exporter import LinkExporter
from sidecar.telemetry.resource import PodResource

COUNT = 20_000


def link(number: int, *, repeats: bool) -> LinkRecord:
    r = LinkRecord("outbound")
    r.trace_id, r.span_id = secrets.token_bytes(16), secrets.token_bytes(8)
    r.start_ns, r.end_ns = 1_800_000_000_000_000_000 + number, 1_800_000_000_005_000_000 + number
    r.security, r.verdict, r.close = "mtls", "allowed", "fin"
    r.policy, r.rule = "prod/db", "allow[0]"
    r.source_ip, r.source_port, r.source_pod = "10.1.0.7", 30_000 + number % 20_000, "shop/api-1"
    r.source_identity = "spiffe://cluster.local/ns/shop/sa/api"
    r.original_ip, r.original_port, r.service = "10.96.0.12", 5432, "db.prod"
    r.destination_ip = (
        "10.1.0.9" if repeats else f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
    )
    r.destination_port, r.destination_pod = 5432, "prod/db-0"
    r.destination_identity = "spiffe://cluster.local/ns/prod/sa/db"
    r.endpoint_choice, r.attempts, r.pooled, r.direct = "least-open", 1, True, True
    r.peer_serial, r.peer_sha256, r.peer_not_after = "5f" * 16, "ab" * 32, 1_800_003_600
    r.tls_cipher, r.alpn = "TLS_AES_128_GCM_SHA256", "podlink/2"
    r.bytes_sent, r.bytes_received = 350 + number, 81_920 + number
    return r


def microseconds_each(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return (time.process_time() - started) / COUNT * 1e6


def encode_all(records: Sequence[LinkRecord], resource: bytes, *, chained: bool = True) -> int:
    encoder, size = SpanEncoder(Chain(bytes(16)) if chained else None), 0
    for first in range(0, len(records), 256):
        spans = [framed(encoder.encode(record)) for record in records[first : first + 256]]
        size += len(export_request(resource, spans))
    return size


async def main() -> None:
    repeating = [link(n, repeats=True) for n in range(COUNT)]
    distinct = [link(n, repeats=False) for n in range(COUNT)]
    resource = PodResource(pod="api-1", namespace="shop", node="n1", service_account="api").encode()
    exporter = LinkExporter(TelemetryConfig(endpoint="127.0.0.1:1", allowed_room=COUNT))

    def report_all() -> None:
        for record in repeating:
            exporter.report(record)

    print(f"report                   {microseconds_each(report_all):6.2f} us/span")
    for name, records in (("repeating", repeating), ("distinct", distinct)):
        for chained in (False, True):
            cost = min(
                microseconds_each(lambda r=records, c=chained: encode_all(r, resource, chained=c))  # type: ignore[misc]
                for _ in range(3)
            )
            size = encode_all(records, resource, chained=chained) / COUNT
            how = "chained" if chained else "alone"
            print(f"encode, {name:9} {how:8} {cost:5.2f} us/span, {size:.0f} bytes/span")
    lines = AccessLines()
    cost = min(
        microseconds_each(lambda: [lines.line(record) for record in repeating]) for _ in range(3)
    )
    print(f"access line, repeating     {cost:5.2f} us/link")
    signer = signer_of_its_own()
    started = time.process_time()
    for _ in range(500):
        signer.sign("x" * 400)
    print(f"sign a checkpoint          {(time.process_time() - started) / 500 * 1e6:5.1f} us each")


def signer_of_its_own() -> WorkloadSigner:
    with tempfile.TemporaryDirectory() as name:
        made = make_certificates(Path(name)).folder
        return WorkloadSigner(
            TlsMaterial(
                (made / "near.key").read_bytes(),
                (made / "near.pem").read_bytes(),
                (made / "ca.pem").read_bytes(),
            )
        )


if __name__ == "__main__":
    asyncio.run(main())
