"""OPEN and its answers: a round trip, and everything that is not one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import ProtocolViolation
from sidecar.wire.opening import (
    Opening,
    decode_accept,
    decode_code,
    encode_accept,
    encode_code,
)

texts = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=255)
openings = st.builds(
    Opening,
    st.integers(1, 65535),
    st.binary(min_size=16, max_size=16).filter(any),
    st.binary(min_size=8, max_size=8).filter(any),
    texts,
    texts,
)


@given(openings)
def test_what_was_encoded_is_read_back(sent: Opening) -> None:
    assert Opening.decode(sent.encode()) == sent


@given(openings, st.integers(0, 600))
def test_a_cut_record_is_refused(sent: Opening, cut: int) -> None:
    raw = sent.encode()
    with pytest.raises(ProtocolViolation):
        Opening.decode(raw[: cut % len(raw)])


@given(openings, st.binary(min_size=1, max_size=9))
def test_bytes_left_over_are_refused(sent: Opening, more: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        Opening.decode(sent.encode() + more)


@given(st.binary(max_size=700))
def test_garbage_is_refused_or_read_never_a_crash(junk: bytes) -> None:
    try:
        Opening.decode(junk)
    except ProtocolViolation:
        return


@pytest.mark.attack_row(43)
@pytest.mark.parametrize("byte", [0x00, 0x0A, 0x1B, 0x20, 0x7F, 0x80, 0xFF])
def test_a_text_with_a_byte_that_could_break_a_log_line_is_refused(byte: int) -> None:
    good = Opening(80, b"t" * 16, b"s" * 8, "api.shop").encode()
    with pytest.raises(ProtocolViolation):
        Opening.decode(good.replace(b"api.shop", b"api.sho" + bytes((byte,))))


def test_another_version_is_refused() -> None:
    raw = bytearray(Opening(80, b"t" * 16, b"s" * 8).encode())
    raw[0] = 2
    with pytest.raises(ProtocolViolation, match="version 2"):
        Opening.decode(bytes(raw))


@pytest.mark.parametrize(
    "empty",
    [
        Opening(0, b"t" * 16, b"s" * 8),
        Opening(80, bytes(16), b"s" * 8),
        Opening(80, b"t" * 16, bytes(8)),
    ],
)
def test_an_empty_port_trace_or_span_is_refused(empty: Opening) -> None:
    with pytest.raises(ProtocolViolation, match="empty"):
        Opening.decode(empty.encode())


def test_answers_are_read_back_and_other_sizes_refused() -> None:
    assert decode_accept(encode_accept(b"t" * 16, b"s" * 8)) == (b"t" * 16, b"s" * 8)
    assert decode_code(encode_code(3)) == 3
    for bad in (b"", b"12"):
        with pytest.raises(ProtocolViolation):
            decode_code(bad)
    with pytest.raises(ProtocolViolation):
        decode_accept(b"short")
