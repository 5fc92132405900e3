"""Metrics as Prometheus itself would read them, and as docs/metrics.md promises them."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from kit.exposition import Family, Metric, one, text
from sidecar.metrics import catalogue as c
from sidecar.metrics import process
from sidecar.metrics.families import from_wire, merged, to_wire
from sidecar.metrics.handshakes import HandshakeMeter
from sidecar.metrics.links import LinkMeter
from sidecar.report import LinkRecord

DOC = (Path(__file__).resolve().parents[3] / "docs" / "metrics.md").read_text()
ROW = re.compile(r"^\| `([a-z_]+)` \| (\w+) \| ([^|]+) \| ([^|]+) \|$", re.M)


class OpenLink:
    def __init__(self, record: LinkRecord, moved: tuple[int, int]) -> None:
        self.record, self.moved = record, moved


def record(number: int = 0, direction: str = "outbound", **fields: object) -> LinkRecord:
    made = LinkRecord(direction)  # type: ignore[arg-type]
    made.verdict, made.security = "allowed", "mtls"
    made.source_identity = "spiffe://cluster.local/ns/shop/sa/web"
    made.destination_identity = f"spiffe://cluster.local/ns/shop/sa/api-{number}"
    made.service, made.bytes_sent, made.bytes_received = "api.shop", 10, 1000
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def read(families: list[Family]) -> dict[str, dict[tuple[str, ...], float]]:
    """What Prometheus' own parser makes of the text: samples by name, keyed by label values."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text(families)):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_the_page_lists_every_metric_and_no_other() -> None:
    rows = [
        (name, kind, tuple(re.findall(r"`(\w+)`", labels)), help_)
        for name, kind, labels, help_ in ROW.findall(DOC.partition("\n## The CA\n")[0])
    ]
    assert rows == [(m.name, m.kind, m.labels, m.help) for m in c.CATALOGUE]


def test_names_follow_the_conventions_of_prometheus() -> None:
    for metric in c.CATALOGUE:
        assert metric.name.startswith(("podlink_", "process_"))
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.kind != "counter" or metric.merge in ("sum", "max")


def test_open_links_count_with_their_bytes_so_far_and_once_only_when_they_end() -> None:
    handed_on: list[LinkRecord] = []
    meter = LinkMeter(handed_on.append)
    still = record(still_open=True)
    meter.report(still)  # said after a minute: no end
    before = read(meter.families([OpenLink(still, (7, 9))]))
    key = ("source", still.source_identity, still.destination_identity, "api.shop", "mtls")
    assert before["podlink_tcp_connections_opened_total"] == {key: 1}
    assert before["podlink_tcp_connections_closed_total"] == {key: 0}
    assert before["podlink_tcp_open_connections"] == {key: 1}
    assert before["podlink_tcp_sent_bytes_total"] == {key: 7}
    assert before["podlink_tcp_received_bytes_total"] == {key: 9}
    meter.report(record())
    after = read(meter.families([]))
    assert after["podlink_tcp_connections_opened_total"] == {key: 1}
    assert after["podlink_tcp_connections_closed_total"] == {key: 1}
    assert after["podlink_tcp_open_connections"] == {key: 0}
    assert after["podlink_tcp_sent_bytes_total"] == {key: 10}
    assert len(handed_on) == 2


def test_denied_failed_and_plaintext_links_are_counted_by_reason() -> None:
    meter = LinkMeter(lambda each: None)
    meter.report(record(verdict="denied", reason="policy_denied", policy="shop/db"))
    meter.report(record(verdict="failed", reason="peer_lost", direction="inbound"))
    plain = record(security="plaintext", reason="external")
    meter.report(plain)
    found = read(meter.families([OpenLink(plain, (0, 0))]))
    assert found["podlink_link_denied_total"] == {("source", "policy_denied", "shop/db"): 1}
    assert found["podlink_link_failed_total"] == {("destination", "peer_lost"): 1}
    assert found["podlink_plaintext_connections_total"] == {("source", "external"): 2}
    assert sum(found["podlink_tcp_connections_opened_total"].values()) == 2


