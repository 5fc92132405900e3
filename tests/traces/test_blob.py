"""Spans as the store keeps them."""

import hashlib
import zlib

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from tests.sidecar.telemetry.records import denied, outbound
from tests.traces.spans import request_of
from traces.blob import DICTIONARY, BlobUnreadable, pack, read_span, unpack


@given(st.binary(max_size=4000))
def test_what_is_packed_comes_back_and_never_grows_by_more_than_a_byte(message: bytes) -> None:
    kept = pack(message)
    assert unpack(kept) == message
    assert len(kept) <= len(message) + 1


def test_a_links_span_takes_less_than_half() -> None:
    for record in (outbound(), denied()):
        span = request_of(record).resource_spans[0].scope_spans[0].spans[0]
        assert len(pack(span.SerializeToString())) < span.ByteSize() // 2
        assert read_span(pack(span.SerializeToString())) == span


def test_the_dictionary_is_that_of_every_file_written_so_far() -> None:
    assert hashlib.sha256(DICTIONARY).hexdigest()[:16] == "a2dea0308b7001cf"


@given(st.binary(max_size=300))
def test_what_was_not_packed_is_refused_or_no_span_but_breaks_nothing(junk: bytes) -> None:
    for kept in (junk, b"\1" + junk, b"\2" + junk):
        try:
            read_span(kept)
        except (BlobUnreadable, DecodeError):
            continue


def test_a_small_blob_cannot_unpack_to_a_huge_one() -> None:
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -13, 5, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    bomb = b"\1" + squeezer.compress(bytes(50 << 20)) + squeezer.flush()
    with pytest.raises(BlobUnreadable):
        unpack(bomb)
