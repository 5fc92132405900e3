"""Keeps 32 tunnels to a far proxy and floods each with one kind of frame, as fast as one process can.

A process of its own: the first line of standard input is JSON (where, how, how long, a leaf's file). A
tunnel that is ended is made again. Prints how many tunnels it had and how many bytes it could send.
"""

import json
import ssl
import sys
import tempfile
import time
from pathlib import Path

from sidecar.wire.frames import GOAWAY_FRAME, OPEN, PING_FRAME, encode
from sidecar.wire.opening import Opening
from tests.sidecar.dataplane.hostile import HostilePeer

TUNNELS = 32
REFUSED = encode(OPEN, Opening(9, b"t" * 16, b"s" * 8).encode())
PLAIN = {
    "PING": PING_FRAME * 4096,
    "GOAWAY": GOAWAY_FRAME * 4096,
    "OPEN": REFUSED * 300,
    "a PING each": PING_FRAME,
}


def main() -> None:
    told = json.loads(sys.stdin.readline())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["podlink/2"])
    context.load_cert_chain(told["pair"])
    made = sent = 0
    ends = time.monotonic() + told["seconds"]
    with tempfile.TemporaryDirectory() as folder:
        peers: list[tuple[HostilePeer, bytes]] = []
        while time.monotonic() < ends:
            if len(peers) < TUNNELS:
                try:
                    peer = HostilePeer(("127.0.0.1", told["port"]), context, Path(folder))
                except OSError:
                    time.sleep(0.01)
                else:
                    made += 1
                    peer.sock.setblocking(False)
                    peers.append((peer, batch(peer, told["kind"])))
            for item in list(peers):
                peer, waiting = item
                peers.remove(item)
                try:
                    took = peer.sock.send(waiting)
                except BlockingIOError:
                    took = 0
                except OSError:
                    peer.sock.close()
                    continue
                sent += took
                peers.append((peer, waiting[took:] or batch(peer, told["kind"])))
        for peer, _ in peers:
            peer.sock.close()
    print(json.dumps({"tunnels": made, "bytes": sent}))


def batch(peer: HostilePeer, kind: str) -> bytes:
    """Records of this kind, about 64 KiB of them."""
    if kind == "KeyUpdate":
        return b"".join(peer.key_update() for _ in range(300))
    count = 200 if kind == "a PING each" else 4
    return b"".join(peer.record(PLAIN[kind]) for _ in range(count))


if __name__ == "__main__":
    main()
