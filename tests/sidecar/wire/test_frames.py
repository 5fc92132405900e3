"""The frame codec: every message is read whole, byte by byte and cut anywhere, with the same result."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import ProtocolViolation
from sidecar.wire.frames import (
    CHALLENGE,
    DATA,
    LIMITS_1,
    LIMITS_2,
    LIMITS_2_PROOF,
    MAX_PAYLOAD,
    OPEN,
    PROOF,
    RENEW,
    RENEWED,
    FrameReader,
    encode,
)


class Sink:
    """Collects what a reader finds; pieces of one DATA frame are joined with those next to them."""

    def __init__(self) -> None:
        self.found: list[tuple[int, bytes]] = []

    def data(self, piece: memoryview) -> None:
        if self.found and self.found[-1][0] == DATA:
            self.found[-1] = (DATA, self.found[-1][1] + bytes(piece))
        else:
            self.found.append((DATA, bytes(piece)))

    def control(self, kind: int, payload: bytes) -> None:
        self.found.append((kind, payload))


def read(raw: bytes, cuts: list[int]) -> list[tuple[int, bytes]]:
    reader, sink, at = FrameReader(MAX_PAYLOAD), Sink(), 0
    for cut in [*cuts, len(raw)]:
        reader.feed(memoryview(raw)[at : at + cut], sink)
        at += cut
    return sink.found


def kinds() -> st.SearchStrategy[tuple[int, bytes]]:
    return st.sampled_from(sorted(MAX_PAYLOAD)).flatmap(
        lambda kind: st.tuples(
            st.just(kind),
            st.binary(min_size=1 if kind == DATA else 0, max_size=min(MAX_PAYLOAD[kind], 300)),
        )
    )


def joined(sent: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    sink = Sink()
    for kind, payload in sent:
        if kind == DATA:
            sink.data(memoryview(payload))
        else:
            sink.control(kind, payload)
    return sink.found


@given(st.lists(kinds(), max_size=8), st.lists(st.integers(0, 40), max_size=200))
def test_chunk_boundaries_do_not_matter(sent: list[tuple[int, bytes]], cuts: list[int]) -> None:
    raw = b"".join(encode(kind, payload) for kind, payload in sent)
    assert read(raw, cuts) == joined(sent)
    assert read(raw, [1] * len(raw)) == joined(sent)


@given(st.binary(max_size=2000), st.lists(st.integers(1, 50), max_size=60))
def test_garbage_is_refused_or_incomplete_never_a_crash(junk: bytes, cuts: list[int]) -> None:
    try:
        read(junk, cuts)
    except ProtocolViolation:
        return


@pytest.mark.attack_row(21)
@pytest.mark.parametrize("kind", sorted(set(MAX_PAYLOAD) - {DATA}))
def test_a_control_frame_longer_than_its_kind_allows_is_refused_by_its_header(kind: int) -> None:
    size = MAX_PAYLOAD[kind] + 1
    with pytest.raises(ProtocolViolation):
        read(bytes((kind,)) + size.to_bytes(3, "big"), [])


@pytest.mark.attack_row(21)
@pytest.mark.parametrize("kind", [0, 16, 255])
def test_an_unknown_kind_is_refused(kind: int) -> None:
    with pytest.raises(ProtocolViolation, match=f"kind {kind}"):
        read(bytes((kind, 0, 0, 0)), [])


@pytest.mark.parametrize("kind", [RENEW, CHALLENGE, PROOF, RENEWED])
def test_a_reader_of_the_first_protocol_knows_no_renewal(kind: int) -> None:
    with pytest.raises(ProtocolViolation, match=f"kind {kind}"):
        FrameReader(LIMITS_1).feed(memoryview(encode(kind)), Sink())


@pytest.mark.attack_row(21)
def test_a_proof_is_taken_only_while_one_is_awaited() -> None:
    reader, sink = FrameReader(LIMITS_2), Sink()
    reader.limits = LIMITS_2_PROOF
    reader.feed(memoryview(encode(PROOF, b"p" * 5000)), sink)
    assert sink.found == [(PROOF, b"p" * 5000)]
    reader.limits = LIMITS_2
    with pytest.raises(ProtocolViolation, match=f"kind {PROOF}"):
        reader.feed(memoryview(bytes((PROOF, 0, 0x10, 0))), sink)


def test_more_opens_than_one_feed_may_bring_are_refused() -> None:
    raw = memoryview(encode(OPEN, b"o") + encode(DATA, b"d"))
    reader, sink = FrameReader(), Sink()
    for _ in range(3):
        reader.feed(raw, sink, 4, 1)
    assert len(sink.found) == 6
    with pytest.raises(ProtocolViolation, match="before the answer"):
        FrameReader().feed(memoryview(bytes(raw) * 2), Sink(), 4, 1)


@given(st.lists(kinds(), max_size=12))
def test_more_frames_than_one_feed_may_bring_are_refused(sent: list[tuple[int, bytes]]) -> None:
    raw = memoryview(b"".join(encode(kind, payload) for kind, payload in sent))
    FrameReader(MAX_PAYLOAD).feed(raw, Sink(), len(sent))
    if sent:
        with pytest.raises(ProtocolViolation, match="thousand"):
            FrameReader(MAX_PAYLOAD).feed(raw, Sink(), len(sent) - 1)


def test_an_empty_data_frame_says_nothing() -> None:
    assert read(bytes((DATA, 0, 0, 0)), []) == []
