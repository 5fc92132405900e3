"""What OpenSSL can do for a lean TLS connection and Python's `ssl` does not offer.

Everything here is a saving, never a defence: where it cannot be had (another interpreter, another
OpenSSL, a static build) nothing is done and TLS works the same, at more bytes and memory.

OpenSSL is called by ctypes, in the very libssl that `_ssl` is linked to. Where an `SSLObject` keeps its
`SSL *` is CPython's own business (Modules/_ssl.c: `Socket`, `ssl`, `ctx`, since 3.4), so the place is
proven before each use: the word behind the pointer must be the address of the object's own context.
Nothing is followed that was not proven so.
"""

import _ssl
import ctypes
import functools
import ssl
import sys
from typing import TYPE_CHECKING, Any, Final

_HEAD: Final = object.__basicsize__
_WORD: Final = ctypes.sizeof(ctypes.c_void_p)
_CTRL_MODE: Final = 33
_NO_AUTO_CHAIN: Final = 0x8
_CLEAR_MODE: Final = 78
_AUTO_RETRY: Final = 0x4
_SET_BUF_MEM: Final = 114
_BIO_CLOSE: Final = 1
_ED25519: Final = 1087
_SMALL_KEY: Final = bytes(31) + b"\x01"
_PROVEN: Final = ((3, 11), (3, 12), (3, 13), (3, 14))
"""The versions of CPython whose `_ssl` was read for this."""

_SSLSocket: Final = getattr(_ssl, "_SSLSocket", None)
_Pointer = ctypes.c_void_p
_SIGNATURES: Final[dict[str, tuple[object, tuple[object, ...]]]] = {
    "SSL_get_SSL_CTX": (_Pointer, (_Pointer,)),
    "SSL_CTX_ctrl": (ctypes.c_long, (_Pointer, ctypes.c_int, ctypes.c_long, _Pointer)),
    "SSL_ctrl": (ctypes.c_long, (_Pointer, ctypes.c_int, ctypes.c_long, _Pointer)),
    "SSL_get_rbio": (_Pointer, (_Pointer,)),
    "SSL_get_wbio": (_Pointer, (_Pointer,)),
    "SSL_get1_peer_certificate": (_Pointer, (_Pointer,)),
    "BIO_ctrl": (ctypes.c_long, (_Pointer, ctypes.c_int, ctypes.c_long, _Pointer)),
    "BIO_ctrl_pending": (ctypes.c_size_t, (_Pointer,)),
    "BUF_MEM_new": (_Pointer, ()),
    "X509_set_pubkey": (ctypes.c_int, (_Pointer, _Pointer)),
    "X509_delete_ext": (_Pointer, (_Pointer, ctypes.c_int)),
    "X509_EXTENSION_free": (None, (_Pointer,)),
    "X509_free": (None, (_Pointer,)),
    "EVP_PKEY_new_raw_public_key": (
        _Pointer,
        (ctypes.c_int, _Pointer, ctypes.c_char_p, ctypes.c_size_t),
    ),
}


class _OpenSSL:
    """The functions above, bound, and a key that takes no room."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, library: ctypes.CDLL) -> None:
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)  # AttributeError: an OpenSSL before 3
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        self.small_key = self.EVP_PKEY_new_raw_public_key(
            _ED25519, None, _SMALL_KEY, len(_SMALL_KEY)
        )
        if not self.small_key:
            raise AttributeError("no Ed25519 in this OpenSSL")


@functools.cache
def _openssl() -> _OpenSSL | None:
    """None where the layout was not read, or the library cannot be reached."""
    if sys.implementation.name != "cpython" or sys.version_info[:2] not in _PROVEN:
        return None
    if not (3, 0) <= ssl.OPENSSL_VERSION_INFO[:2] < (4, 0) or "LibreSSL" in ssl.OPENSSL_VERSION:
        return None
    try:
        return _OpenSSL(ctypes.CDLL(_ssl.__file__))
    except (AttributeError, OSError):
        return None


def _handle(inner: Any) -> int | None:
    """The `SSL *` of a connection; None unless its place is proven."""
    if type(inner) is not _SSLSocket or type(inner).__basicsize__ < _HEAD + 3 * _WORD:
        return None
    words = (_Pointer * 3).from_address(id(inner) + _HEAD)
    return words[1] if words[2] == id(inner.context) else None


def send_own_chain_only(context: ssl.SSLContext) -> bool:
    """Send the chain that was loaded, and nothing looked up; returns whether that could be set.

    For a leaf without intermediates OpenSSL otherwise builds and verifies a chain to the root in each
    handshake and sends the root along (SSL_MODE_NO_AUTO_CHAIN, SSL_CTX_set_mode(3)), which no peer
    believes and each peer keeps parsed for as long as the connection lives.
    """
    openssl = _openssl()
    if openssl is None:
        return False
    accepts = context.protocol is ssl.PROTOCOL_TLS_SERVER
    unused = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=accepts)
    if (handle := _handle(getattr(unused, "_sslobj", None))) is None:
        return False
    pointer = openssl.SSL_get_SSL_CTX(handle)
    return bool(openssl.SSL_CTX_ctrl(pointer, _CTRL_MODE, _NO_AUTO_CHAIN, None) & _NO_AUTO_CHAIN)


def forget_handshake(inner: object) -> bool:
    """Give back memory that only the handshake needed; returns whether anything could be.

    Call it once the handshake is over and the peer's certificate has been judged, with the inner
    object of an `SSLObject` (`_sslobj`). Nothing asks for that certificate again (TLS 1.3 without
    post-handshake authentication), so its parsed key and extensions go: `getpeercert` tells of it
    no more. The BIOs start anew instead of at the size of the handshake's longest flight; what
    waits in one stays.
    """
    openssl = _openssl()
    if openssl is None or (handle := _handle(inner)) is None:
        return False
    for bio in (openssl.SSL_get_rbio(handle), openssl.SSL_get_wbio(handle)):
        if bio and not openssl.BIO_ctrl_pending(bio):
            openssl.BIO_ctrl(bio, _SET_BUF_MEM, _BIO_CLOSE, openssl.BUF_MEM_new())
    certificate = openssl.SSL_get1_peer_certificate(handle)
    if certificate:
        openssl.X509_set_pubkey(certificate, openssl.small_key)
        while extension := openssl.X509_delete_ext(certificate, 0):
            openssl.X509_EXTENSION_free(extension)
        openssl.X509_free(certificate)
    return True


def stop_after_each_message(inner: object) -> bool:
    """Let `read` raise SSLWantReadError after each message of TLS itself, such as a KeyUpdate, though
    more has come; returns whether that could be set.

    By default one call reads on until there is something for the app: thousands of KeyUpdates, some 10
    to 40 us each, before the caller has a say (SSL_MODE_AUTO_RETRY, SSL_CTX_set_mode(3)).
    """
    openssl = _openssl()
    if openssl is None or (handle := _handle(inner)) is None:
        return False
    return not openssl.SSL_ctrl(handle, _CLEAR_MODE, _AUTO_RETRY, None) & _AUTO_RETRY
