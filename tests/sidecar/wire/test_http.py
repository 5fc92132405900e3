"""HTTP read in passing: what is told of it, whatever way the bytes are cut, and when nothing is."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from sidecar.report import LinkRecord, RequestRecord
from sidecar.telemetry.requests import RequestWatcher
from sidecar.wire.http1 import MAX_HEAD, Exchange, Http1, NotFollowed
from sidecar.wire.http2 import PREFACE, Http2

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
GET = b"GET /orders?token=secret#x HTTP/1.1\r\nHost: api.shop\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def told_of(
    requests: bytes, answers: bytes, cuts: Sequence[int] = (), *, alternate: bool = False
) -> list[RequestRecord]:
    """What a watcher tells of one link, given the bytes in pieces."""
    found: list[RequestRecord] = []
    clock = iter(range(1, 1_000_000))
    watcher = RequestWatcher(LinkRecord("inbound"), found.append, lambda: next(clock))
    asked, answered = pieces(requests, cuts), pieces(answers, cuts)
    if alternate:
        while asked or answered:
            if asked:
                watcher.request(memoryview(asked.pop(0)))
            if answered:
                watcher.answer(memoryview(answered.pop(0)))
    for piece in asked:
        watcher.request(memoryview(piece))
    for piece in answered:
        watcher.answer(memoryview(piece))
    watcher.end()
    return found


def pieces(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    at = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[a:b] for a, b in pairwise(at) if a < b]


def seen(found: Sequence[RequestRecord]) -> list[tuple[str, str, int]]:
    return [(one.method, one.path, one.status) for one in found]


EXCHANGES: list[tuple[bytes, bytes, list[tuple[str, str, int]]]] = [
    (GET, OK, [("GET", "/orders", 200)]),
    (GET * 3, OK * 3, [("GET", "/orders", 200)] * 3),
    (
        b"POST /a HTTP/1.1\r\nContent-Length: 4\r\n\r\nGET " + GET,
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\n\r\n" + OK,
        [("POST", "/a", 204), ("GET", "/orders", 200)],
    ),
    (
        b"PUT /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"4;x=y\r\nGET \r\n3\r\n\r\n\r\r\n0\r\nX: y\r\n\r\n" + GET,
        b"HTTP/1.1 201 Made\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nHTTP/\r\n0\r\n\r\n" + OK,
        [("PUT", "/b", 201), ("GET", "/orders", 200)],
    ),
    (
        b"HEAD /c HTTP/1.1\r\n\r\n" + GET,
        b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + OK,
        [("HEAD", "/c", 200), ("GET", "/orders", 200)],
    ),
    (
        GET,
        b"HTTP/1.0 200 OK\r\n\r\nuntil the end, HTTP/1.1 500 X\r\n\r\n",
        [("GET", "/orders", 200)],
    ),
    (GET + GET, OK, [("GET", "/orders", 200), ("GET", "/orders", 0)]),
    (b"\r\n" + GET, OK, [("GET", "/orders", 200)]),
    (b"GET http://api.shop/x?y HTTP/1.1\r\n\r\n", OK, [("GET", "/x", 200)]),
    (
        b"GET /ws HTTP/1.1\r\nUpgrade: websocket\r\n\r\n\x81\x05hello",
        b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n\x81\x05hello",
        [("GET", "/ws", 101)],
    ),
]


@pytest.mark.parametrize(("requests", "answers", "expected"), EXCHANGES)
@given(st.lists(st.integers(0, 500), max_size=8), st.booleans())
def test_requests_are_told_however_the_bytes_are_cut(
    requests: bytes,
    answers: bytes,
    expected: list[tuple[str, str, int]],
    cuts: list[int],
    alternate: bool,
) -> None:
    assert seen(told_of(requests, answers, cuts)) == expected
    if alternate and len(cuts) < 2:
        assert seen(told_of(requests, answers, [], alternate=True)) == expected


@pytest.mark.parametrize(("requests", "answers", "expected"), EXCHANGES)
def test_requests_are_told_byte_by_byte(
    requests: bytes, answers: bytes, expected: list[tuple[str, str, int]]
) -> None:
    everywhere = range(max(len(requests), len(answers)))
    assert seen(told_of(requests, answers, everywhere)) == expected


@pytest.mark.parametrize(
    "smuggled",
    [
        b"POST / HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: +4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nContent-Length: 4_0\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x4\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\n folded\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"GET / SPDY/3\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"X" * (MAX_HEAD + 2) + b"\n",
    ],
)
def test_what_two_readers_may_read_differently_is_not_followed(smuggled: bytes) -> None:
    watched = Http1(lambda _: None)
    with pytest.raises(NotFollowed):
        for _ in range(3):
            watched.request(memoryview(smuggled + b"\r\n"), 1)


@pytest.mark.parametrize(
    "size", [b"0x4", b"0X4", b"+4", b"-4", b"0_4", b"", b"g", b"0" * 16 + b"4"]
)
def test_a_chunk_size_is_hexadecimal_digits_and_nothing_else(size: bytes) -> None:
    head = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    lawful = head + b"4\r\nabcd\r\n0\r\n\r\n"
    Http1(lambda _: None).request(memoryview(lawful), 1)
    with pytest.raises(NotFollowed, match="without a size"):
        Http1(lambda _: None).request(memoryview(lawful.replace(b"4\r\n", size + b"\r\n")), 1)


def test_an_answer_without_a_body_ends_with_its_head() -> None:
    empty = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    assert seen(told_of(GET * 2, empty + OK)) == [("GET", "/orders", 200)] * 2


@pytest.mark.attack_row(42)
def test_a_head_of_100_kib_is_not_followed_and_harms_nothing() -> None:
    head = b"GET / HTTP/1.1\r\ntraceparent: " + b"0" * 100_000 + b"\r\n\r\n"
    assert told_of(head, OK) == []
    many = b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000 + b"\r\n"
    assert told_of(many, OK) == []


@pytest.mark.attack_row(42)
def test_of_two_traceparents_none_is_taken() -> None:
    line = f"traceparent: {TRACEPARENT}\r\n".encode()
    head = b"GET / HTTP/1.1\r\n"
    assert told_of(head + line + b"\r\n", OK)[0].claimed_traceparent == TRACEPARENT
    assert told_of(head + line * 2 + b"\r\n", OK)[0].claimed_traceparent == ""


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return (
        len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload
    )


def grpc_call(padded: bool, split: bool) -> tuple[bytes, bytes]:
    """Two calls on one connection, as gRPC makes them: HPACK's table carries over."""
    near, far = Encoder(), Encoder()
    asked, answered = PREFACE + frame(4, 0, 0, b""), frame(4, 0, 0, b"")
    for stream, status in ((1, "0"), (3, "14")):
        block = near.encode(
            [
                (":method", "POST"),
                (":path", "/shop.Orders/Get?x=1"),
                (":scheme", "http"),
                ("traceparent", TRACEPARENT),
            ]
        )
        if padded:
            asked += frame(1, 0x4 | 0x8 | 0x20, stream, b"\x03" + b"\0" * 5 + block + b"\0\0\0")
        elif split:
            asked += frame(1, 0, stream, block[:3]) + frame(9, 0x4, stream, block[3:])
        else:
            asked += frame(1, 0x4, stream, block)
        asked += frame(0, 0x1, stream, b"\0\0\0\0\x02hi" * 50)
        answered += frame(1, 0x4, stream, far.encode([(":status", "200")]))
        answered += frame(0, 0, stream, b"\0\0\0\0\x02ho" * 50)
        answered += frame(1, 0x5, stream, far.encode([("grpc-status", status)]))
    return asked, answered


