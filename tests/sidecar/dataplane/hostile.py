"""A peer with a lawful leaf and its own TLS 1.3 record layer: it may send what OpenSSL never would.

OpenSSL does the handshake and logs its secrets; records are then made by hand (RFC 8446, sections
4.6.3, 5.2 and 7.1 to 7.3).
"""

import socket
import ssl
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from tests.patience import PATIENCE_S

APPLICATION_DATA, HANDSHAKE = 23, 22
KEY_UPDATE_REQUESTED = bytes((24, 0, 0, 1, 1))


class HostilePeer:
    """A dialler whose handshake is done. Blocking; `context` must offer a lawful leaf."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext, tmp_path: Path) -> None:
        log = tmp_path / f"secrets-{id(self)}"
        context.keylog_filename = str(log)
        self.sock = socket.create_connection(address, timeout=PATIENCE_S)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.sock.sendall(outgoing.read())
                incoming.write(self.sock.recv(65536))
        self.sock.sendall(outgoing.read())
        assert (tls.cipher() or ("",))[0] == "TLS_AES_256_GCM_SHA384"
        lines = {
            line.split()[0]: line.split()[2]
            for line in log.read_text().splitlines()
            if not line.startswith("#")
        }
        self._use(bytes.fromhex(lines["CLIENT_TRAFFIC_SECRET_0"]))

    def record(self, content: bytes, kind: int = APPLICATION_DATA) -> bytes:
        """One encrypted record, in the order in which it must be sent."""
        inner = content + bytes((kind,))
        head = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
        nonce = (int.from_bytes(self._iv, "big") ^ self._number).to_bytes(12, "big")
        self._number += 1
        return head + self._key.encrypt(nonce, inner, head)

    def key_update(self) -> bytes:
        """A record that asks the other side for a KeyUpdate of its own."""
        out = self.record(KEY_UPDATE_REQUESTED, HANDSHAKE)
        self._use(_expand(self._secret, b"traffic upd", 48))
        return out

    def _use(self, secret: bytes) -> None:
        self._secret, self._number = secret, 0
        self._key = AESGCM(_expand(secret, b"key", 32))
        self._iv = _expand(secret, b"iv", 12)


def _expand(secret: bytes, label: bytes, size: int) -> bytes:
    label = b"tls13 " + label
    info = size.to_bytes(2, "big") + bytes((len(label),)) + label + b"\0"
    return HKDFExpand(hashes.SHA384(), size, info).derive(secret)
