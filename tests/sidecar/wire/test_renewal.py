"""The frames of a renewal: what is in them, and that each may come in one state only."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import ProtocolViolation
from sidecar.wire.frames import CHALLENGE, MAX_PROOF, PROOF, RENEW, RENEWED
from sidecar.wire.renewal import (
    MAX_CERTIFICATES,
    RECEIVABLE,
    Judging,
    Proving,
    check_nonce,
    check_order,
    decode_continue,
    decode_outcome,
    decode_proof,
    encode_continue,
    encode_outcome,
    encode_proof,
    fits,
)

FIELDS = st.binary(min_size=1, max_size=400)


@given(FIELDS, st.lists(FIELDS, min_size=1, max_size=MAX_CERTIFICATES))
def test_a_proof_is_read_as_it_was_written(signature: bytes, chain: list[bytes]) -> None:
    assert decode_proof(encode_proof(signature, chain)) == (signature, tuple(chain))


@given(st.binary(max_size=600))
def test_whatever_is_read_as_a_proof_was_written_just_so(junk: bytes) -> None:
    try:
        signature, chain = decode_proof(junk)
    except ProtocolViolation:
        return
    assert encode_proof(signature, chain) == junk


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0",
        b"\0\0",
        b"\0\1s",
        b"\0\1s\0",
        b"\0\1s\0\2c",
        b"\0\1s\0\0",
        b"\0\0\0\1c",
        b"\0\1s" + b"\0\1c" * (MAX_CERTIFICATES + 1),
    ],
)
def test_a_malformed_proof_is_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        decode_proof(payload)


def test_a_chain_that_would_not_fit_is_known_beforehand() -> None:
    assert fits([b"c" * 700, *[b"i" * 1300] * 3])
    assert fits([b"c" * (MAX_PROOF - 2 - 72 - 2)])
    assert not fits([b"c" * (MAX_PROOF - 2 - 72 - 1)])


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_nonce_of_another_size_is_refused(size: int) -> None:
    assert check_nonce(b"n" * 32) == b"n" * 32
    with pytest.raises(ProtocolViolation):
        check_nonce(b"n" * size)


@given(st.integers(0, 65535), st.binary(min_size=32, max_size=32))
def test_what_is_to_be_continued_is_read_as_it_was_written(port: int, channel: bytes) -> None:
    payload = encode_continue(port, channel)
    assert decode_continue(payload) == (port, channel)
    for wrong in (payload[:-1], payload + b"x", b""):
        with pytest.raises(ProtocolViolation):
            decode_continue(wrong)


@given(st.integers(0, 255))
def test_an_outcome_is_one_byte_of_any_value(code: int) -> None:
    assert decode_outcome(encode_outcome(code)) == code
    for wrong in (b"", bytes((code, code))):
        with pytest.raises(ProtocolViolation):
            decode_outcome(wrong)


@pytest.mark.parametrize("kind", [RENEW, CHALLENGE, PROOF, RENEWED])
@pytest.mark.parametrize(("proving", "judging"), list(itertools.product(Proving, Judging)))
def test_a_frame_that_nobody_asked_for_is_refused(
    kind: int, proving: Proving, judging: Judging
) -> None:
    lawful = {
        RENEW: judging is Judging.RESTING,
        PROOF: judging is Judging.CHALLENGED,
        CHALLENGE: proving is Proving.ASKED,
        RENEWED: proving is not Proving.RESTING,
    }
    assert set(lawful) == set(RECEIVABLE)
    if lawful[kind]:
        return check_order(kind, proving, judging)
    with pytest.raises(ProtocolViolation, match="nobody asked for"):
        check_order(kind, proving, judging)
    return None
