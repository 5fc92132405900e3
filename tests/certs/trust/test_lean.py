"""What is saved of OpenSSL's memory costs nothing of what TLS does."""

import _ssl
import ctypes
import ssl

import pytest

from certs.trust import lean
from tests.certs.forge import Forge, Pair
from tests.certs.handshakes import material


class _Ends:
    """Two ends in memory, after their handshake."""

    def __init__(self, near: ssl.SSLContext, far: ssl.SSLContext) -> None:
        self.to_near, self.to_far = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.near = near.wrap_bio(self.to_near, self.to_far)
        self.far = far.wrap_bio(self.to_far, self.to_near, server_side=True)
        for _ in range(2):
            for end in (self.near, self.far):
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue

    def carry(self, body: bytes) -> None:
        for source, target in ((self.near, self.far), (self.far, self.near)):
            source.write(body)
            got = b""
            while len(got) < len(body):
                got += target.read(65536)
            assert got == body


@pytest.fixture
def ends(forge: Forge, good_leaf: Pair) -> _Ends:
    ours = material(forge, good_leaf)
    return _Ends(ours.client_context(), ours.server_context())


def _inner(tls: ssl.SSLObject) -> object:
    return tls._sslobj  # type: ignore[attr-defined]


def test_a_leaf_without_intermediates_travels_alone(ends: _Ends, good_leaf: Pair) -> None:
    chain = _inner(ends.near).get_unverified_chain()  # type: ignore[attr-defined]
    assert len(chain) == 1, "the root went along, which nobody believes"
    assert ends.near.getpeercert(binary_form=True) == good_leaf.der


def test_a_connection_works_on_after_its_handshake_is_forgotten(ends: _Ends) -> None:
    ends.carry(bytes(3000))
    for end in (ends.near, ends.far):
        assert lean.forget_handshake(_inner(end)), "not with this interpreter"
        assert lean.forget_handshake(_inner(end)), "twice does no harm"
    ends.carry(bytes(70_000))


def test_the_peer_may_change_its_keys_after_the_handshake_is_forgotten(ends: _Ends) -> None:
    for end in (ends.near, ends.far):
        assert lean.forget_handshake(_inner(end))
    change = ctypes.CDLL(_ssl.__file__).SSL_key_update
    change.argtypes = (ctypes.c_void_p, ctypes.c_int)
    for end in (ends.near, ends.far):
        assert change(lean._handle(_inner(end)), 1) == 1  # and asks for the other side's too
        ends.carry(b"x" * 20_000)


def test_what_waits_in_a_bio_is_kept(ends: _Ends) -> None:
    ends.near.write(b"early")
    for end in (ends.near, ends.far):
        assert lean.forget_handshake(_inner(end))
    assert ends.far.read(100) == b"early"


def test_a_place_that_is_not_proven_is_not_touched(
    ends: _Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not lean.forget_handshake(object())
    assert not lean.forget_handshake(ends.near)
    monkeypatch.setattr(lean, "_HEAD", lean._HEAD + lean._WORD)  # as if the object had changed
    assert not lean.forget_handshake(_inner(ends.near))
    ends.carry(b"x" * 100)