@given(st.booleans(), st.booleans(), st.lists(st.integers(0, 900), max_size=9))
def test_grpc_calls_are_told_with_their_status_however_cut(
    padded: bool, split: bool, cuts: list[int]
) -> None:
    asked, answered = grpc_call(padded, split)
    found = told_of(asked, answered, cuts)
    assert seen(found) == [("POST", "/shop.Orders/Get", 200)] * 2
    assert [one.grpc_status for one in found] == ["0", "14"]
    assert {one.claimed_traceparent for one in found} == {TRACEPARENT}
    assert {one.version for one in found} == {"2"}


@given(st.integers(1, 60))
def test_a_server_that_begins_with_its_settings_is_followed_all_the_same(cut: int) -> None:
    asked, answered = grpc_call(False, False)
    found: list[RequestRecord] = []
    watcher = RequestWatcher(LinkRecord("inbound"), found.append, lambda: 1)
    settings = frame(4, 0, 0, b"\0\x03\0\0\0\x64")
    for piece in pieces(settings, [cut]):
        watcher.answer(memoryview(piece))
    for piece in pieces(asked, [cut]):
        watcher.request(memoryview(piece))
    watcher.answer(memoryview(answered))
    assert seen(found) == [("POST", "/shop.Orders/Get", 200)] * 2


