"""The store as the mesh reaches it: mutual TLS, and nobody tells of another's links."""

import asyncio
import contextlib
import random
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from certs.records import BanNote
from certs.server.issuance import Issuance
from certs.server.report import BanChange
from certs.server.spans import SpanExporter, describe
from certs.trust.bans import Ban, Bans
from certs.trust.contexts import TlsMaterial
from certs.trust.identity import WorkloadIdentity
from kit.clock import utcnow
from kit.settings import ConfigInvalid, Settings
from sidecar.report import LinkRecord
from sidecar.telemetry.config import TelemetryConfig
from sidecar.telemetry.exporter import LinkExporter
from sidecar.telemetry.resource import PodResource
from tests.certs.fake_source import FakeSource
from tests.certs.forge import Forge, Pair
from tests.patience import PATIENCE_S
from tests.sidecar.telemetry.records import API, DB, denied, inbound_of, outbound
from tests.traces.spans import EXPORT, payload_of, request_of
from traces import query
from traces.app import TraceStore
from traces.calls import PER_POD
from traces.config import MeshConfig, TracesConfig
from traces.links import join
from traces.page.asked import REFRESH, SINCE, Asked
from traces.page.pages import TITLES
from traces.page.questions import QUESTIONS
from traces.page.render import render
from traces.query import LinkFilter, Reader, link_span
from traces.rows import SpanRow, plain_attributes, rows_of
from traces.vouch import Voucher
from traces.writer import Writer

STORE = "spiffe://cluster.local/ns/podlink-system/sa/podlink-traces"
CA = "spiffe://cluster.local/ns/podlink-system/sa/podlink-ca"
NAME = "podlink-traces.podlink-system.svc"
FORGE = Forge()


def config_in(folder: Path) -> TracesConfig:
    (folder / "token").write_text("t")
    return TracesConfig(
        db_path=folder / "t.db",
        token_path=folder / "token",
        host="127.0.0.1",
        grpc_port=0,
        http_port=0,
        review_port=0,
        mesh=MeshConfig(
            trust_domain="cluster.local",
            ca_address="unused:1",
            token_path=folder / "none",
            bundle_path=folder / "none",
            registry_address="unused:1",
            ca=WorkloadIdentity.parse(CA),
        ),
    )


@asynccontextmanager
async def storing(folder: Path, source: FakeSource | None = None) -> AsyncIterator[TraceStore]:
    source = source or FakeSource(FORGE, FORGE.leaf(STORE, dns=[NAME], ips=["127.0.0.1"]))
    store = await TraceStore.start(config_in(folder), source)
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not store.receivers.ready:
                await asyncio.sleep(0.01)
        yield store
    finally:
        await store.stop()


async def send(
    store: TraceStore, payload: bytes, pair: Pair | None, roots: bytes = FORGE.root_pem
) -> int:
    """How many spans were refused. Raises AioRpcError."""
    key, chain = (pair.key_pem, pair.chain_pem) if pair is not None else (None, None)
    credentials = grpc.ssl_channel_credentials(roots, key, chain)
    options = (("grpc.ssl_target_name_override", NAME), ("grpc.use_local_subchannel_pool", 1))
    where = f"127.0.0.1:{store.receivers.grpc_port}"
    async with grpc.aio.secure_channel(where, credentials, options) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(EXPORT)
        answer = ExportTraceServiceResponse.FromString(await call(payload, timeout=PATIENCE_S))
    return int(answer.partial_success.rejected_spans)


async def kept(store: TraceStore) -> list[dict[str, object]]:
    return await Reader(store.writer._config.db_path).links(LinkFilter(limit=1000))


