"""What anybody may send to the store, or ask of it: no status of 500, and no error in its log."""

import http.client
import json
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

from sidecar.telemetry import attributes as names
from tests.patience import PATIENCE_S
from tests.sidecar.telemetry.records import denied, outbound
from tests.traces.process import TOKEN, StoreProcess
from tests.traces.spans import post, request_of, send

NESTED = b"[" * 100_000
VALUES = {
    "text": AnyValue(string_value="a text"),
    "huge": AnyValue(int_value=(1 << 63) - 1),
    "negative": AnyValue(int_value=-5),
    "nan": AnyValue(double_value=float("nan")),
    "bytes": AnyValue(bytes_value=b"\xff\x00"),
    "truth": AnyValue(bool_value=True),
    "none": AnyValue(),
    "list": AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1), AnyValue()])),
    "map": AnyValue(
        kvlist_value=KeyValueList(values=[KeyValue(key="a", value=AnyValue(int_value=1))])
    ),
    "controls": AnyValue(string_value="\x1b[2J\n\u202e<script>"),
}


def no_error(store: StoreProcess) -> None:
    lines = [json.loads(line) for line in store.log().splitlines() if line.startswith("{")]
    assert [line for line in lines if line["level"] in ("error", "critical")] == []
    assert "Traceback" not in store.log()


def fetch(
    store: StoreProcess, path: str, headers: dict[str, str], body: bytes | None = None
) -> tuple[int, bytes]:
    request = urllib.request.Request(store.url(path), data=body, headers=headers)
    opener = urllib.request.build_opener(Stay)
    try:
        with opener.open(request, timeout=PATIENCE_S) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as e:
        with e:
            return e.code, e.read()


class Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


@pytest.mark.attack_row(50)
@pytest.mark.parametrize("kind", VALUES)
def test_an_attribute_of_another_type_hides_neither_its_trace_nor_any_other(
    store: StoreProcess, kind: str
) -> None:
    """A text in `podlink.bytes.sent` once left the trace's page with status 500."""
    send(store, request_of(outbound()).SerializeToString())
    known = [value for name, value in vars(names).items() if name.isupper()]
    spoilt = [name for name in known if isinstance(name, str)]
    for record in (outbound(), denied()):
        for group in (["podlink.bytes.sent"], spoilt):
            request = request_of(record)
            span = request.resource_spans[0].scope_spans[0].spans[0]
            keep = [a for a in span.attributes if a.key not in group]
            keep += [KeyValue(key=name, value=VALUES[kind]) for name in group]
            del span.attributes[:]
            span.attributes.extend(keep)
            send(store, request.SerializeToString())
    links = store.links()
    assert links
    traces = {link["trace_id"] for link in links}
    for trace_id in traces:
        assert store.ask(f"/api/traces/{trace_id}")[0] == 200
        for form in ("", ".json", ".csv"):
            status, _ = fetch(store, f"/trace{form}?id={trace_id}", {"X-Podlink-Token": TOKEN})
            assert status == 200
    for view in ("", "graph", "denials", "plaintext", "certificates", "edges", "replay"):
        status, _ = fetch(store, f"/{view}", {"X-Podlink-Token": TOKEN, "Accept": "text/html"})
        assert status in (200, 404)
    no_error(store)


