"""The store as a whole, as a process: what it takes in, keeps through death, and gives back."""

import base64
import contextlib
import gzip
import json
import signal
import socket
import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from google.protobuf import json_format

from sidecar.report import LinkRecord
from tests.patience import PATIENCE_S
from tests.sidecar.telemetry.records import API, denied, inbound_of, outbound
from tests.traces.process import StoreProcess
from tests.traces.spans import payload_of, post, request_of, send


def test_killed_at_any_moment_it_keeps_every_span_it_said_yes_to(store: StoreProcess) -> None:
    acknowledged: list[LinkRecord] = []

    def keep_sending() -> None:
        with contextlib.suppress(grpc.RpcError):
            while True:
                batch = [outbound() for _ in range(50)]
                send(store, payload_of(*batch))
                acknowledged.extend(batch)

    senders = [threading.Thread(target=keep_sending) for _ in range(3)]
    for sender in senders:
        sender.start()
    deadline = time.monotonic() + PATIENCE_S
    while len(acknowledged) <= 500 and time.monotonic() < deadline:
        time.sleep(0.01)
    store.stop(signal.SIGKILL)
    for sender in senders:
        sender.join(PATIENCE_S)
    assert len(acknowledged) > 500
    with contextlib.closing(sqlite3.connect(store.db)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        kept = {row[0] for row in db.execute("SELECT span_id FROM spans")}
        sums = db.execute(
            "SELECT step_s, sum(out_links) FROM rollups GROUP BY step_s ORDER BY step_s"
        ).fetchall()
    assert sums == [(step_s, len(kept)) for step_s in (60, 3600, 86400)]  # never apart from spans
    assert {record.span_id for record in acknowledged} <= kept
    store.start()
    assert len(store.links("limit=1000")) == min(1000, len(kept))


def test_sigterm_ends_it_with_status_0(store: StoreProcess) -> None:
    send(store, payload_of(outbound()))
    assert store.stop() == 0


def test_a_batch_sent_twice_is_kept_once(store: StoreProcess) -> None:
    payload = payload_of(outbound())
    send(store, payload)
    send(store, payload)
    assert len(store.links()) == 1


def test_a_forged_twin_neither_hides_nor_replaces_the_span_that_denies(store: StoreProcess) -> None:
    real = denied()
    twin = outbound(trace_id=real.trace_id, span_id=real.span_id)
    send(store, payload_of(twin))
    send(store, payload_of(real))
    _, body = store.ask(f"/api/traces/{real.trace_id.hex()}")
    assert {s["attributes"]["podlink.verdict"] for s in body["spans"]} == {"allowed", "denied"}
    [link] = store.links()
    assert link["verdict"] == "denied"
    assert link["disagreements"]


def test_spans_with_impossible_ids_are_refused_alone(store: StoreProcess) -> None:
    request = request_of(outbound(), outbound())
    request.resource_spans[0].scope_spans[0].spans[0].trace_id = b"short"
    answer = send(store, request.SerializeToString())
    assert answer.partial_success.rejected_spans == 1
    assert len(store.links()) == 1


def test_bytes_that_are_no_request_are_refused(store: StoreProcess) -> None:
    with pytest.raises(grpc.RpcError):
        send(store, b"\xff" * 100)
    assert post(store, b"\xff" * 100, "application/x-protobuf")[0] == 400
    assert post(store, b"{}", "text/plain")[0] == 415
    send(store, payload_of(outbound()))


def test_a_request_beyond_the_limit_is_refused_however_small_it_was_packed(
    store: StoreProcess,
) -> None:
    huge = b"\0" * (5 << 20)
    with pytest.raises(grpc.RpcError) as refused:
        send(store, huge)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    packed = gzip.compress(huge)
    status, _ = post(store, packed, "application/x-protobuf", **{"Content-Encoding": "gzip"})
    assert status == 413


def test_otlp_http_takes_protobuf_and_json_alike(store: StoreProcess) -> None:
    one, two = outbound(service="one.prod"), outbound(service="two.prod")
    status, body = post(store, payload_of(one), "application/x-protobuf")
    assert (status, body) == (200, b"")
    raw = json_format.MessageToDict(request_of(two))
    for span in raw["resourceSpans"][0]["scopeSpans"][0]["spans"]:  # OTLP: ids in hex
        for name in ("traceId", "spanId"):
            span[name] = base64.b64decode(span[name]).hex()
    status, body = post(store, json.dumps(raw).encode(), "application/json")
    assert (status, json.loads(body)) == (200, {})
    services = {link["asked"]["service"]: link["trace_id"] for link in store.links()}
    assert services == {"one.prod": one.trace_id.hex(), "two.prod": two.trace_id.hex()}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"a":' * 5_000,
        b'{"resourceSpans": 5}',
        b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "zz"}]}]}]}',
        b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"kind": 1e999}]}]}]}',
        b"\xff\xfe",
    ],
)
def test_json_that_is_no_request_is_answered_with_400(store: StoreProcess, body: bytes) -> None:
    assert post(store, body, "application/json")[0] == 400
    assert store.ask("/healthz", token=None)[0] == 200


@pytest.mark.attack_row(43)
def test_hostile_values_are_kept_as_data_and_bounded(store: StoreProcess) -> None:
    evil = "'); DROP TABLE spans; --\x1b]0;owned\x07\r\n\0" + "A" * 100_000
    request = request_of(denied())
    span = request.resource_spans[0].scope_spans[0].spans[0]
    for attribute in span.attributes:
        if attribute.key in ("podlink.source.identity", "podlink.service"):
            attribute.value.string_value = evil
    send(store, request.SerializeToString())
    send(store, payload_of(outbound()))
    links = store.links()
    assert len(links) == 2
    assert max(len(json.dumps(link)) for link in links) < 10_000
    assert len(store.log().splitlines()) == 1  # only that it is ready: nothing of this is logged