async def test_a_sidecar_sends_with_its_leaf_and_its_spans_name_it(tmp_path: Path) -> None:
    async with storing(tmp_path) as store:
        config = TelemetryConfig(
            endpoint=f"127.0.0.1:{store.receivers.grpc_port}",
            workload_tls=True,
            resource=PodResource(pod="api-1", namespace="shop"),
        )
        source = FakeSource(FORGE, FORGE.leaf(API))
        exporter = LinkExporter(
            replace(config, endpoint=f"127.0.0.1:{store.receivers.grpc_port}"), source
        )
        exporter.start()
        link = outbound()
        exporter.report(link)
        await exporter.close()
        assert exporter.stats()["exported"] == 1
        assert exporter.head is not None and exporter.head.sequence == 1
        [span] = (await Reader(store.writer._config.db_path).trace(link.trace_id)).spans
        assert span["sender"] == API


@pytest.mark.attack_row(56)
async def test_nobody_tells_of_the_links_of_another(tmp_path: Path) -> None:
    evil = FORGE.leaf("spiffe://cluster.local/ns/evil/sa/x")
    async with storing(tmp_path) as store:
        forged = payload_of(outbound(), denied(), inbound_of(outbound()))
        assert await send(store, forged, evil) == 3
        assert await kept(store) == []
        api = FORGE.leaf(API)
        # The outbound ones are api's own; the inbound one is db's to tell.
        assert await send(store, forged, api) == 1
        assert len(await kept(store)) == 2


async def test_only_the_ca_tells_of_certificates(tmp_path: Path) -> None:
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add()
    span.trace_id, span.span_id, span.name = b"t" * 16, b"s" * 8, "certificate issued"
    async with storing(tmp_path) as store:
        assert await send(store, request.SerializeToString(), FORGE.leaf(API)) == 1
        assert await send(store, request.SerializeToString(), FORGE.leaf(CA)) == 0


async def test_the_cas_ledger_comes_over_mutual_tls_into_a_table_of_its_own(tmp_path: Path) -> None:
    pair = FORGE.leaf(CA)

    def dialling() -> tuple[grpc.ChannelCredentials, float]:
        return grpc.ssl_channel_credentials(FORGE.root_pem, *pair), float("inf")

    async with storing(tmp_path) as store:
        endpoint = f"127.0.0.1:{store.receivers.grpc_port}"
        exporter = SpanExporter(endpoint, "ca-1", "podlink-system", dialling=dialling)
        running = asyncio.ensure_future(exporter.run())
        exporter(
            Issuance(
                at=utcnow(),
                identity=API,
                namespace="shop",
                pod_name="api-1",
                pod_uid="uid-1",
                node="n1",
                serial="5f",
                sha256="ab",
                ips=("10.1.0.7",),
                dns_names=(),
                not_before=utcnow(),
                not_after=utcnow(),
                issuer="ab",
                issuer_name="root",
                source_ip="10.1.0.7",
                direct=True,
                provisional=False,
            )
        )
        async with asyncio.timeout(PATIENCE_S):
            while not exporter.sent:
                await asyncio.sleep(0.02)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        with contextlib.closing(sqlite3.connect(tmp_path / "t.db")) as db:
            assert db.execute(
                "SELECT event, serial, identity, pod, pod_uid, sender FROM certificates"
            ).fetchall() == [("issued", "5f", API, "shop/api-1", "uid-1", CA)]


@pytest.mark.parametrize("who", ["nobody", "another root", "banned", "expired", "two names"])
async def test_whoever_is_no_workload_of_ours_is_not_heard(tmp_path: Path, who: str) -> None:
    source = FakeSource(FORGE, FORGE.leaf(STORE, dns=[NAME]))
    pair: Pair | None = FORGE.leaf(API)
    if who == "nobody":
        pair = None
    elif who == "another root":
        pair = Forge().leaf(API)
    elif who == "expired":
        pair = FORGE.leaf(API, not_after=FORGE.now)
    elif who == "two names":
        pair = FORGE.leaf(uris=[API, DB])
    async with storing(tmp_path, source) as store:
        if who == "banned":
            source.ban(Bans.of([Ban("identity", API)]))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await send(store, payload_of(outbound()), pair)
        assert refused.value.code() in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.UNAUTHENTICATED,
        )
        assert await kept(store) == []


