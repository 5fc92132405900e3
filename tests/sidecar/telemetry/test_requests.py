"""Request spans: what they say, and what a caller cannot make them say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from sidecar.report import LinkRecord, RequestRecord
from sidecar.telemetry.attributes import OF_REQUESTS
from sidecar.telemetry.config import TelemetryConfig
from sidecar.telemetry.encode_request import encode_request
from sidecar.telemetry.exporter import LinkExporter
from tests.sidecar.telemetry.records import API, DB, inbound_of, outbound
from tests.traces.process import StoreProcess

CLAIMED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def request_on(link: LinkRecord, **changes: object) -> RequestRecord:
    record = RequestRecord(link, "GET", "/orders", 200, "", "1.1", 1000, 2000, "")
    for name, value in changes.items():
        setattr(record, name, value)
    return record


def attributes(span: Span) -> dict[str, object]:
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


def test_a_request_is_a_child_of_its_link_named_by_its_method() -> None:
    link = inbound_of(outbound())
    span = Span.FromString(encode_request(request_on(link)))
    assert (span.name, span.kind) == ("GET", Span.SPAN_KIND_SERVER)
    assert (span.trace_id, span.parent_span_id) == (link.trace_id, link.span_id)
    said = attributes(span)
    assert said["http.response.status_code"] == 200
    assert (said["podlink.source.identity"], said["podlink.destination.identity"]) == (API, DB)
    assert set(said) <= set(OF_REQUESTS)
    for change in ({"status": 503}, {"status": 0}, {"grpc_status": "14"}):
        assert Span.FromString(encode_request(request_on(link, **change))).status.code == 2


def test_the_callers_side_tells_of_it_below_its_own_link_and_calls_4xx_an_error() -> None:
    near = outbound()
    far = inbound_of(near)
    spans = [Span.FromString(encode_request(request_on(link, status=404))) for link in (near, far)]
    assert [span.kind for span in spans] == [Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_SERVER]
    assert [span.status.code for span in spans] == [2, 0]
    assert {span.trace_id for span in spans} == {near.trace_id}
    assert [span.parent_span_id for span in spans] == [near.span_id, far.span_id]
    told = [attributes(span)["podlink.direction"] for span in spans]
    assert told == ["outbound", "inbound"]


@pytest.mark.attack_row(42)
@pytest.mark.attack_row(43)
@given(st.text(max_size=80), st.text(max_size=300), st.text(max_size=60), st.text(max_size=9))
def test_nothing_that_a_caller_sends_changes_whose_request_it_was(
    method: str, path: str, traceparent: str, grpc_status: str
) -> None:
    link = inbound_of(outbound())
    for claimed in (traceparent, CLAIMED):
        record = request_on(
            link, method=method, path=path, claimed_traceparent=claimed, grpc_status=grpc_status
        )
        span = Span.FromString(encode_request(record))
        assert (span.trace_id, span.parent_span_id) == (link.trace_id, link.span_id)
        assert span.name in ("HTTP", method)
        assert len(span.name) < 8
        said = attributes(span)
        assert said["podlink.source.identity"] == API
        assert all(link_.attributes[0].key == "podlink.claimed" for link_ in span.links)
    assert len(span.links) == 1


async def test_requests_reach_the_store_below_their_link_and_count_as_no_link(
    store: StoreProcess,
) -> None:
    exporter = LinkExporter(
        TelemetryConfig(endpoint=f"127.0.0.1:{store.grpc_port}", plaintext=True)
    )
    exporter.start()
    link = inbound_of(outbound())
    for _ in range(3):
        exporter.report_request(request_on(link))
    exporter.report(link)
    await exporter.close()
    _, body = store.ask(f"/api/traces/{link.trace_id.hex()}")
    assert sorted(span["name"] for span in body["spans"]) == ["GET", "GET", "GET", "link"]
    assert len(store.links()) == 1


async def test_a_flood_of_requests_costs_requests_and_no_link() -> None:
    exporter = LinkExporter(
        TelemetryConfig(endpoint="127.0.0.1:1", plaintext=True, allowed_room=16)
    )
    link = inbound_of(outbound())
    exporter.report(link)
    for _ in range(100):
        exporter.report_request(request_on(link))
    stats = exporter.stats()
    assert (stats["dropped_requests"], stats["dropped_allowed"], stats["queued"]) == (84, 0, 17)
    assert exporter._queues.pop() is link


async def test_requests_are_sampled_with_their_link() -> None:
    exporter = LinkExporter(TelemetryConfig(endpoint="127.0.0.1:1", plaintext=True, ratio=0.0))
    exporter.report_request(request_on(inbound_of(outbound())))
    assert exporter.stats()["sampled_out"] == 1
