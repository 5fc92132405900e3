"""What the trace store takes in and how fast it answers: `python -m bench.traces`.

    python -m bench.traces ingest --seconds 20        spans/s over OTLP/gRPC, real store, real senders
    python -m bench.traces fill --spans 10000000 --for 280 --db /tmp/spans.db     goes on where it ended
    python -m bench.traces ask --db /tmp/spans.db     every view, over HTTP, from the real store
    python -m bench.traces ask --db /tmp/spans.db --senders 1     the same while spans arrive

`fill` writes through the store's own insertion (tables, indexes, roll-ups), without OTLP before it, so
that ten million spans take minutes; spread over seven days, 400 identities and 2,000 edges. `ask` times
each question five times on a store that was started for it, and prints the worst, first one included.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from bench.span_cost import link
from certs.evidence.chain import CHECKPOINT, SIGNATURE, STATEMENT
from certs.trust.bundle import TrustBundle
from kit.clock import unix_ns
from sidecar.report import LinkRecord
from sidecar.telemetry.encode import SpanEncoder, export_request, framed
from sidecar.telemetry.resource import PodResource
from tests.certs.forge import Forge
from traces.insert import Inserter
from traces.report import canonical, record
from traces.rows import Certificate, ResourceRows, SpanRow, rows_of
from traces.schema import open_for_reading, open_for_writing

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "bench"
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
DAYS, EDGES, PODS = 7, 2_000, 400
GRPC_PORT, HTTP_PORT, REVIEW_PORT = 24317, 24318, 24315
BATCH, TRANSACTION = 256, 20_000
CERTIFICATE = "certificate issued"
LINKS_PER_CERTIFICATE, RECORDS_PER_CHECKPOINT = 37, 1000
RESOURCE = PodResource(pod="api-1", namespace="shop", node="n1", service_account="api")

VIEWS = (
    "/api/links?limit=100",
    "/api/links?limit=100&since=3600",
    "/api/links?namespace=ns7&limit=100",
    "/api/links?verdict=denied&limit=100",
    "/api/links?security=plaintext&since=604800&limit=1000",
    "/api/links?identity=spiffe://cluster.local/ns/ns3/sa/app3&limit=100",
    "/api/links?namespace=nowhere",
    "/overview.json?since=7d",
    "/graph.json?since=7d",
    "/plaintext.json?since=7d",
    "/denied.json?since=7d",
    "/new.json?since=7d",
    "/certificates.json?since=7d",
    "/certificates.json?since=7d&ns=ns7",
)
"""Questions that every store of this version answers; --views takes a file with more, one a line."""


# --- ingest ------------------------------------------------------------------------------------


def send_for(seconds: float, number: int, results: Any, pause_s: float = 0.0) -> None:
    """One sender, as a sidecar would: one request at a time, every span with ids of its own."""
    encoder, sent, refused = SpanEncoder(), 0, 0
    records = [link(n + number, repeats=True) for n in range(BATCH)]
    resource = RESOURCE.encode()
    options = (("grpc.use_local_subchannel_pool", 1),)
    with grpc.insecure_channel(f"127.0.0.1:{GRPC_PORT}", options) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(EXPORT)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for record in records:
                record.trace_id, record.span_id = secrets.token_bytes(16), secrets.token_bytes(8)
            payload = export_request(resource, [framed(encoder.encode(r)) for r in records])
            try:
                call(payload, timeout=30)
                sent += BATCH
            except grpc.RpcError:
                refused += BATCH
                time.sleep(0.05)
            time.sleep(pause_s)
    results.put((sent, refused))


def ingest(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder, store(Path(folder) / "t.db") as process:
        results: Any = multiprocessing.Queue()
        started, cpu = time.monotonic(), cpu_s(process.pid)
        senders = [
            multiprocessing.Process(target=send_for, args=(args.seconds, n * BATCH, results))
            for n in range(args.senders)
        ]
        for sender in senders:
            sender.start()
        told = [results.get() for _ in senders]
        took = time.monotonic() - started
        used = cpu_s(process.pid) - cpu
        for sender in senders:
            sender.join()
        kept = sum(sent for sent, _ in told)
        print(f"acknowledged      {kept / took:10,.0f} spans/s over {took:.1f} s")
        print(f"refused (busy)    {sum(refused for _, refused in told):10,} spans")
        print(f"store CPU         {used / kept * 1e6:10.1f} us/span, {used / took:.2f} cores")
        print(f"store memory      {resident_mib(process.pid):10.0f} MiB")
        print(f"file              {(Path(folder) / 't.db').stat().st_size / kept:10.0f} bytes/span")


# --- fill --------------------------------------------------------------------------------------


class Shape:
    """Spans of EDGES edges, made from rows of real records by exchanging ids and times."""

    def __init__(self) -> None:
        self._random = random.Random(7)
        self._run = secrets.token_hex(8)
        self._sequences = [0] * PODS
        self._links = 0
        encoder = SpanEncoder()
        self.rows: list[tuple[SpanRow, SpanRow | None]] = []
        self.resource = b""
        for number in range(EDGES):
            out, into = self._pair(number)
            payload = export_request(RESOURCE.encode(), [framed(encoder.encode(out))])
            first = self._row(payload)
            second = None
            if into is not None:
                payload = export_request(RESOURCE.encode(), [framed(encoder.encode(into))])
                second = self._row(payload)
            self.rows.append((first, second))

    def _row(self, payload: bytes) -> SpanRow:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )

        [of] = rows_of(ExportTraceServiceRequest.FromString(payload)).resources
        self.resource = of.resource
        return of.rows[0]

    def _pair(self, number: int) -> tuple[LinkRecord, LinkRecord | None]:
        source, destination = number % PODS, (number * 7 + number // PODS) % PODS
        out = link(number, repeats=True)
        out.source_pod = f"ns{source % 40}/app{source}-x"
        out.source_identity = f"spiffe://cluster.local/ns/ns{source % 40}/sa/app{source}"
        out.destination_pod = f"ns{destination % 40}/app{destination}-x"
        out.destination_identity = (
            f"spiffe://cluster.local/ns/ns{destination % 40}/sa/app{destination}"
        )
        out.service, out.destination_port = f"app{destination}.ns{destination % 40}", 8080
        kind = number % 50
        if kind == 0:
            out.verdict, out.security, out.reason = "denied", "none", "policy_denied"
            out.nearest_rule = "prod/db allow[0]: port 5432, not 8080"
        elif kind == 1:
            out.security, out.reason, out.destination_identity = "plaintext", "unmeshed_peer", ""
            return out, None
        elif kind == 2:
            out.security, out.reason = "plaintext", "external"
            out.destination_identity = out.destination_pod = out.service = ""
            return out, None
        into = LinkRecord("inbound")
        for name in LinkRecord.__slots__:
            if name not in ("direction", "endpoint_choice", "attempts", "pooled"):
                setattr(into, name, getattr(out, name))
        into.parent_span_id = out.span_id
        return out, into

    def spans(self, at_ns: int) -> Iterator[SpanRow]:
        """One link's spans: busy edges come often, as they do."""
        edge = min(int(self._random.expovariate(1 / 300)), EDGES - 1)
        trace, span = secrets.token_bytes(16), secrets.token_bytes(8)
        source, destination = edge % PODS, (edge * 7 + edge // PODS) % PODS
        first, second = self.rows[edge]
        yield self._chained(_with(first, trace, span, at_ns), source)
        if second is not None:
            row = _with(second, trace, secrets.token_bytes(8), at_ns)
            yield self._chained(row, destination)
        self._links += 1
        if self._links % LINKS_PER_CERTIFICATE == 0:
            yield _certificate(self._links // LINKS_PER_CERTIFICATE % PODS, at_ns)
        if self._sequences[source] % RECORDS_PER_CHECKPOINT == 0:
            yield self._checkpoint(source, at_ns)

    def _chained(self, row: SpanRow, pod: int) -> SpanRow:
        self._sequences[pod] += 1
        return row._replace(chain=f"{self._run}{pod:016x}", sequence=self._sequences[pod])

    def _checkpoint(self, pod: int, at_ns: int) -> SpanRow:
        counts = {"sampled_out": self._sequences[pod], "dropped_allowed": 0, "reported": 0}
        said = {"pod": f"ns{pod % 40}/app{pod}-x", "counts": counts}
        span = Span(trace_id=secrets.token_bytes(16), span_id=secrets.token_bytes(8))
        span.name, span.end_time_unix_nano = CHECKPOINT, at_ns
        for name, text in ((STATEMENT, json.dumps(said)), (SIGNATURE, "x" * 96), ("c", "y" * 900)):
            span.attributes.add(key=name).value.string_value = text
        row = self.rows[pod][0]._replace(
            name=CHECKPOINT, direction="", edge=None, way=None, span=span.SerializeToString()
        )
        return self._chained(
            row._replace(trace_id=span.trace_id, span_id=span.span_id, digest=span.trace_id), pod
        )._replace(sequence=self._sequences[pod])


def _certificate(pod: int, at_ns: int) -> SpanRow:
    """A leaf of one hour, renewed at half of its life."""
    span = Span(trace_id=secrets.token_bytes(16), span_id=secrets.token_bytes(8), name=CERTIFICATE)
    where = f"ns{pod % 40}"
    told = Certificate(
        "issued",
        at_ns,
        secrets.token_hex(16),
        f"spiffe://cluster.local/ns/{where}/sa/app{pod}",
        f"{where}/app{pod}-x",
        f"{pod:032x}",
        "n1",
        "podlink root 9c1d2e3f4a5b6c7d",
        at_ns - 60 * 10**9,
        at_ns + 3540 * 10**9,
        "",
    )
    return SpanRow(
        span.trace_id,
        span.trace_id,
        span.span_id,
        None,
        CERTIFICATE,
        at_ns,
        at_ns,
        direction="",
        edge=None,
        way=None,
        source_pod="",
        destination_pod="",
        bytes_sent=0,
        bytes_received=0,
        is_ordinary=False,
        chain="",
        sequence=0,
        certificate=told,
        own=None,
        span=span.SerializeToString(),
    )


def _with(row: SpanRow, trace: bytes, span: bytes, at_ns: int) -> SpanRow:
    blob = row.span.replace(row.trace_id, trace, 1).replace(row.span_id, span, 1)
    return row._replace(
        digest=secrets.token_bytes(16),
        trace_id=trace,
        span_id=span,
        start_ns=at_ns - 5_000_000,
        end_ns=at_ns,
        span=blob,
    )


def fill(args: argparse.Namespace) -> None:
    db = open_for_writing(args.db)
    db.execute("PRAGMA synchronous = OFF")
    have = int(db.execute("SELECT coalesce(max(id), 0) FROM spans").fetchone()[0])
    inserter, shape = Inserter(db), Shape()
    until, began, start = time.monotonic() + args.seconds, time.monotonic(), have
    now_ns = unix_ns()
    step_ns = DAYS * 86400 * 10**9 // args.spans
    digest = b"bench resource ."
    while have < args.spans and time.monotonic() < until:
        db.execute("BEGIN IMMEDIATE")
        rows = list[SpanRow]()
        at_ns = now_ns - (args.spans - have) * step_ns
        while len(rows) < TRANSACTION:
            rows.extend(shape.spans(at_ns))
            at_ns += step_ns
        resource = ResourceRows(digest, shape.resource, "", rows)
        have += inserter.insert(resource, at_ns)
        inserter.flush()
        db.execute("COMMIT")
    took = time.monotonic() - began
    size = args.db.stat().st_size
    print(f"{have:,} spans, {size / 2**30:.1f} GiB, {(have - start) / took:,.0f} spans/s just now")
    db.close()


# --- ask ---------------------------------------------------------------------------------------


def ask(args: argparse.Namespace) -> None:
    views = list(VIEWS)
    if args.views:
        views += [line for line in args.views.read_text().split() if line]
    with store(args.db) as process:
        with contextlib.closing(open_for_writing(args.db)) as db:
            newest = db.execute("SELECT trace_id FROM spans ORDER BY id DESC LIMIT 1").fetchone()[0]
            middle = db.execute(
                "SELECT trace_id FROM spans WHERE id >= (SELECT max(id) / 2 FROM spans) LIMIT 1"
            ).fetchone()[0]
        views += [f"/api/traces/{newest.hex()}", f"/api/traces/{middle.hex()}"]
        if args.senders:
            told: Any = multiprocessing.Queue()
            for number in range(args.senders):
                send = (args.seconds, number * BATCH, told, args.pause)
                multiprocessing.Process(target=send_for, args=send, daemon=True).start()
        for view in views:
            took, size = [], 0
            for _ in range(5):
                started = time.monotonic()
                size = len(get(view))
                took.append(time.monotonic() - started)
            print(
                f"{max(took) * 1e3:8.0f} ms worst {statistics.median(took) * 1e3:8.0f} ms median "
                f"{size:9,} bytes  {view[:90]}"
            )
        if args.senders:
            kept = sum(told.get(timeout=args.seconds + 60)[0] for _ in range(args.senders))
            print(f"meanwhile {kept / args.seconds:,.0f} spans/s were taken")
            return
        _report(args.db)
        print(f"store memory {resident_mib(process.pid):.0f} MiB")


def _report(db: Path) -> None:
    """What `podlink report --since 7d` makes the store work out. In this process: only a store that
    has a leaf signs one, and the signature is the least of it."""
    now_ns, forge = unix_ns(), Forge()
    bundle = TrustBundle.of("cluster.local", 1, [forge.root_der])
    with contextlib.closing(open_for_reading(db)) as reader:
        for days in (1, 7):
            started = time.monotonic()
            found = record(
                reader, now_ns // 10**9 - days * 86400, now_ns // 10**9 + 1, now_ns, bundle
            )
            print(
                f"{(time.monotonic() - started) * 1e3:8.0f} ms report of {days} d: "
                f"{found['chains']['records']:,} records of {found['chains']['chains']} chains, "
                f"{found['certificates']['leaves']['count']} leaves, "
                f"{len(canonical(found)) / 2**20:.1f} MiB"
            )


def get(path: str) -> bytes:
    request = urllib.request.Request(f"http://127.0.0.1:{REVIEW_PORT}{path}")
    request.add_header("X-Podlink-Token", TOKEN)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            body: bytes = response.read()
    except urllib.error.HTTPError as e:
        with e:
            raise SystemExit(f"{path}: {e.code} {e.read()[:200]!r}") from e
    return body


# --- the store as a process --------------------------------------------------------------------


@contextlib.contextmanager
def store(db: Path) -> Iterator[subprocess.Popen[bytes]]:
    with tempfile.NamedTemporaryFile() as token:
        Path(token.name).write_text(TOKEN)
        env = {
            **os.environ,
            "PODLINK_TRACES_DB": str(db),
            "PODLINK_TRACES_TOKEN_FILE": token.name,
            "PODLINK_TRACES_HOST": "127.0.0.1",
            "PODLINK_TRACES_GRPC_PORT": str(GRPC_PORT),
            "PODLINK_TRACES_HTTP_PORT": str(HTTP_PORT),
            "PODLINK_TRACES_REVIEW_PORT": str(REVIEW_PORT),
            "PODLINK_TRACES_KEEP": "30d",
            "PODLINK_TRACES_MAX_MIB": str(1 << 20),
            "PODLINK_INSECURE_OTLP": "true",
            "PODLINK_LOG_LEVEL": "warning",
        }
        process = subprocess.Popen([sys.executable, "-m", "traces"], cwd=ROOT, env=env)
        try:
            for _ in range(200):
                with contextlib.suppress(OSError):
                    json.loads(get("/healthz"))
                    break
                time.sleep(0.1)
            yield process
        finally:
            process.terminate()
            process.wait(30)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.traces")
    words = parser.add_subparsers(dest="word", required=True)
    taking = words.add_parser("ingest")
    taking.add_argument("--seconds", type=float, default=20.0)
    taking.add_argument("--senders", type=int, default=2)
    filling = words.add_parser("fill")
    filling.add_argument("--spans", type=int, default=10_000_000)
    filling.add_argument("--for", dest="seconds", type=float, default=280.0)
    filling.add_argument("--db", type=Path, required=True)
    asking = words.add_parser("ask")
    asking.add_argument("--db", type=Path, required=True)
    asking.add_argument("--views", type=Path)
    asking.add_argument("--senders", type=int, default=0, help="that send spans meanwhile")
    asking.add_argument("--seconds", type=float, default=40.0, help="for how long they do")
    asking.add_argument("--pause", type=float, default=0.0, help="of each after a batch, seconds")
    args = parser.parse_args()
    {"ingest": ingest, "fill": fill, "ask": ask}[args.word](args)


if __name__ == "__main__":
    main()
