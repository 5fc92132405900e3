"""What one link of a chaos run does: both ends make it anew from its number, so that each knows every
byte of the other beforehand.
"""

import asyncio
import contextlib
import random
import socket
import struct
from dataclasses import dataclass
from typing import Literal

Kind = Literal["whole", "half_close", "slow_client", "slow_app", "client_resets", "app_resets"]
KINDS: tuple[Kind, ...] = (
    "whole",
    "half_close",
    "slow_client",
    "slow_app",
    "client_resets",
    "app_resets",
)
_LINGER_RESETS = b"\x01\x00\x00\x00\x00\x00\x00\x00"
HEAD = struct.Struct("!Q")
GREETING = b"+"
_MORE_THAN_THE_KERNEL_TAKES = 6_000_000


@dataclass
class Plan:
    """What one link does. Both ends make it anew from the number that the client sends first."""

    number: int
    kind: Kind
    up: bytes
    down: bytes
    reset_after: int
    """Bytes that whoever resets has sent or read before."""

    @classmethod
    def of(cls, number: int) -> "Plan":
        draw = random.Random(number)
        kind = draw.choice(KINDS)
        sizes = {"up": _size(draw), "down": _size(draw)}
        slow = {"slow_client": "down", "slow_app": "up"}.get(kind)
        if slow is not None and draw.random() < 0.3:  # more than the kernel takes for a slow reader
            sizes[slow] += _MORE_THAN_THE_KERNEL_TAKES
        up = draw.randbytes(sizes["up"])
        return cls(number, kind, up, draw.randbytes(sizes["down"]), draw.randrange(len(up) + 1))


def _size(draw: random.Random) -> int:
    """From nothing to some hundred KiB, with the edges of records and buffers among them."""
    edge = draw.choice((0, 1, 16380, 16384, 32764, 65532, 65536, 262140, 262144))
    return edge if draw.random() < 0.3 else int(2 ** draw.uniform(0, 18))


async def read(
    reader: asyncio.StreamReader, most: int | None = None, *, slow: bool = False
) -> bytes:
    got = bytearray()
    while most is None or len(got) < most:
        piece = await reader.read(65536 if most is None else min(65536, most - len(got)))
        if not piece:
            break
        got += piece
        if slow and len(got) < 100_000:
            await asyncio.sleep(0.002)
    return bytes(got)


async def write(writer: asyncio.StreamWriter, body: bytes, *, end: bool = False) -> None:
    """In pieces of uneven size; `end` says that no more comes."""
    with contextlib.suppress(OSError):
        at, piece = 0, 1
        while at < len(body):
            writer.write(body[at : at + piece])
            at, piece = at + piece, piece * 3 + 7
            await writer.drain()
        if end:
            writer.write_eof()


def reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESETS)
    writer.transport.abort()