FORM = "application/x-www-form-urlencoded"
ASKED: list[tuple[str, bytes | None, dict[str, str]]] = [
    ("/login", b"\xff", {"Content-Type": FORM}),
    ("/login", b"token=%ff%fe&next=%00", {"Content-Type": FORM}),
    ("/login", b"token=%ED%A0%80", {"Content-Type": FORM}),
    ("/login", b"token=x", {"Content-Type": FORM + "; charset=none-such"}),
    ("/login", b"x", {"Content-Type": "multipart/form-data"}),
    ("/login", b"--a\r\n\xff\r\n--a--", {"Content-Type": "multipart/form-data; boundary=a"}),
    ("/login", b"token=" + b"x" * 200_000, {"Content-Type": FORM}),
    ("/replay", b"\xff", {"Content-Type": FORM}),
    ("/replay", b"policy=" + b"[" * 90_000, {"Content-Type": FORM}),
    ("/replay", b"policy=" + urllib.parse.quote("a: &a [*a]").encode(), {"Content-Type": FORM}),
    ("/replay", b"policy=%00%ff", {"Content-Type": FORM}),
    ("/api/report", NESTED, {}),
    ("/api/report", b'{"cluster": {"a": ' + NESTED[:500] + b"]" * 500 + b"}}", {}),
    ("/api/report", b"\xff\xfe", {}),
    ("/api/report", b'{"cluster": 5}', {}),
    ("/api/links?since=%ff&namespace=%00", None, {}),
    ("/api/links?namespace=%ED%A0%80", None, {}),
    ("/api/links?limit=" + "9" * 5000, None, {}),
    ("/api/traffic?destination_namespace=%ff", None, {}),
    ("/api/traces/%ff", None, {}),
    ("/graph?ns=%ED%A0%80&q=%00&since=1h", None, {}),
    ("/trace?id=%ff", None, {}),
    ("/replay?policy=%ff%00", None, {}),
    ("/replay?policy=" + "A" * 4000, None, {}),
    ("/graph?from=9999-12-31T23:59:59&to=0001-01-01", None, {}),
    ("/%ff", None, {}),
    ("/static/..%2f..%2fetc%2fpasswd", None, {}),
]


@pytest.mark.attack_row(50)
def test_whatever_is_asked_of_the_page_is_answered_or_refused(store: StoreProcess) -> None:
    for path, body, headers in ASKED:
        for token in ({}, {"X-Podlink-Token": TOKEN}):
            for accept in ({}, {"Accept": "text/html"}):
                status, said = fetch(store, path, {**headers, **token, **accept}, body)
                assert status < 500 or (status == 503 and b"no_certificate" in said), (
                    path,
                    said,
                    store.log()[-3000:],
                )
    for raw in (b"\xff", "tök".encode()):
        asked = http.client.HTTPConnection("127.0.0.1", store.review_port, timeout=PATIENCE_S)
        asked.putrequest("GET", "/graph")
        asked.putheader("X-Podlink-Token", raw)
        asked.putheader("Cookie", b"podlink_session=" + raw)
        asked.endheaders()
        assert asked.getresponse().status == 401
        asked.close()
    no_error(store)


@pytest.mark.attack_row(50)
def test_whatever_is_sent_to_the_receivers_is_taken_or_refused(store: StoreProcess) -> None:
    for kind in ("application/json", "application/x-protobuf", "text/plain", "x"):
        for body in (
            b"",
            b"\xff" * 50,
            NESTED,
            b'{"resourceSpans": 5}',
            b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "zz"}]}]}]}',
            b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"startTimeUnixNano": "1e999"}]}]}]}',
            b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "\\ud800"}]}]}]}',
        ):
            status, said = post(store, body, kind)
            assert status < 500, (kind, body[:60], said)
    send(store, request_of(outbound()).SerializeToString())  # the positive control
    assert store.links()
    no_error(store)


@pytest.mark.attack_row(52)
def test_connections_that_do_nothing_are_bounded_at_every_port(store: StoreProcess) -> None:
    for port, most in ((store.grpc_port, 256), (store.http_port, 64), (store.review_port, 64)):
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(400)]
        deadline = time.monotonic() + PATIENCE_S
        while sum(map(_lives, held)) > most and time.monotonic() < deadline:
            time.sleep(0.1)
        assert sum(map(_lives, held)) <= most
        for one in held:
            one.close()
    send(store, request_of(outbound()).SerializeToString())  # the positive control
    assert store.links()
    no_error(store)


def _lives(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return bool(sock.recv(1 << 16))
    except BlockingIOError:
        return True
    except OSError:
        return False