async def test_plaintext_is_not_heard_on_either_port(tmp_path: Path) -> None:
    async with storing(tmp_path) as store:
        where = f"127.0.0.1:{store.receivers.grpc_port}"
        async with grpc.aio.insecure_channel(where) as channel:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(EXPORT)
            with pytest.raises(grpc.aio.AioRpcError):
                await call(payload_of(outbound()), timeout=PATIENCE_S)
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{store.receivers.http_port}/v1/traces"
            with pytest.raises(aiohttp.ClientError):
                await session.post(url, data=payload_of(outbound()))
        assert await kept(store) == []


async def test_over_https_the_same_holds_also_after_the_stores_own_leaf_was_renewed(
    tmp_path: Path,
) -> None:
    source = FakeSource(FORGE, FORGE.leaf(STORE, dns=[NAME]))
    async with storing(tmp_path, source) as store:
        url = f"https://127.0.0.1:{store.receivers.http_port}/v1/traces"
        kind = {"Content-Type": "application/x-protobuf"}
        for round_ in range(2):
            for pair, refused in ((FORGE.leaf(API), 0), (FORGE.leaf(DB), 1)):
                context = TlsMaterial(*pair, FORGE.root_pem).client_context()
                connector = aiohttp.TCPConnector(ssl=context)
                async with (
                    aiohttp.ClientSession(connector=connector) as session,
                    session.post(url, data=payload_of(outbound()), headers=kind) as got,
                ):
                    said = ExportTraceServiceResponse.FromString(await got.read())
                    assert got.status == 200
                    assert said.partial_success.rejected_spans == refused
                await asyncio.sleep(0.05)
            if round_ == 0:
                source.show(FORGE.leaf(STORE, dns=[NAME]))
                await asyncio.sleep(0.1)
        assert len(await kept(store)) == 2
        stranger = aiohttp.TCPConnector(ssl=False)
        async with aiohttp.ClientSession(connector=stranger) as session:
            with pytest.raises(aiohttp.ClientError):
                await session.post(url, data=payload_of(outbound()), headers=kind)


def test_senders_are_known_unless_a_setting_says_insecure(tmp_path: Path) -> None:
    env = {
        "PODLINK_TRACES_DB": str(tmp_path / "t"),
        "PODLINK_TRACES_TOKEN_FILE": str(tmp_path / "token"),
    }
    found = TracesConfig.from_settings(Settings(env))
    assert found.mesh is not None and str(found.mesh.ca) == CA
    assert not found.allow_unknown_senders
    open_to_all = TracesConfig.from_settings(Settings({**env, "PODLINK_INSECURE_OTLP": "true"}))
    assert open_to_all.mesh is None and open_to_all.allow_unknown_senders
    with pytest.raises(ConfigInvalid, match="PODLINK_TRUST_DOMAIN"):
        TracesConfig.from_settings(Settings({**env, "PODLINK_TRUST_DOMAIN": "UPPER"}))


async def test_without_a_mesh_the_store_starts_only_if_told_to_be_insecure(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="PODLINK_INSECURE_OTLP"):
        await TraceStore.start(replace(config_in(tmp_path), mesh=None))


@given(st.sampled_from([API, DB, CA, "", "spiffe://", "nonsense"]), st.text(max_size=20))
def test_a_sender_is_believed_of_itself_alone(sender: str, namespace: str) -> None:
    voucher = Voucher(WorkloadIdentity.parse(CA))
    out = outbound()
    [of] = rows_of(request_of(out, inbound_of(out))).resources
    first, second = of.rows
    assert voucher.believes(sender, "", first) is (sender == API)
    assert voucher.believes(sender, "", second) is (sender == DB)
    if namespace not in ("", "shop"):
        assert not voucher.believes(API, namespace, first)


