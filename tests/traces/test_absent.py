"""What the report tells of records that are not there: links in no chain, pods that left none, chains
that end without a last word. Whoever silences a sidecar, or leaves its spans out, shows in these."""

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from certs.evidence.chain import Chain, statement
from certs.evidence.signed import WorkloadSigner
from certs.trust.bundle import TrustBundle
from certs.trust.contexts import TlsMaterial
from sidecar.report import LinkRecord
from sidecar.telemetry.config import TelemetryConfig
from sidecar.telemetry.encode import SpanEncoder, encode_checkpoint, export_request, framed
from sidecar.telemetry.exporter import LinkExporter
from sidecar.telemetry.resource import PodResource
from tests.certs.fake_source import FakeSource
from tests.certs.forge import Forge
from tests.sidecar.telemetry.records import API, outbound
from tests.traces.page import shop
from tests.traces.spans import request_of
from traces.config import TracesConfig
from traces.report import record
from traces.shortfalls import shortfalls
from traces.writer import Writer

pytestmark = pytest.mark.attack_row(64)
FORGE = Forge()
BUNDLE = TrustBundle.of("cluster.local", 1, [FORGE.root_der])
CA = "spiffe://cluster.local/ns/podlink-system/sa/podlink-ca"
MINUTE = 60 * 10**9
Json = dict[str, Any]


class Store:
    """Writes with a clock that is turned, and reports."""

    def __init__(self, folder: Path) -> None:
        self.config = TracesConfig(db_path=folder / "t.db", token_path=folder / "token")
        self.now_ns = time.time_ns()
        self.told: list[tuple[int, ExportTraceServiceRequest, str]] = []

    def tell(
        self, minutes_ago: float, request: ExportTraceServiceRequest, sender: str = API
    ) -> None:
        self.told.append((self.now_ns - int(minutes_ago * MINUTE), request, sender))

    def report(self) -> Json:
        async def write() -> None:
            clock = [0]
            writer = Writer(self.config, clock_ns=lambda: clock[0], sweep_every_s=3600)
            writer.start()
            for at_ns, request, sender in self.told:
                clock[0] = at_ns
                await writer.write(request, sender)
            await writer.stop()

        asyncio.run(write())
        now_s = self.now_ns // 10**9
        with closing(sqlite3.connect(self.config.db_path)) as db:
            db.row_factory = sqlite3.Row
            found: Json = record(db, now_s - 3600, now_s + 1, self.now_ns, BUNDLE)
        return found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    yield Store(tmp_path)


class Run:
    """One run of one sidecar: a chain, signed with its own leaf."""

    def __init__(self, uid: str) -> None:
        pair = FORGE.leaf(API)
        self.chain = Chain(uid.encode().ljust(16, b"\0")[:16])
        self.resource = PodResource(pod=f"pod-{uid}", namespace="shop", pod_uid=uid)
        self.signer = WorkloadSigner(TlsMaterial(*pair, FORGE.root_pem))
        self._encoder = SpanEncoder(self.chain)

    def links(self, *links: LinkRecord, sign: bool = False, last: bool = False) -> Any:
        spans = [framed(self._encoder.encode(one)) for one in links]
        if sign:
            now_ns = time.time_ns()
            uid = self.resource.pod_uid
            said = statement(self.chain, now_ns, f"shop/pod-{uid}", uid, {}, last=last)
            signed = self.signer.sign(said)
            spans.append(framed(encode_checkpoint(self.chain, said, signed, now_ns)))
        return ExportTraceServiceRequest.FromString(export_request(self.resource.encode(), spans))


def leaf_of(store: Store, uid: str, minutes_ago: float, **more: str) -> None:
    at_ns = store.now_ns - int(minutes_ago * MINUTE)
    asked = shop.certificate(
        "certificate issued",
        at_ns,
        "shop/api",
        **{
            "podlink.certificate.pod_uid": uid,
            "podlink.certificate.pod": f"shop/pod-{uid}",
            **more,
        },
    )
    store.tell(minutes_ago, asked, CA)


def test_links_in_no_chain_are_counted_by_who_told_of_them(store: Store) -> None:
    store.tell(5, Run("a").links(outbound(), sign=True))
    store.tell(4, request_of(outbound(), outbound()))
    chains = store.report()["chains"]
    assert chains["unchained"]["links"] == 2
    assert chains["unchained"]["rows"] == [{"sender": API, "links": 2}]