def test_links_are_found_by_what_the_question_names(store: StoreProcess) -> None:
    out = outbound()
    stranger = inbound_of(
        outbound(),
        source_identity="",
        source_pod="",
        source_ip="10.1.0.77",
        security="plaintext",
        verdict="denied",
        reason="plaintext_refused",
        parent_span_id=b"",
    )
    send(store, payload_of(out, inbound_of(out), stranger, outbound(destination_pod="batch/x")))
    assert len(store.links()) == 3
    assert [x["source"]["address"] for x in store.links("verdict=denied")] == ["10.1.0.77"]
    assert [x["reason"] for x in store.links("security=plaintext")] == ["plaintext_refused"]
    assert len(store.links("namespace=batch")) == 1
    assert len(store.links("namespace=shop")) == 2
    assert len(store.links("identity=" + API.replace("/", "%2F"))) == 2
    assert len(store.links("limit=1")) == 1
    assert store.links("namespace=nowhere") == []
    assert len(store.links("since=60")) == 3


def test_what_nobody_told_of_yet_is_an_empty_answer_and_no_error(store: StoreProcess) -> None:
    queries = (
        "verdict=denied",
        "verdict=failed&since=60",
        "security=plaintext",
        "security=none&namespace=shop",
        "security=self",
        "namespace=nowhere&verdict=denied",
        "identity=spiffe://cluster.local/ns/x/sa/y&security=plaintext",
    )
    assert [store.links(query) for query in queries] == [[]] * len(queries)
    send(store, payload_of(outbound()))
    assert [store.links(query) for query in queries] == [[]] * len(queries)


def test_a_link_denied_by_one_side_is_not_among_the_allowed(store: StoreProcess) -> None:
    out = outbound()
    send(store, payload_of(out, inbound_of(out, verdict="denied", reason="policy_denied")))
    assert store.links("verdict=allowed") == []
    [link] = store.links("verdict=denied")
    assert link["disagreements"] == ["podlink.verdict"]


@pytest.mark.parametrize(
    "query",
    ["verdict=maybe", "security=tls", "limit=0", "limit=1001", "limit=-1", "since=x", "colour=red"],
)
def test_a_malformed_question_is_answered_with_400_naming_it(
    store: StoreProcess, query: str
) -> None:
    status, body = store.ask(f"/api/links?{query}")
    assert status == 400
    assert query.partition("=")[0] in body["message"] or "unknown parameter" in body["message"]


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("", "destination_namespace"),
        ("destination_namespace=a&since=x", "since"),
        ("x=1", "unknown"),
    ],
)
def test_traffic_is_asked_of_one_namespace_and_a_malformed_question_is_named(
    store: StoreProcess, query: str, named: str
) -> None:
    status, body = store.ask(f"/api/traffic?{query}")
    assert status == 400 and named in body["message"]
    assert store.ask("/api/traffic?destination_namespace=a") == (200, {"traffic": []})
    assert store.ask("/api/traffic?destination_namespace=a", token=None)[0] == 401


@pytest.mark.parametrize("token", [None, "", "wrong", "a-token-for-test", "ünïcode"])
@pytest.mark.parametrize("path", ["/api/links", "/api/traces/" + "0" * 32, "/", "/api/../healthz/"])
def test_without_the_token_there_is_nothing(
    store: StoreProcess, path: str, token: str | None
) -> None:
    token = token and token.encode().decode("latin-1")
    assert store.ask(path, token=token)[0] == 401


def test_a_new_token_counts_at_once_and_no_token_means_nobody(store: StoreProcess) -> None:
    (store.folder / "token").write_text("another")
    assert store.ask("/api/links")[0] == 401
    assert store.ask("/api/links", token="another")[0] == 200
    (store.folder / "token").write_text("\n")
    assert store.ask("/api/links", token="")[0] == 401
    (store.folder / "token").unlink()
    assert store.ask("/api/links", token="another")[0] == 401


def test_an_unknown_trace_is_404_and_no_trace_id_400(store: StoreProcess) -> None:
    assert store.ask("/api/traces/" + "ab" * 16)[0] == 404
    assert store.ask("/api/traces/nonsense")[0] == 400


def test_a_second_store_on_a_taken_port_ends_in_one_line(store: StoreProcess) -> None:
    second = replace(store, folder=store.folder / "second", process=None)
    second.folder.mkdir()
    assert "cannot listen" in second.start_and_fail()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PODLINK_TRACES_DB", "/proc/nowhere/t.db"),
        ("PODLINK_TRACES_TOKEN_FILE", "/nowhere/token"),
        ("PODLINK_TRACES_KEEP", "forever"),
        ("PODLINK_TRACES_MAX_MIB", "0"),
    ],
)
def test_a_wrong_setting_ends_in_one_line_that_names_it(
    tmp_path: Path, name: str, value: str
) -> None:
    wrong = StoreProcess(tmp_path, {name: value})
    assert name in wrong.start_and_fail()


def test_by_default_it_listens_on_both_families(tmp_path: Path) -> None:
    everywhere = StoreProcess(tmp_path, {"PODLINK_TRACES_HOST": ""})
    everywhere.start()
    try:
        for host in ("127.0.0.1", "::1"):
            for port in (everywhere.grpc_port, everywhere.http_port, everywhere.review_port):
                socket.create_connection((host, port), 2).close()
    finally:
        everywhere.stop()
