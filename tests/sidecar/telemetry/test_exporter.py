"""The exporter against real collectors: good, dead, slow, silent and refusing."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import pytest

from kit.backoff import Backoff
from sidecar.report import LinkRecord
from sidecar.telemetry.config import TelemetryConfig
from sidecar.telemetry.exporter import LinkExporter
from sidecar.telemetry.resource import PodResource
from tests.patience import PATIENCE_S
from tests.sidecar.telemetry.collectors import black_hole, collecting, nobody, relaying
from tests.sidecar.telemetry.records import denied, inbound_of, outbound
from tests.traces.process import StoreProcess

OUTAGE = "collector-down"
FAST = TelemetryConfig(
    plaintext=True, delay_s=0.05, timeout_s=5.0, resource=PodResource(pod="api-1", namespace="shop")
)


@asynccontextmanager
async def exporting(config: TelemetryConfig) -> AsyncIterator[LinkExporter]:
    exporter = LinkExporter(config, backoff=Backoff(first_s=0.02, longest_s=0.1))
    exporter.start()
    try:
        yield exporter
    finally:
        await exporter.close()


async def until(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


def accounted_for(stats: dict[str, int]) -> int:
    return sum(stats.values()) - stats["reported"] - stats["export_failures"]


async def test_both_sides_of_a_link_arrive_in_a_real_store_as_one_link(store: StoreProcess) -> None:
    out = outbound()
    async with exporting(replace(FAST, endpoint=f"127.0.0.1:{store.grpc_port}")) as exporter:
        exporter.report(out)
        exporter.report(inbound_of(out))
        exporter.report(denied(service="secret.prod"))
        await until(lambda: exporter.stats()["exported"] == 3)
    by_verdict = {link["verdict"]: link for link in await asyncio.to_thread(store.links)}
    assert by_verdict["allowed"]["sides"] == ["outbound", "inbound"]
    assert by_verdict["allowed"]["trace_id"] == out.trace_id.hex()
    assert by_verdict["allowed"]["source"]["identity"] == out.source_identity
    assert by_verdict["denied"]["reason"] == "policy_denied"
    assert by_verdict["denied"]["asked"]["service"] == "secret.prod"
    _, body = await asyncio.to_thread(store.ask, f"/api/traces/{out.trace_id.hex()}")
    assert [(s["kind"], s["resource"]["k8s.pod.name"]) for s in body["spans"]] == [
        ("client", "api-1"),
        ("server", "api-1"),
    ]


@pytest.mark.fault_row(OUTAGE)
async def test_a_dead_collector_costs_records_never_the_caller_and_all_are_counted() -> None:
    with nobody() as endpoint:
        config = replace(FAST, endpoint=endpoint, allowed_room=100, reserved_room=50, batch_size=32)
        async with exporting(config) as exporter:
            for _ in range(1000):
                exporter.report(outbound())
            await until(lambda: exporter.stats()["export_failures"] >= 3)
            stats = exporter.stats()
            assert stats["queued"] <= 100 + 32
            assert stats["dropped_allowed"] >= 1000 - 132
            assert accounted_for(stats) == stats["reported"] == 1000
    assert accounted_for(exporter.stats()) == 1000
    assert exporter.stats()["queued"] == 0


@pytest.mark.fault_row(OUTAGE)
async def test_closing_into_a_black_hole_ends_within_its_bound() -> None:
    with black_hole() as endpoint:
        config = replace(FAST, endpoint=endpoint, timeout_s=3600.0, close_timeout_s=0.5)
        exporter = LinkExporter(config)
        exporter.start()
        exporter.report(denied())
        await asyncio.sleep(0.2)  # by now an attempt hangs
        async with asyncio.timeout(PATIENCE_S):
            await exporter.close()
        assert exporter.stats()["dropped_export"] == 1


@pytest.mark.fault_row(OUTAGE)
async def test_records_held_through_an_outage_arrive_when_the_collector_is_back() -> None:
    async with collecting() as (collector, endpoint):
        collector.refuses = grpc.StatusCode.UNAVAILABLE
        async with exporting(replace(FAST, endpoint=endpoint)) as exporter:
            record = denied()
            exporter.report(record)
            await until(lambda: collector.calls >= 3)
            collector.refuses = None
            await until(lambda: record.span_id in collector.ids())
        # Once, or again where the answer was lost: the store merges what is the same to the byte.
        assert set(collector.ids()) == {record.span_id}


@pytest.mark.fault_row(OUTAGE)
async def test_a_slow_collector_delays_spans_and_nothing_else() -> None:
    async with collecting() as (collector, endpoint):
        collector.may_answer.clear()
        async with exporting(replace(FAST, endpoint=endpoint)) as exporter:
            exporter.report(denied())
            await until(lambda: collector.calls == 1)
            for _ in range(10):  # the loop goes round while the collector thinks
                await asyncio.sleep(0.001)
            assert collector.calls == 1 and not collector.spans
            collector.may_answer.set()
            await until(lambda: exporter.stats()["exported"] == 1)


@pytest.mark.fault_row(OUTAGE)
async def test_a_connection_that_went_silent_is_given_up_for_a_new_one() -> None:
    async with (
        collecting() as (collector, far),
        relaying(far) as (relay, endpoint),
        exporting(replace(FAST, endpoint=endpoint, timeout_s=0.2)) as exporter,
    ):
        exporter.report(denied())
        await until(lambda: exporter.stats()["exported"] == 1)
        relay.lose_connections()
        last = denied()
        exporter.report(last)
        await until(lambda: exporter.stats()["exported"] == 2)
        assert last.span_id in collector.ids()


@pytest.mark.attack_row(44)
async def test_a_denial_arrives_through_any_flood_and_the_loss_is_told() -> None:
    async with collecting() as (collector, endpoint):
        collector.refuses = grpc.StatusCode.UNAVAILABLE
        config = replace(FAST, endpoint=endpoint, allowed_room=64, reserved_room=64, batch_size=16)
        async with exporting(config) as exporter:
            first = denied(destination_ip="10.1.0.50")
            exporter.report(first)
            for _ in range(500):
                exporter.report(outbound())
                exporter.report(outbound(security="plaintext", reason="peer_not_meshed"))
                exporter.report(denied())  # noise of the attacker's own making
            last = denied(destination_ip="10.1.0.51")
            exporter.report(last)
            await until(lambda: collector.calls >= 1)
            collector.refuses = None
            await until(lambda: exporter.stats()["queued"] == 0)
            await until(lambda: any(s.name == "spans dropped" for s in collector.spans))
        assert {first.span_id, last.span_id} <= collector.ids()
        told = next(s for s in reversed(collector.spans) if s.name == "spans dropped")
        stats = exporter.stats()
        assert {x.key: x.value.int_value for x in told.attributes} == {
            "podlink.dropped.allowed": stats["dropped_allowed"],
            "podlink.dropped.notable": stats["dropped_notable"],
            "podlink.dropped.denied": stats["dropped_denied"],
            "podlink.dropped.requests": 0,
            "podlink.dropped.export": stats["dropped_export"],
        }
        assert stats["dropped_allowed"] > 300
        assert accounted_for(stats) == stats["reported"]


async def test_sampling_spares_what_a_reviewer_needs() -> None:
    async with collecting() as (collector, endpoint):
        async with exporting(replace(FAST, endpoint=endpoint, ratio=0.0)) as exporter:
            kept: list[LinkRecord] = [
                denied(),
                outbound(verdict="audited"),
                outbound(verdict="failed", reason="timeout"),
                outbound(security="plaintext"),
            ]
            for record in (*kept, outbound(), outbound(security="self")):
                exporter.report(record)
            await until(lambda: exporter.stats()["exported"] == 4)
        assert collector.ids() == {record.span_id for record in kept}
        assert exporter.stats()["sampled_out"] == 2


async def test_both_sides_of_a_link_are_sampled_alike() -> None:
    async with collecting() as (collector, endpoint):
        async with exporting(replace(FAST, endpoint=endpoint, ratio=0.5)) as exporter:
            for _ in range(100):
                out = outbound()
                exporter.report(out)
                exporter.report(inbound_of(out))
            await until(lambda: exporter.stats()["queued"] == 0)
        sides: dict[bytes, int] = {}
        for span in collector.spans:
            sides[span.trace_id] = sides.get(span.trace_id, 0) + 1
        assert set(sides.values()) == {2}
        assert 20 < len(sides) < 80


async def test_the_record_of_an_open_link_may_change_after_it_was_reported() -> None:
    async with collecting() as (collector, endpoint):
        async with exporting(replace(FAST, endpoint=endpoint)) as exporter:
            record = outbound(still_open=True, end_ns=0, bytes_sent=10)
            exporter.report(record)
            record.still_open, record.end_ns, record.bytes_sent = False, record.start_ns + 1, 20
            exporter.report(record)
            await until(lambda: exporter.stats()["exported"] == 2)
        assert sorted(span.name for span in collector.spans) == ["link", "link opened"]


async def test_what_the_collector_rejects_or_refuses_for_good_is_counted() -> None:
    async with (
        collecting() as (collector, endpoint),
        exporting(replace(FAST, endpoint=endpoint)) as exporter,
    ):
        collector.rejects = 1
        exporter.report(outbound())
        await until(lambda: exporter.stats()["rejected_by_collector"] == 1)
        collector.refuses = grpc.StatusCode.INVALID_ARGUMENT
        exporter.report(outbound())
        await until(lambda: exporter.stats()["dropped_export"] == 1)


async def test_a_missing_ca_file_is_one_more_failure_and_not_the_end() -> None:
    config = replace(FAST, endpoint="127.0.0.1:1", plaintext=False, ca_path="/nowhere/ca.pem")
    async with exporting(config) as exporter:
        exporter.report(denied())
        await until(lambda: exporter.stats()["export_failures"] >= 2)
        assert exporter.stats()["queued"] == 1


async def test_closing_in_mid_encoding_loses_no_record() -> None:
    async with collecting() as (collector, endpoint):
        exporter = LinkExporter(replace(FAST, endpoint=endpoint, batch_size=512, delay_s=0.01))
        exporter.start()
        for _ in range(400):
            exporter.report(outbound())
        for _ in range(40):
            await asyncio.sleep(0.0005)
            if 0 < exporter.encoding < 400:
                break
        await exporter.close()
        assert len(collector.ids()) == exporter.stats()["exported"] == 400


async def test_a_broken_record_is_counted_and_its_neighbours_are_sent() -> None:
    async with collecting() as (collector, endpoint):
        async with exporting(replace(FAST, endpoint=endpoint)) as exporter:
            good = outbound()
            exporter.report(outbound(start_ns="yesterday"))
            exporter.report(None)  # type: ignore[arg-type]
            exporter.report(good)
            await until(lambda: exporter.stats()["unencodable"] == 2)
            await until(lambda: exporter.stats()["exported"] == 1)
        assert collector.ids() == {good.span_id}


async def test_headers_go_with_each_export_and_never_into_a_repr() -> None:
    async with collecting() as (collector, endpoint):
        config = replace(FAST, endpoint=endpoint, gzip=True, headers=(("x-key", "hunter2"),))
        async with exporting(config) as exporter:
            exporter.report(outbound())
            await until(lambda: exporter.stats()["exported"] == 1)
        assert collector.metadata["x-key"] == "hunter2"
        assert "hunter2" not in repr(config)


async def test_without_an_endpoint_nothing_is_kept() -> None:
    async with exporting(TelemetryConfig()) as exporter:
        exporter.report(denied())
        assert exporter.stats()["queued"] == 0