def test_what_a_peer_claims_makes_no_series() -> None:
    meter = LinkMeter(lambda each: None)
    for number in range(50):  # OPEN names the Service: the peer's word
        meter.report(record(direction="inbound", service=f"made-up-{number}"))
    assert len(read(meter.families([]))["podlink_tcp_connections_closed_total"]) == 1


def test_series_are_bounded_and_no_sum_is_wrong() -> None:
    meter = LinkMeter(lambda each: None)
    for number in range(c.MAX_SERIES + 100):
        meter.report(record(number))
        meter.report(record(verdict="denied", reason="policy_denied", policy=f"a/{number}"))
    late = OpenLink(record(10**6), (1, 2))
    found = read(meter.families([late]))
    opened = found["podlink_tcp_connections_opened_total"]
    assert len(opened) == c.MAX_SERIES + 1
    assert opened["source", c.OVERFLOW, c.OVERFLOW, c.OVERFLOW, "mtls"] == 101
    assert sum(opened.values()) == c.MAX_SERIES + 101
    denied = found["podlink_link_denied_total"]
    assert denied["source", "policy_denied", c.OVERFLOW] == 100
    assert sum(denied.values()) == c.MAX_SERIES + 100
    assert sum(found["podlink_tcp_sent_bytes_total"].values()) == 10 * (c.MAX_SERIES + 100) + 1


def test_handshakes_are_a_histogram_that_adds_up() -> None:
    meter = HandshakeMeter()
    for seconds in (0.0005, 0.001, 0.003, 60.0):
        meter.ended("source", "ok", seconds)
    meter.ended("destination", "handshake_failed", 5.0)
    found = read(meter.families())
    assert found["podlink_tls_handshakes_total"] == {
        ("source", "ok"): 4,
        ("destination", "handshake_failed"): 1,
    }
    buckets = found["podlink_tls_handshake_seconds_bucket"]
    assert buckets["source", "0.001"] == 2
    assert buckets["source", "0.005"] == 3
    assert buckets["source", "5.0"] == 3
    assert buckets["source", "+Inf"] == found["podlink_tls_handshake_seconds_count"]["source",] == 4
    assert found["podlink_tls_handshake_seconds_sum"]["source",] == pytest.approx(60.0045)


def test_the_process_is_seen_as_the_kernel_sees_it() -> None:
    found = read(process.families())
    assert found["process_resident_memory_bytes"][()] > 1 << 20
    assert found["process_open_fds"][()] >= 3
    assert 1_700_000_000 < found["process_start_time_seconds"][()] < 4_000_000_000


texts = st.text(max_size=20)


@given(st.dictionaries(st.tuples(texts, texts), st.floats(0, 1e12), max_size=5))
def test_any_label_is_read_back_as_it_was(samples: dict[tuple[str, ...], float]) -> None:
    metric = Metric("podlink_x", "gauge", 'a "help"\nof two \\ lines', ("a", "b"))
    found = read([Family(metric, samples)])
    assert found.get("podlink_x", {}) == samples


def test_workers_are_one_page() -> None:
    workers = []
    for seconds in (1.0, 3.0):
        meter = HandshakeMeter()
        meter.ended("source", "ok", seconds)
        links = LinkMeter(lambda each: None)
        links.report(record())
        families = [*meter.families(), *links.families([]), one(c.LOOP_LAG, seconds)]
        families.append(one(c.CERTIFICATE_ENDS, 100 * seconds))
        workers += from_wire(to_wire(families), c.BY_NAME)  # type: ignore[arg-type]
    found = read(merged(workers))
    assert sum(found["podlink_tcp_connections_closed_total"].values()) == 2
    assert found["podlink_loop_lag_seconds"] == {(): 3.0}
    assert found["podlink_identity_cert_expiration_timestamp_seconds"] == {(): 100.0}
    assert found["podlink_tls_handshake_seconds_sum"] == {("source",): 4.0}
    assert found["podlink_tls_handshake_seconds_count"] == {("source",): 2}
