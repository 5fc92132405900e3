"""Watches every packet in the node's network namespace for given words.

    python -m cli.demo.sniff PATH WORD...

makes PATH.started once it listens, ends when there is a PATH.stop (or after a minute), and prints
{"packets": N, "bytes": N, "seen": {"word": N}}.

Each word is looked for in each packet and, for words cut in two, in the joined payload of each
direction of each connection, as far as segments come in order.
"""

import json
import select
import socket
import struct
import sys
from collections import defaultdict
from pathlib import Path

from kit.clock import monotonic

_ETH_P_ALL = 3
_LONGEST_S, _POLL_S = 60.0, 0.1
_ETHERNET, _IPV4, _IPV6, _TCP = 14, 0x0800, 0x86DD, 6


def tcp_payload(frame: bytes) -> tuple[object, bytes] | None:
    """(direction, payload) of a TCP segment in an Ethernet frame, else None."""
    if len(frame) < _ETHERNET + 20:
        return None
    kind = struct.unpack_from("!H", frame, 12)[0]
    packet = frame[_ETHERNET:]
    if kind == _IPV4 and packet[9] == _TCP:
        size, total = (packet[0] & 15) * 4, struct.unpack_from("!H", packet, 2)[0]
        ends, segment = packet[12:20], packet[size:total]
    elif kind == _IPV6 and packet[6] == _TCP:
        ends, segment = packet[8:40], packet[40:]
    else:
        return None
    if len(segment) < 20:
        return None
    return (ends, segment[:4]), segment[(segment[12] >> 4) * 4 :]


def main(path: str, words: list[bytes]) -> None:
    stop, deadline = Path(f"{path}.stop"), monotonic() + _LONGEST_S
    longest = max(map(len, words))
    tails: dict[object, bytes] = defaultdict(bytes)
    seen = dict.fromkeys(words, 0)
    packets = size = 0
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 20)
        Path(f"{path}.started").touch()
        while monotonic() < deadline:
            readable, _, _ = select.select([sock], [], [], _POLL_S)
            if not readable:
                if stop.exists():
                    break
                continue
            frame = sock.recv(65536)
            packets += 1
            size += len(frame)
            found = tcp_payload(frame)
            if found is None:
                continue
            direction, payload = found
            stream = tails[direction] + payload
            for word in words:
                seen[word] += word in stream
            tails[direction] = stream[-longest + 1 :]
    report = {word.decode(): number for word, number in seen.items()}
    print(json.dumps({"packets": packets, "bytes": size, "seen": report}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], [word.encode() for word in sys.argv[2:]])