def test_a_pod_that_got_a_leaf_and_left_no_chain_is_named(store: Store) -> None:
    store.tell(50, Run("early").links(outbound(), sign=True))
    leaf_of(store, "talks", 30)
    leaf_of(store, "idle", 30)
    leaf_of(store, "silent", 30)
    leaf_of(store, "just-born", 0.5)
    registry = "spiffe://cluster.local/ns/podlink-system/sa/podlink-registry"
    leaf_of(store, "registry", 30, **{"podlink.certificate.identity": registry})
    store.tell(20, Run("talks").links(outbound(), sign=True))
    store.tell(20, Run("idle").links(sign=True))
    chains = store.report()["chains"]
    assert [row["pod"] for row in chains["silent"]["rows"]] == ["shop/pod-silent"]
    assert sorted(chains["heads"]["rows"].values()) == [0, 1, 1]


def test_a_chain_that_ended_without_a_last_word_is_named(store: Store) -> None:
    for uid in ("lives", "over", "killed", "cut", "forged"):
        leaf_of(store, uid, 20 if uid == "lives" else 70)  # an hour's leaves: those have ended
        store.tell(55, Run(uid).links(outbound(), sign=True))
    runs = {uid: Run(uid) for uid in ("over", "killed", "cut", "forged")}
    store.told = [told for told in store.told if told[2] == CA]
    lives = Run("lives")
    store.tell(50, lives.links(outbound(), sign=True))
    store.tell(50, runs["over"].links(outbound(), sign=True, last=True))
    store.tell(50, runs["killed"].links(outbound(), sign=True))
    store.tell(49, runs["killed"].links(outbound(), outbound()))
    store.tell(50, runs["cut"].links(outbound(), sign=True))
    forged = runs["forged"]
    forged.signer = WorkloadSigner(TlsMaterial(*Forge().leaf(API), FORGE.root_pem))
    store.tell(50, forged.links(outbound(), sign=True, last=True))
    # A second run of the pod says that the first is over, whatever its leaf.
    store.tell(10, Run("lives2").links(outbound(), sign=True))
    found = store.report()
    unended = {
        row["pod"]: (row["last"], row["signed"]) for row in found["chains"]["unended"]["rows"]
    }
    assert unended == {
        "shop/pod-killed": (3, 1),
        "shop/pod-cut": (1, 1),
        "shop/pod-forged": (1, 0),
    }
    assert found["chains"]["unended"]["records"] == 3
    said = shortfalls(
        {"from": "2026-01-01T00:00:00Z", "to": "2026-01-01T00:01:00Z", "record": found}
    )
    assert (
        "3 chains ended without a last checkpoint, and 3 records after the last signature" in said
    )


def test_a_restarted_proxys_first_chain_is_over(store: Store) -> None:
    leaf_of(store, "again", 30)
    store.tell(25, Run("again").links(outbound(), sign=True))
    second = Run("again")
    second.chain.id = b"second run......"
    second._encoder = SpanEncoder(second.chain)
    store.tell(10, second.links(outbound(), sign=True))
    chains = store.report()["chains"]
    assert [row["chain"][:10] for row in chains["unended"]["rows"]] == [b"again".hex()]


async def test_a_sidecar_signs_its_empty_chain_and_says_when_nothing_follows() -> None:
    pair = FORGE.leaf(API)
    config = TelemetryConfig(
        endpoint="127.0.0.1:1", workload_tls=True, resource=PodResource(pod="p", namespace="shop")
    )
    clock = [10**18]
    exporter = LinkExporter(config, FakeSource(FORGE, pair), clock_ns=lambda: clock[0])
    assert await exporter._next_batch() is None, "no leaf to sign with"
    exporter.svid_came(FakeSource(FORGE, pair).show(pair))
    clock[0] += 31 * 10**9
    first = await exporter._next_batch()
    assert first is not None and b'"sequence":0' in first.payload and b'"last"' not in first.payload
    exporter._pending = None
    assert await exporter._next_batch() is None, "said once"
    exporter._closing = True
    last = await exporter._next_batch()
    assert last is not None and b'"last":true' in last.payload
    exporter._pending = None
    assert await exporter._next_batch() is None
    await exporter.close()
