"""How spans of two sides become one link."""

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from sidecar.report import LinkRecord
from sidecar.telemetry.encode import SpanEncoder
from tests.sidecar.telemetry.records import API, inbound_of, outbound
from traces.links import LinkSpan, join
from traces.query import link_span


def seen(record: LinkRecord) -> LinkSpan:
    return link_span(Span.FromString(SpanEncoder().encode(record)))


def test_each_side_is_believed_in_what_it_verified_itself() -> None:
    out = outbound(source_identity="spiffe://cluster.local/ns/shop/sa/liar")
    inner = inbound_of(out, source_identity=API, destination_identity="spiffe://x/ns/y/sa/liar")
    [link] = join([seen(inner), seen(out)])
    assert link["source"]["identity"] == API  # type: ignore[index]
    assert link["destination"]["identity"] == out.destination_identity  # type: ignore[index]
    assert link["disagreements"] == ["podlink.source.identity", "podlink.destination.identity"]


def test_a_link_is_mtls_only_if_both_sides_say_so() -> None:
    out = outbound()
    [link] = join([seen(out), seen(inbound_of(out, security="none"))])
    assert link["security"] == "none"
    assert link["disagreements"] == ["podlink.security"]


def test_the_peer_is_proved_only_if_every_side_saw_a_leaf() -> None:
    out = outbound(security="none", verdict="denied")
    for serial, proved in (("77" * 16, True), ("", False)):
        [link] = join([seen(out), seen(inbound_of(out, peer_serial=serial))])
        assert link["proved"] is proved


def test_plaintext_from_outside_the_tunnel_never_joins_somebodys_link() -> None:
    out = outbound()
    stranger = inbound_of(out, security="plaintext")  # claims the parent all the same
    assert [x["sides"] for x in join([seen(out), seen(stranger)])] == [["inbound"], ["outbound"]]


def test_an_open_link_is_one_link_of_two_sides_and_ends_as_the_same_one() -> None:
    out = outbound(still_open=True)
    inner = inbound_of(out)
    opened = [seen(out), seen(inner)]
    [link] = join(opened)
    assert (link["open"], link["sides"]) == (True, ["outbound", "inbound"])
    out.still_open = inner.still_open = False
    [ended] = join([*opened, seen(out), seen(inner)])
    assert (ended["open"], ended["span_id"]) == (False, link["span_id"])


def test_of_two_attempts_the_last_answer_is_the_links_other_side() -> None:
    out = outbound(attempts=2, destination_pod="prod/db-1")
    first = inbound_of(out, destination_pod="prod/db-0", verdict="failed", reason="app_unreachable")
    second = inbound_of(out)
    second.start_ns += 1_000_000
    [link] = join([seen(first), seen(second), seen(out)])
    assert link["verdict"] == "allowed"
    assert link["sides"] == ["outbound", "inbound"]


def test_an_inbound_span_alone_is_a_link_too() -> None:
    [link] = join([seen(inbound_of(outbound()))])
    assert link["sides"] == ["inbound"]


def test_spans_without_any_attribute_join_without_complaint() -> None:
    bare = LinkSpan("aa", "bb", "bb", "link", 2**63, 0, {"podlink.direction": "outbound"})
    [link] = join([bare])
    assert link["verdict"] is None
    assert link["start"]
