"""A CSR gives its public key and nothing else, once it proves possession."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from certs.server.csr import MAX_CSR_BYTES, read_csr
from certs.server.refusals import RequestRefused
from tests.certs.requests import bad_requests, csr, greedy_csr

REASONS = {
    "empty": "csr_malformed",
    "garbage": "csr_malformed",
    "cut": "csr_malformed",
    "trailing byte": "csr_malformed",
    "spoilt signature": "csr_signature",
    "somebody else's public key": "csr_signature",
    "RSA-1024": "csr_key",
    "RSA-2048": "csr_key",
    "P-192": "csr_malformed",
    "P-384": "csr_key",
    "secp256k1": "csr_key",
    "Ed25519": "csr_key",
    "Ed448": "csr_key",
    "5 KiB": "csr_too_long",
    "point off the curve": "csr_malformed",
}


def test_an_honest_and_a_greedy_request_give_the_same_key() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    numbers = key.public_key().public_numbers()
    assert read_csr(csr(key)).public_numbers() == numbers
    assert read_csr(greedy_csr(key)).public_numbers() == numbers


@pytest.mark.attack_row(27)
def test_every_bad_request_is_refused_for_its_own_reason() -> None:
    found = {}
    for name, request in bad_requests().items():
        with pytest.raises(RequestRefused) as refused:
            read_csr(request)
        found[name] = refused.value.reason
    assert found == REASONS


@given(st.binary(max_size=400))
def test_garbage_is_refused_and_never_crashes(junk: bytes) -> None:
    with pytest.raises(RequestRefused):
        read_csr(junk)


@given(at=st.integers(0, 1000), byte=st.integers(1, 255))
def test_a_flipped_byte_never_gets_another_key_signed(at: int, byte: int) -> None:
    der = bytearray(_HONEST)
    der[at % len(der)] ^= byte
    try:
        key = read_csr(bytes(der))
    except RequestRefused:
        return
    assert key.public_numbers() == _KEY.public_key().public_numbers()


@pytest.mark.attack_row(31)
def test_size_is_looked_at_before_anything_is_parsed() -> None:
    with pytest.raises(RequestRefused, match="csr_too_long"):
        read_csr(b"\x30" * (MAX_CSR_BYTES + 1))


_KEY = ec.generate_private_key(ec.SECP256R1())
_HONEST = csr(_KEY)
