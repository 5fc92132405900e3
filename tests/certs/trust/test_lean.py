"""What is saved of OpenSSL's memory costs nothing of what TLS does."""

import _ssl
import ctypes
import ssl
from collections.abc import Callable

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


def _another_interpreter(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lean, "_PROVEN", ())


def _another_openssl(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ssl, "OPENSSL_VERSION_INFO", (1, 1, 1, 0, 15))


def _no_such_function(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(lean._SIGNATURES, "SSL_no_such_function", (None, ()))


def _no_ed25519(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lean, "_ED25519", 0)  # the number of no kind of key


@pytest.mark.parametrize(
    "where", [_another_interpreter, _another_openssl, _no_such_function, _no_ed25519]
)
def test_where_openssl_is_out_of_reach_nothing_is_saved_and_tls_works(
    forge: Forge,
    good_leaf: Pair,
    monkeypatch: pytest.MonkeyPatch,
    where: Callable[[pytest.MonkeyPatch], None],
) -> None:
    lean._openssl.cache_clear()
    try:
        where(monkeypatch)
        assert not lean.send_own_chain_only(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        ours = material(forge, good_leaf)
        ends = _Ends(ours.client_context(), ours.server_context())
        for end in (ends.near, ends.far):
            assert not lean.forget_handshake(_inner(end))
            assert not lean.stop_after_each_message(_inner(end))
        ends.carry(bytes(3000))
    finally:
        lean._openssl.cache_clear()


def test_a_context_whose_connections_have_no_proven_place_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lean, "_HEAD", lean._HEAD + lean._WORD)
    assert not lean.send_own_chain_only(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))


def test_reading_stops_after_each_message(ends: _Ends) -> None:
    change = ctypes.CDLL(_ssl.__file__).SSL_key_update
    change.argtypes = (ctypes.c_void_p, ctypes.c_int)
    with pytest.raises(ssl.SSLWantReadError):
        ends.far.read(1)  # nothing has come
    assert lean.stop_after_each_message(_inner(ends.far))
    assert change(lean._handle(_inner(ends.near)), 0) == 1
    ends.near.write(b"behind the key update")
    with pytest.raises(ssl.SSLWantReadError):
        ends.far.read(100)
    assert ends.far.read(100) == b"behind the key update"
