"""What the store adds up while spans arrive, and what a flood of names can do to it."""

import contextlib
import secrets
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.sidecar.telemetry.records import API, DB, denied, inbound_of, outbound
from tests.traces.spans import request_of
from traces import views
from traces.insert import OTHER, SHARES, Inserter, Room
from traces.page.asked import Asked
from traces.page.questions import QUESTIONS
from traces.rollups import FINE_S, Traffic, segments, traffic
from traces.rows import rows_of
from traces.schema import open_for_writing

NOW_NS = 1_800_000_000 * 10**9
EVER = (0, 4_000_000_000)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(open_for_writing(tmp_path / "t.db")) as it:
        yield it


def keep(
    db: sqlite3.Connection,
    request: ExportTraceServiceRequest,
    at_ns: int = NOW_NS,
    max_edges: int = 1000,
) -> int:
    inserter = Inserter(db, max_edges)
    kept = sum(inserter.insert(of, at_ns) for of in rows_of(request).resources)
    inserter.flush()
    return kept


def all_traffic(db: sqlite3.Connection) -> list[Traffic]:
    return list(traffic(db, *EVER))


def test_a_link_told_by_both_sides_is_one_link(db: sqlite3.Connection) -> None:
    out = outbound(destination_port=5433)
    keep(db, request_of(out, inbound_of(out)))
    [found] = all_traffic(db)
    assert (found.source, found.destination, found.service) == (API, DB, "db.prod")
    assert (found.source_namespace, found.destination_namespace) == ("shop", "prod")
    assert (found.links, found.bytes_sent, found.bytes_received) == (1, 350, 81_920)
    assert (found.sides, found.port, found.rule) == ("both", 5433, "allow[0]")


def test_a_batch_sent_twice_counts_once(db: sqlite3.Connection) -> None:
    request = request_of(outbound(), denied())
    assert keep(db, request) == 2
    assert keep(db, request) == 0
    assert sorted(t.verdict for t in all_traffic(db)) == ["allowed", "denied"]
    assert {t.links for t in all_traffic(db)} == {1}


def test_a_link_that_still_runs_is_opened_and_counts_once_when_it_has_ended(
    db: sqlite3.Connection,
) -> None:
    link = outbound(still_open=True)
    keep(db, request_of(link))
    [found] = all_traffic(db)
    assert (found.links, found.opened) == (0, 1)
    link.still_open = False
    keep(db, request_of(link))
    [found] = all_traffic(db)
    assert (found.links, found.opened) == (1, 1)


def test_an_edge_keeps_the_day_it_was_first_seen(db: sqlite3.Connection) -> None:
    day_ns = 86400 * 10**9
    for days in (0, 1, 5):
        at_ns = NOW_NS + days * day_ns
        keep(db, request_of(outbound(start_ns=at_ns, end_ns=at_ns)), at_ns)
    assert db.execute("SELECT first_ns, last_ns FROM edges").fetchall() == [
        (NOW_NS, NOW_NS + 5 * day_ns)
    ]
    since_s = NOW_NS // 10**9 + 86400 // 2
    assert [t.links for t in traffic(db, since_s, since_s + 10 * 86400)] == [2]


def test_a_clock_that_is_wrong_does_not_write_history(db: sqlite3.Connection) -> None:
    keep(db, request_of(outbound(end_ns=5), outbound(end_ns=NOW_NS * 4)))
    assert db.execute("SELECT first_ns, last_ns FROM edges").fetchall() == [(NOW_NS, NOW_NS)]


@pytest.mark.attack_row(44)
def test_a_flood_of_made_up_names_costs_rows_called_other_and_hides_no_denial(
    db: sqlite3.Connection,
) -> None:
    known = denied()
    keep(db, request_of(known), max_edges=50)
    for _ in range(5):
        strangers = [
            outbound(
                source_identity="",
                source_pod="",
                source_ip=f"10.9.0.{secrets.randbelow(255)}",
                destination_identity=f"spiffe://cluster.local/ns/n{secrets.token_hex(4)}/sa/x",
            )
            for _ in range(100)
        ]
        keep(db, request_of(*strangers), max_edges=50)
    keep(db, request_of(denied()), max_edges=50)
    assert db.execute("SELECT count(*) FROM edges").fetchone()[0] <= 102
    found = all_traffic(db)
    assert sum(t.links for t in found) == 502
    assert sum(t.links for t in found if t.source_kind == OTHER) > 300
    [refused] = [t for t in found if t.verdict == "denied"]
    assert (refused.source, refused.links) == (API, 2)


