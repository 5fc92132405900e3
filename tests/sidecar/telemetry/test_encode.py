"""What the encoder writes is read back with opentelemetry-proto: the bytes are what others see."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from sidecar.report import LinkRecord
from sidecar.telemetry import attributes as a
from sidecar.telemetry.encode import SpanEncoder, _attributes, encode_drops, export_request, framed
from sidecar.telemetry.resource import PodResource
from sidecar.telemetry.wire import MAX_TEXT
from tests.sidecar.telemetry.records import API, DB, denied, inbound_of, outbound

CLAIM = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def span_of(record: LinkRecord) -> Span:
    return Span.FromString(SpanEncoder().encode(record))


def attributes_of(span: Span) -> dict[str, object]:
    found = {}
    for attribute in span.attributes:
        assert attribute.key not in found, "an attribute was written twice"
        kind = attribute.value.WhichOneof("value")
        assert (
            kind
            == {"string": "string_value", "int": "int_value", "boolean": "bool_value"}[
                {**a.OF_LINKS, **a.OF_DROPS}[attribute.key]
            ]
        )
        found[attribute.key] = getattr(attribute.value, kind)
    return found


def test_an_outbound_link_says_everything_that_its_record_knows() -> None:
    record = outbound()
    span = span_of(record)
    assert (span.name, span.kind) == ("link", Span.SPAN_KIND_CLIENT)
    assert (span.trace_id, span.span_id, span.parent_span_id) == (
        record.trace_id,
        record.span_id,
        b"",
    )
    whole_us = (record.start_ns // 1000 * 1000, record.end_ns // 1000 * 1000)
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == whole_us
    assert span.status == Status()
    assert attributes_of(span) == {
        "podlink.direction": "outbound",
        "podlink.security": "mtls",
        "podlink.verdict": "allowed",
        "podlink.policy": "prod/db",
        "podlink.rule": "allow[0]",
        "client.address": "10.1.0.7",
        "client.port": 43122,
        "podlink.source.pod": "shop/api-1",
        "podlink.source.identity": API,
        "server.address": "10.96.0.12",
        "server.port": 5432,
        "podlink.service": "db.prod",
        "podlink.destination.address": "10.1.0.9",
        "podlink.destination.port": 5433,
        "podlink.destination.pod": "prod/db-0",
        "podlink.destination.identity": DB,
        "podlink.endpoint.choice": "least-open",
        "podlink.attempts": 1,
        "podlink.pooled": False,
        "podlink.direct": True,
        "podlink.bytes.sent": 350,
        "podlink.bytes.received": 81920,
        "podlink.close": "fin",
        "network.transport": "tcp",
        "network.type": "ipv4",
        "network.peer.address": "10.1.0.9",
        "network.peer.port": 5433,
        "tls.established": True,
        "tls.protocol.name": "tls",
        "tls.protocol.version": "1.3",
        "tls.cipher": "TLS_AES_128_GCM_SHA256",
        "tls.next_protocol": "podlink/2",
        "podlink.certificate.serial": "5f" * 16,
        "tls.server.hash.sha256": "AB" * 32,
        "tls.server.not_after": "2027-01-15T09:00:00Z",
    }


def test_an_inbound_link_is_the_servers_child_of_the_outbound_one() -> None:
    out = outbound()
    span = span_of(inbound_of(out))
    assert (span.trace_id, span.parent_span_id) == (out.trace_id, out.span_id)
    assert span.kind == Span.SPAN_KIND_SERVER
    assert attributes_of(span)["tls.client.hash.sha256"] == "AB" * 32


def test_a_denied_link_is_an_error_with_its_reason() -> None:
    span = span_of(denied())
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert span.status.message == "no rule allows shop/api"
    found = attributes_of(span)
    assert found["error.type"] == found["podlink.reason"] == "policy_denied"
    assert "tls.established" not in found


def test_a_link_still_open_leaves_a_span_of_its_own_below_the_one_to_come() -> None:
    record = outbound(still_open=True)
    opened = span_of(record)
    assert (opened.name, opened.kind) == ("link opened", Span.SPAN_KIND_INTERNAL)
    assert opened.parent_span_id == record.span_id != opened.span_id
    assert len(opened.span_id) == 8


def test_the_second_of_two_equal_links_is_written_from_memory_and_says_the_same() -> None:
    encoder, record = SpanEncoder(), outbound()
    assert encoder.encode(record) == encoder.encode(record) == SpanEncoder().encode(record)


def other_than(old: object) -> object:
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return old + 1
    return old[:-1] + b"!" if isinstance(old, bytes) else f"{old}!"


def test_links_that_differ_in_any_field_differ_in_bytes_though_much_is_remembered() -> None:
    encoder = SpanEncoder()
    base = outbound()
    encoder.encode(base)
    for name in LinkRecord.__slots__:
        old = getattr(base, name)
        if name in ("direction", "still_open", "parent_span_id", "claimed_traceparent"):
            continue
        new = {"verdict": "failed", "security": "plaintext"}.get(name) or other_than(old)
        setattr(base, name, new)
        assert encoder.encode(base) == SpanEncoder().encode(base), name
        setattr(base, name, old)


@pytest.mark.attack_row(42)
def test_a_claimed_traceparent_can_only_become_a_link() -> None:
    record = outbound(claimed_traceparent=CLAIM, parent_span_id=bytes.fromhex("b7ad6b7169203331"))
    span = span_of(record)
    assert span.trace_id == record.trace_id
    assert span.parent_span_id == b""
    [link] = span.links
    assert link.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert link.span_id.hex() == "b7ad6b7169203331"
    assert [(x.key, x.value.bool_value) for x in link.attributes] == [("podlink.claimed", True)]


@pytest.mark.attack_row(42)
def test_a_plaintext_source_cannot_place_a_span_below_anybodys() -> None:
    record = inbound_of(outbound(), security="plaintext", reason="peer_not_meshed")
    assert span_of(record).parent_span_id == b""


@pytest.mark.attack_row(42)
@pytest.mark.parametrize(
    "forged",
    [
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        CLAIM + "-more",
        CLAIM.upper(),
        CLAIM + "\n",
        CLAIM + ", " + CLAIM,
        "00-" + "a" * 100_000,
        "\x00",
    ],
)
def test_a_malformed_traceparent_leaves_no_trace_of_itself(forged: str) -> None:
    assert not span_of(outbound(claimed_traceparent=forged)).links


@pytest.mark.attack_row(43)
def test_hostile_text_stays_one_bounded_value() -> None:
    evil = 'x\r\n{"level":"info"}\x1b[2J\x00\ud800' + "A" * 1_000_000
    found = attributes_of(span_of(denied(error=evil, source_identity=evil)))
    assert found["error.message"] == evil[:MAX_TEXT].replace("\ud800", "?")
    assert len(str(found["podlink.source.identity"])) == MAX_TEXT


@pytest.mark.attack_row(43)
def test_long_texts_are_not_remembered() -> None:
    encoder = SpanEncoder()
    tracemalloc.start()
    try:
        for number in range(100):
            encoder.encode(denied(error=f"{number}" + "A" * 100_000))
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()


TEXTS = st.text(max_size=2000)
INTS = st.integers(-(2**70), 2**70)


@given(TEXTS, TEXTS, TEXTS, INTS, INTS, st.binary(max_size=20), st.booleans())
def test_any_record_becomes_a_span_that_parses(
    text: str, reason: str, claim: str, number: int, size: int, ident: bytes, opened: bool
) -> None:
    record = denied(
        reason=reason,
        error=text,
        service=text,
        claimed_traceparent=claim,
        bytes_sent=size,
        source_port=number,
        peer_not_after=number,
        trace_id=ident,
        span_id=ident,
        parent_span_id=ident,
        still_open=opened,
    )
    span = span_of(record)
    assert (len(span.trace_id), len(span.span_id)) == (16, 8)
    attributes_of(span)


def test_a_request_carries_the_resource_and_every_span() -> None:
    encoder = SpanEncoder()
    resource = PodResource(pod="api-1", namespace="shop", service_account="api").encode()
    drops = encode_drops({a.DROPPED_DENIED: 3}, 1, 2)
    spans = [encoder.encode(outbound()), encoder.encode(denied()), drops]
    payload = export_request(resource, [framed(span) for span in spans])
    [resource_spans] = ExportTraceServiceRequest.FromString(payload).resource_spans
    [scope_spans] = resource_spans.scope_spans
    assert scope_spans.scope.name == "podlink"
    assert [span.name for span in scope_spans.spans] == ["link", "link", "spans dropped"]
    names = {x.key: x.value.string_value for x in resource_spans.resource.attributes}
    assert names["service.name"] == "api"
    assert names["k8s.pod.name"] == "api-1"
    assert names["service.instance.id"] == "shop.api-1.podlink-proxy"


def test_attributes_stand_in_the_order_in_which_the_chain_hashes_them() -> None:
    for record in (outbound(), denied()):
        names = list(_attributes(record))
        assert names == sorted(names)