@pytest.mark.parametrize(
    "banner", [b"SSH-2.0-x\r\n", frame(4, 0, 0, b"\0" * 4096), frame(0, 0, 1, b"x")]
)
def test_a_server_that_begins_with_anything_else_is_not_followed(banner: bytes) -> None:
    found: list[RequestRecord] = []
    watcher = RequestWatcher(LinkRecord("inbound"), found.append, lambda: 1)
    watcher.answer(memoryview(banner))
    watcher.request(memoryview(GET))
    watcher.answer(memoryview(OK))
    assert found == []


def test_a_stream_that_the_caller_resets_is_told_without_an_answer() -> None:
    asked, _ = grpc_call(False, False)
    found = told_of(asked + frame(3, 0, 3, b"\0\0\0\x08"), b"")
    assert [(one.method, one.status) for one in found] == [("POST", 0)] * 2


def test_a_promise_of_the_server_is_not_told_and_keeps_the_table_of_its_compression() -> None:
    asked, _ = grpc_call(False, False)
    encoder = Encoder()
    promise = encoder.encode([(":method", "GET"), (":path", "/style.css"), ("x-promised", "yes")])
    answered = frame(5, 0x4, 1, (2).to_bytes(4, "big") + promise)
    answered += frame(1, 0x4, 2, encoder.encode([(":status", "200")]))  # of the promise: not asked
    answered += frame(1, 0x5, 1, encoder.encode([(":status", "404"), ("x-promised", "yes")]))
    found = told_of(asked, answered)
    assert seen(found) == [("POST", "/shop.Orders/Get", 404), ("POST", "/shop.Orders/Get", 0)]


HEADERS = Encoder().encode([(":method", "GET"), (":path", "/")])


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        (frame(1, 0x4, 1, bytes(64 * 1024 + 1)), "too long"),
        (frame(1, 0, 1, HEADERS) + frame(0, 0, 1, b"x"), "broken off"),
        (frame(1, 0x4 | 0x8, 1, b"\x09abc"), "padding"),
        (frame(1, 0x4 | 0x8, 1, b""), "padding"),
        (frame(1, 0, 1, HEADERS) + frame(9, 0x4, 3, b""), "does not go on"),
        (frame(1, 0, 1, bytes(40_000)) + frame(9, 0x4, 1, bytes(40_000)), "does not go on"),
        (frame(1, 0x4, 1, b"\xff" * 20), "that is none"),
        (frame(1, 0x4, 1, b"\x80"), "that is none"),
        (b"".join(frame(1, 0x4, n, b"\x82\x84") for n in range(1, 3001, 2)), "too many streams"),
    ],
)
def test_frames_that_break_the_rules_are_not_followed(frames: bytes, why: str) -> None:
    watched = Http2(lambda _: None)
    with pytest.raises(NotFollowed, match=why):
        watched.request(memoryview(PREFACE + frames), 1)


heads = st.sampled_from([GET, PREFACE, OK, b"POST / HTTP/1.1\r\n", b"HTTP/1.1 200 OK\r\n", b""])
parts = st.lists(
    st.sampled_from(
        [
            GET,
            OK,
            b"\r\n",
            b"\n",
            b"0\r\n\r\n",
            b"Content-Length: 5\r\n",
            b"Transfer-Encoding: chunked\r\n\r\n",
            frame(1, 4, 1, b"\x82"),
            frame(9, 4, 1, b"\xff" * 20),
            frame(0, 1, 1, b"x"),
        ]
    )
    | st.binary(max_size=40),
    max_size=12,
).map(b"".join)


@given(heads, parts, heads, parts, st.lists(st.integers(0, 300), max_size=5))
def test_no_bytes_whatever_break_the_watcher(
    one: bytes, asked: bytes, two: bytes, answered: bytes, cuts: list[int]
) -> None:
    for alternate in (False, True):
        for exchange in told_of(one + asked, two + answered, cuts, alternate=alternate):
            assert isinstance(exchange, RequestRecord)


def test_what_waits_for_an_answer_is_bounded() -> None:
    watched = Http1(lambda _: None)
    with pytest.raises(NotFollowed):
        for _ in range(1000):
            watched.request(memoryview(GET), 1)


def test_the_path_has_no_query() -> None:
    found: list[Exchange] = []
    watched = Http1(found.append)
    watched.request(memoryview(GET), 1)
    watched.answer(memoryview(OK), 2)
    assert "secret" not in repr(found)