def test_names_beyond_any_bound_share_one_edge(db: sqlite3.Connection) -> None:
    keep(
        db,
        request_of(
            *(outbound(source_identity=f"spiffe://td/ns/{n}/sa/x") for n in range(30)),
        ),
        max_edges=5,
    )
    assert db.execute("SELECT count(*) FROM edges").fetchone()[0] == 11


def test_a_certificate_of_the_year_9999_spoils_no_transaction(db: sqlite3.Connection) -> None:
    """All senders of a moment share one: a number that SQLite cannot keep would lose it for all."""
    request = request_of(outbound())
    span = request.resource_spans[0].scope_spans[0].spans.add()
    span.trace_id, span.span_id, span.name = b"t" * 16, b"s" * 8, "certificate issued"
    span.end_time_unix_nano = NOW_NS
    for name in ("not_before", "not_after"):
        value = span.attributes.add(key=f"podlink.certificate.{name}").value
        value.string_value = "9999-12-31T23:59:59Z"
    keep(db, request)
    [(began, ended)] = db.execute("SELECT not_before_ns, not_after_ns FROM certificates").fetchall()
    assert began == ended == (1 << 63) - 1
    assert db.execute("SELECT count(*) FROM spans").fetchone() == (2,)


def test_the_ledger_of_certificates_is_kept_apart(db: sqlite3.Connection) -> None:
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add()
    span.trace_id, span.span_id, span.name = b"t" * 16, b"s" * 8, "certificate issued"
    span.end_time_unix_nano = NOW_NS
    for name, value in (
        ("podlink.certificate.serial", "5f5f"),
        ("podlink.certificate.identity", API),
        ("podlink.certificate.pod", "shop/api-1"),
        ("podlink.certificate.not_after", "2027-01-15T09:00:00Z"),
    ):
        span.attributes.add(key=name).value.string_value = value
    keep(db, request)
    assert db.execute(
        "SELECT event, serial, identity, pod, not_after_ns FROM certificates"
    ).fetchall() == [("issued", "5f5f", API, "shop/api-1", 1_800_003_600 * 10**9)]


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_segments_cover_the_time_once_and_little_more(since_s: int, length_s: int) -> None:
    until_s = since_s + length_s
    parts = segments(since_s, until_s)
    covered = sorted((low, high) for _, low, high in parts)
    assert all(high == low for (_, high), (low, _) in pairwise(covered))
    if length_s:
        slack_s = 60 if length_s <= FINE_S else 3600
        assert since_s - slack_s < covered[0][0] <= since_s
        assert until_s <= covered[-1][1] < until_s + slack_s
    assert all(low % step == 0 and high % step == 0 for step, low, high in parts)
    assert sum((high - low) // step for step, low, high in parts) <= 200


def issued(pod: str, identity: str) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add()
    span.trace_id, span.span_id = secrets.token_bytes(16), secrets.token_bytes(8)
    span.name, span.end_time_unix_nano = "certificate issued", NOW_NS
    for key, value in (("pod", pod), ("identity", identity), ("serial", "5f")):
        span.attributes.add(key=f"podlink.certificate.{key}").value.string_value = value
    return request


def plaintext_to(pod: str) -> ExportTraceServiceRequest:
    out = outbound(
        security="plaintext", reason="skip_port", destination_pod=pod, destination_identity=""
    )
    return request_of(out)


def test_plaintext_to_a_pod_and_mtls_to_its_identity_are_one_mixed_edge(
    db: sqlite3.Connection,
) -> None:
    out = outbound()
    keep(db, request_of(out, inbound_of(out)))
    keep(db, plaintext_to("prod/db-0"), NOW_NS + 3600 * 10**9)
    assert [edge.state for edge in views.edges(db, *EVER)] == ["plaintext", "mtls"]
    keep(db, issued("prod/db-0", DB))
    [edge] = views.edges(db, *EVER)
    assert (edge.state, edge.destination.name, edge.links) == ("mixed", DB, 2)
    assert edge.protected_percent == 50.0
    [same] = views.edges(db, *EVER, identity=DB)
    assert same.count("plaintext") == 1
    # The edge was known before its plaintext was seen: it is no news, but its plaintext shows.
    assert views.first_seen(db, NOW_NS + 10**9, NOW_NS * 2) == {}
    assert len(views.first_seen(db, 0, NOW_NS * 2)) == 1


def test_mtls_to_an_identity_whose_pod_was_reached_before_is_no_news(
    db: sqlite3.Connection,
) -> None:
    keep(db, issued("prod/db-0", DB))
    keep(db, plaintext_to("prod/db-0"))
    out = outbound()
    keep(db, request_of(out, inbound_of(out)), NOW_NS + 3600 * 10**9)
    assert views.first_seen(db, NOW_NS + 10**9, NOW_NS * 2) == {}


@pytest.mark.attack_row(43)
def test_a_source_that_showed_no_leaf_is_not_taken_for_the_identity_of_its_pod(
    db: sqlite3.Connection,
) -> None:
    keep(db, issued("shop/api-1", API))
    out = outbound()
    keep(db, request_of(inbound_of(out, source_identity="", security="plaintext")))
    [edge] = views.edges(db, *EVER)
    assert (edge.source.kind, edge.source.name) == ("pod", "shop/api-1")


EVIL = "spiffe://cluster.local/ns/evil/sa/x"


def keep_of(db: sqlite3.Connection, sender: str, request: ExportTraceServiceRequest) -> None:
    inserter = Inserter(db, 2000)
    for of in rows_of(request, sender).resources:
        inserter.insert(of, NOW_NS)
    inserter.flush()


@pytest.mark.attack_row(58)
def test_one_sender_that_makes_up_names_blinds_the_store_to_nobody_else(
    db: sqlite3.Connection,
) -> None:
    """Its own new edges become `other`; whoever comes after still has edges and ways of his own."""
    for block in range(10):
        made = [
            outbound(
                source_identity=EVIL,
                destination_identity=f"spiffe://cluster.local/ns/n{block}/sa/x{n}",
                rule=f"allow[{block * 300 + n}]",
            )
            for n in range(300)
        ]
        keep_of(db, EVIL, request_of(*made))
    assert db.execute("SELECT count(*) FROM edges").fetchone()[0] <= 201
    assert db.execute("SELECT count(*) FROM ways").fetchone()[0] <= 1001
    late = [denied(destination_identity=f"spiffe://cluster.local/ns/p/sa/d{n}") for n in range(40)]
    keep_of(db, API, request_of(*late))
    found = [t for t in all_traffic(db) if t.source == API]
    assert len({t.destination for t in found}) == 40
    assert {(t.verdict, t.reason) for t in found} == {("denied", "policy_denied")}
    assert sum(t.links for t in all_traffic(db)) == 3040


@given(
    st.integers(1, 200),
    st.lists(st.sampled_from([EVIL, API, DB, *(f"s{n}" for n in range(40))]), max_size=300),
)
def test_no_sender_takes_more_than_twice_its_share_and_a_modest_one_always_has_room(
    most: int, takers: list[str]
) -> None:
    room = Room(most)
    taken: dict[str, int] = {}
    for sender in takers:
        said = room.left(sender)
        if not taken.get(sender):
            assert said != "none"
        if said != "none":
            room.take(sender)
            taken[sender] = taken.get(sender, 0) + 1
    assert max(taken.values(), default=0) <= 2 * max(1, most // SHARES)


@pytest.mark.attack_row(56)
def test_a_replay_goes_by_what_the_destination_told(db: sqlite3.Connection) -> None:
    real = outbound()
    keep(db, request_of(real, inbound_of(real)))
    keep(db, request_of(*(outbound(source_identity=EVIL) for _ in range(5))))
    assert {edge.source.name for edge in views.edges(db, *EVER)} == {API, EVIL}
    [edge] = views.edges(db, *EVER, by_destination=True)
    assert (edge.source.name, edge.links) == (API, 1)
    policy = (
        "apiVersion: podlink.dev/v1alpha1\nkind: LinkPolicy\nmetadata: {name: db, namespace: prod}\n"
        "spec: {allow: [{from: [{namespace: evil, serviceAccount: x}], ports: [5433]}]}\n"
    )
    asked = Asked.parse({"policy": ""}, NOW_NS)
    asked = replace(asked, since_s=EVER[0], until_s=EVER[1], raw={"text": policy})
    answer = QUESTIONS["replay"](db, asked)
    assert {(row["source"], row["fate"]) for row in answer.rows} == {(API, "cut")}