@pytest.mark.attack_row(56)
@pytest.mark.parametrize(
    "name",
    ["link", "link opened", "request", "by its pod", "by its address", "no direction", "another"],
)
async def test_a_side_that_does_not_name_its_sender_is_nobodys_to_tell(
    tmp_path: Path, name: str
) -> None:
    """A pod without a sidecar gets a leaf with its own token, and may write what it likes: of links that
    it never had, and of requests within them."""
    evil = FORGE.leaf("spiffe://cluster.local/ns/shop/sa/evil")
    nameless = {"source_identity": "", "destination_identity": ""}
    out, inner = outbound(source_identity=""), inbound_of(outbound(), destination_identity="")
    if name == "another":  # of its own namespace
        out, inner = outbound(), outbound()
    if name == "link opened":
        out.still_open = inner.still_open = True
    elif name == "by its address":
        out = outbound(**nameless, source_pod="", destination_pod="")
    request = request_of(out, inner)
    spans = request.resource_spans[0].scope_spans[0].spans
    for span in spans:
        if name == "request":
            span.name = "GET"
        elif name == "no direction":
            kept_attributes = [a for a in span.attributes if a.key != "podlink.direction"]
            del span.attributes[:]
            span.attributes.extend(kept_attributes)
    async with storing(tmp_path) as store:
        assert await send(store, request.SerializeToString(), evil) == 2
        assert await send(store, payload_of(outbound()), FORGE.leaf(API)) == 0
        assert len(await kept(store)) == 1
        with contextlib.closing(sqlite3.connect(tmp_path / "t.db")) as db:
            assert db.execute("SELECT name FROM senders").fetchall() == [(API,)]


@pytest.mark.attack_row(44)
@pytest.mark.attack_row(56)
def test_a_pods_name_files_no_link_under_another_namespace() -> None:
    """Its own identity, but a pod elsewhere: who looks at one namespace would not see it there."""
    voucher = Voucher(WorkloadIdentity.parse(CA))
    out = outbound(source_pod="prod/api-1")
    [of] = rows_of(request_of(out, inbound_of(out, destination_pod="shop/db-0"))).resources
    first, second = of.rows
    assert first.edge is not None and first.edge.source_namespace == "prod"
    assert not voucher.believes(API, "", first)
    assert not voucher.believes(DB, "", second)


@pytest.mark.attack_row(43)
def test_a_resource_that_names_two_namespaces_is_believed_of_the_one_that_is_shown() -> None:
    asked: list[str] = []
    request = request_of(outbound())
    resource = request.resource_spans[0].resource
    del resource.attributes[:]
    for namespace in ("shop", "prod"):
        resource.attributes.add(key="k8s.namespace.name").value.string_value = namespace

    def believes(_sender: str, namespace: str, _row: SpanRow) -> bool:
        asked.append(namespace)
        return True

    rows_of(request, API, believes)
    assert asked == [plain_attributes(resource.attributes)["k8s.namespace.name"]]


CROWD = 1100


