"""First bytes, judged by real ClientHellos that OpenSSL wrote, and by hostile ones."""

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.wire.client_hello import MAX_HELLO, FirstBytes, classify

OURS = (b"podlink/2", b"podlink/1")


def hello(alpn: list[str] | None) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if alpn is not None:
        context.set_alpn_protocols(alpn)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize(
    "alpn", [["podlink/1"], ["podlink/2"], ["podlink/3", "podlink/2"], ["h2", "podlink/1"]]
)
def test_a_hello_that_offers_our_alpn_is_a_peers(alpn: list[str]) -> None:
    assert classify(hello(alpn), OURS) is FirstBytes.MESH


@pytest.mark.attack_row(4)
@pytest.mark.parametrize("alpn", [None, ["h2"], ["podlink/10"], ["podlink"], ["http/1.1"]])
def test_an_apps_own_tls_is_not_ours(alpn: list[str] | None) -> None:
    assert classify(hello(alpn), OURS) is FirstBytes.FOREIGN_TLS


@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1\r\n", b"\x00\x00\x00\x08\x04\xd2\x16\x2f", b"*1\r\n", b"\x16GET /"]
)
def test_other_protocols_are_plaintext_by_their_first_bytes(first: bytes) -> None:
    assert classify(first, OURS) is FirstBytes.PLAINTEXT


def test_every_cut_of_a_hello_is_incomplete_and_trailing_bytes_change_nothing() -> None:
    whole = hello(["podlink/1"])
    for size in range(len(whole)):
        assert classify(whole[:size], OURS) is FirstBytes.INCOMPLETE
    assert classify(whole + b"more", OURS) is FirstBytes.MESH


@given(st.binary(max_size=400))
def test_garbage_never_crashes_and_is_never_ours(junk: bytes) -> None:
    assert classify(b"\x16\x03\x01" + junk, OURS) is not FirstBytes.MESH


@given(st.data())
def test_a_damaged_hello_never_crashes(data: st.DataObject) -> None:
    whole = bytearray(hello(["podlink/1"]))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    classify(bytes(whole), OURS)


@pytest.mark.attack_row(25)
def test_a_record_longer_than_tls_allows_is_not_waited_for() -> None:
    size = MAX_HELLO + 1
    head = b"\x16\x03\x01" + size.to_bytes(2, "big") + b"\x01"
    assert classify(head, OURS) is FirstBytes.PLAINTEXT