@pytest.mark.attack_row(57)
@pytest.mark.parametrize(
    "crowd", ["its own side", "denials of its own", "other destinations", "twins"]
)
async def test_a_denial_is_found_in_however_crowded_a_trace(
    tmp_path: Path, crowd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dialler chooses the trace's id, and sends its own spans first."""
    monkeypatch.setattr(query, "_LOOK", 100)  # as if there were fifty times as many
    config = TracesConfig(db_path=tmp_path / "t.db", token_path=tmp_path / "token")
    writer = Writer(config)
    writer.start()
    trace_id = b"\x77" * 16
    begin = time.time_ns()
    made: list[LinkRecord] = []
    for number in range(CROWD):
        one = outbound(trace_id=trace_id, start_ns=begin - 10**9 + number * 1000, end_ns=begin)
        if crowd == "denials of its own":
            one.verdict, one.security, one.reason = "denied", "none", "policy_denied"
        if crowd == "twins":
            one.span_id = b"\0" * 7 + b"\1"
        if crowd == "other destinations":
            one.destination_identity = f"spiffe://cluster.local/ns/prod/sa/d{number}"
        made.append(one)
    refused = inbound_of(
        made[-1],
        destination_identity=DB,
        verdict="denied",
        reason="policy_denied",
        close="refused",
        start_ns=begin,
    )
    try:
        await writer.write(request_of(*made), API)
        await writer.write(request_of(refused), DB)
        reader = Reader(config.db_path)
        for wanted in (
            LinkFilter(verdict="denied", limit=1000),
            LinkFilter(verdict="denied", identity=DB, limit=1000),
            LinkFilter(limit=1000),
        ):
            found = [link for link in await reader.links(wanted) if "inbound" in _sides(link)]
            assert [link["verdict"] for link in found] == ["denied"], wanted
            assert DB in str(found[0]["told_by"])
        trace = await reader.trace(trace_id)
        assert len(trace.spans) == 1000 and trace.left_out == CROWD + 1 - 1000
        assert [s["sender"] for s in trace.spans].count(DB) == 1
        assert [link for link in trace.links if "inbound" in _sides(link)]
        asked = Asked.parse({"id": trace_id.hex()}, time.time_ns())
        answer = await reader.ask(lambda db: QUESTIONS["trace"](db, asked))
        assert [side for side in answer.context["sides"] if side["inbound"]]
        denied_view = await reader.ask(lambda db: QUESTIONS["denied"](db, asked))
        assert [row for row in denied_view.rows if row["destination"] == DB]
    finally:
        await writer.stop()


def _sides(link: dict[str, object]) -> list[str]:
    sides = link["sides"]
    assert isinstance(sides, list)
    return sides


@pytest.mark.attack_row(57)
def test_a_second_answer_hides_no_denial(tmp_path: Path) -> None:
    """Two links under the ids of one: the one that was let in came last."""
    out = outbound()
    refused = inbound_of(
        out,
        destination_identity="spiffe://cluster.local/ns/prod/sa/vault",
        verdict="denied",
        reason="policy_denied",
    )
    let_in = inbound_of(out)
    let_in.start_ns += 10**6
    for order in ((out, refused, let_in), (let_in, refused, out)):
        links = join(link_span(_span(one), one.source_identity) for one in order)
        assert sorted(str(link["verdict"]) for link in links) == ["allowed", "denied"]


def _span(record: LinkRecord) -> Span:
    return request_of(record).resource_spans[0].scope_spans[0].spans[0]


def test_a_value_of_another_type_spoils_no_page(tmp_path: Path) -> None:
    span = _span(outbound())
    for attribute in span.attributes:
        if attribute.key in ("podlink.bytes.sent", "podlink.attempts", "client.port"):
            attribute.value.string_value = "<many>"
        elif attribute.key in ("podlink.verdict", "podlink.source.pod"):
            attribute.value.int_value = 7
        elif attribute.key == "podlink.pooled":
            attribute.value.array_value.values.add(string_value="x")
    [link] = join([link_span(span)])
    assert (link["bytes_sent"], link["attempts"], link["verdict"]) == (0, None, None)
    assert render(
        "trace.html", {**_page_context(), "sides": [{"link": link, "outbound": [], "inbound": []}]}
    )


def _page_context() -> dict[str, object]:
    asked = Asked.parse({}, time.time_ns())
    return {
        "view": "trace",
        "title": "Link",
        "titles": TITLES,
        "asked": asked,
        "query": {},
        "since_choices": SINCE,
        "refresh_choices": REFRESH,
        "from_value": "",
        "to_value": "",
        "namespaces": [],
        "now_ns": 0,
        "own_words": {},
        "trace_id": "77" * 16,
        "spans": [],
        "issued": {},
        "rows": [],
        "left_out": 0,
    }


@pytest.mark.attack_row(58)
async def test_idle_calls_of_one_sender_starve_nobody(tmp_path: Path) -> None:
    """Opened and silent, over several connections: each sender has its own few places, for a while."""
    evil = FORGE.leaf("spiffe://cluster.local/ns/evil/sa/x")
    async with storing(tmp_path) as store:
        where = f"127.0.0.1:{store.receivers.grpc_port}"
        credentials = grpc.ssl_channel_credentials(FORGE.root_pem, evil.key_pem, evil.chain_pem)
        async with contextlib.AsyncExitStack() as stack:
            calls: list[grpc.aio.StreamUnaryCall[bytes, bytes]] = []
            for number in range(4):
                options = (
                    ("grpc.ssl_target_name_override", NAME),
                    ("grpc.use_local_subchannel_pool", 1),
                    ("podlink.test", number),
                )
                channel = await stack.enter_async_context(
                    grpc.aio.secure_channel(where, credentials, options)
                )
                await channel.channel_ready()
                method: grpc.aio.StreamUnaryMultiCallable[bytes, bytes]
                method = channel.stream_unary(EXPORT)
                calls += [method() for _ in range(75)]
            await asyncio.sleep(0.5)
            api = FORGE.leaf(API)
            for _ in range(20):
                assert await send(store, payload_of(outbound()), api) == 0
            async with asyncio.timeout(PATIENCE_S):
                while sum(call.done() for call in calls) < 300 - PER_POD:
                    await asyncio.sleep(0.05)
            assert sum(call.done() for call in calls) == 300 - PER_POD
            ended = [call for call in calls if call.done()]
            assert {await call.code() for call in ended} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            for call in calls:
                call.cancel()
            # The places are free again.
            async with asyncio.timeout(PATIENCE_S):
                while store.receivers._calls._of_pods:
                    await asyncio.sleep(0.05)


@pytest.mark.attack_row(58)
@pytest.mark.parametrize("how", ["silent", "over http"])
async def test_a_call_that_does_not_come_ends(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with storing(tmp_path) as store:
        monkeypatch.setattr(store.receivers._calls, "read_s", 0.2)
        pair = FORGE.leaf(API)
        if how == "silent":
            credentials = grpc.ssl_channel_credentials(FORGE.root_pem, *pair)
            options = (("grpc.ssl_target_name_override", NAME),)
            where = f"127.0.0.1:{store.receivers.grpc_port}"
            async with grpc.aio.secure_channel(where, credentials, options) as channel:
                method: grpc.aio.StreamUnaryMultiCallable[bytes, bytes]
                method = channel.stream_unary(EXPORT)
                call = method()
                async with asyncio.timeout(PATIENCE_S):
                    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            return
        context = TlsMaterial(*pair, FORGE.root_pem).client_context()
        port = store.receivers.http_port
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(
            b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"
            b"Content-Length: 100\r\n\r\nx"
        )
        async with asyncio.timeout(PATIENCE_S):
            assert b" 408 " in await reader.readline()
            await reader.read()  # and then it hangs up
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest.mark.attack_row(61)
async def test_a_ban_that_is_lifted_is_not_shown_as_a_ban(tmp_path: Path) -> None:
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    for lifted in (False, True):
        name, attributes = describe(
            BanChange(utcnow(), BanNote(Ban("identity", API), "alice", "lost"), lifted)
        )
        span = spans.add(trace_id=random.randbytes(16), span_id=random.randbytes(8), name=name)
        span.end_time_unix_nano = time.time_ns()
        for key, value in attributes.items():
            if isinstance(value, bool):
                span.attributes.add(key=key).value.bool_value = value
            elif value is not None:
                span.attributes.add(key=key).value.string_value = str(value)
    async with storing(tmp_path) as store:
        assert await send(store, request.SerializeToString(), FORGE.leaf(CA)) == 0
        reader = Reader(store.writer._config.db_path)
        asked = Asked.parse({}, time.time_ns())
        shown = await reader.ask(lambda db: QUESTIONS["certificates"](db, asked))
        assert sorted(row["event"] for row in shown.rows) == ["ban lifted", "banned"]  # type: ignore[type-var]
        asks = await reader.ask(lambda db: QUESTIONS["overview"](db, asked))
        assert [row["why"] for row in asks.rows] == ["the CA banned it: banned"]
