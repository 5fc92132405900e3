"""Links under chaos, each byte of which is checked: sizes, half-closes, resets, slow readers, wires cut
and certificates exchanged while they run. What a link does follows from its number and the seed alone.
"""

import asyncio
import contextlib
import random
import socket
import struct
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from sidecar.dataplane.outbound import OutboundLink
from sidecar.dataplane.splice import TunnelSplice
from sidecar.report import LinkRecord
from tests.sidecar.dataplane.conftest import Pair

Kind = Literal["whole", "half_close", "slow_client", "slow_app", "client_resets", "app_resets"]
KINDS: tuple[Kind, ...] = (
    "whole",
    "half_close",
    "slow_client",
    "slow_app",
    "client_resets",
    "app_resets",
)
AT_ONCE = 32
_LINGER_RESETS = b"\x01\x00\x00\x00\x00\x00\x00\x00"
_HEAD = struct.Struct("!Q")
_GREETING = b"+"
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


@dataclass
class Chaos:
    """One run over a pair; what is wrong gathers in `wrong`, one line each."""

    pair: Pair
    draw: random.Random
    change_certificates: Callable[[], None]
    cuts: int
    """How many wires to cut, one about every thirtieth link."""
    wrong: list[str] = field(default_factory=list)
    _of_port: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    _cut: set[bytes] = field(default_factory=set)
    """Traces of the links whose wire was cut."""
    _cuts_made: int = 0
    _got_up: dict[int, tuple[int, bool]] = field(default_factory=dict)
    _got_down: dict[int, tuple[int, bool]] = field(default_factory=dict)

    async def app(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The app behind the far sidecar."""
        try:
            plan = Plan.of(_HEAD.unpack(await reader.readexactly(_HEAD.size))[0])
            writer.write(_GREETING)
            if plan.kind == "app_resets":
                got = await _read(reader, plan.reset_after)
                _reset(writer)
            else:
                if plan.kind == "half_close":  # all of the question first
                    got = await _read(reader, slow=False)
                    await _write(writer, plan.down)
                else:
                    answering = asyncio.ensure_future(_write(writer, plan.down))
                    got = await _read(reader, slow=plan.kind == "slow_app")
                    await answering
                writer.write_eof()
            self._got_up[plan.number] = (len(got), plan.up.startswith(got))
        except (OSError, asyncio.IncompleteReadError):
            pass  # the other end has reset, or its wire was cut
        finally:
            writer.close()

    async def run(self, links: int) -> None:
        """All links, `AT_ONCE` at a time, then the accounts."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> None:
            async with gate:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    await self._client(Plan.of(number))

        numbers = [self.draw.getrandbits(63) for _ in range(links)]
        self._got_up.clear()
        self._got_down.clear()
        trouble = asyncio.ensure_future(self._trouble())
        await asyncio.gather(*map(one, numbers))
        trouble.cancel()
        async with asyncio.timeout(20):
            while self.pair.near.plane.live or self.pair.far.plane.live:
                await asyncio.sleep(0.02)
        self._account(numbers)

    async def _client(self, plan: Plan) -> None:
        sock = socket.socket()
        if plan.kind == "slow_client":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        sock.connect(self.pair.upstream)
        self._of_port[sock.getsockname()[1]].append(plan.number)
        reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
        try:
            writer.write(_HEAD.pack(plan.number))
            if plan.kind == "client_resets":
                await reader.readexactly(1)  # there is a link
                await _write(writer, plan.up[: plan.reset_after])
                return _reset(writer)
            asking = asyncio.ensure_future(_write(writer, plan.up, end=True))
            try:
                got = await _read(reader, slow=plan.kind == "slow_client")
                self._got_down[plan.number] = (len(got), (_GREETING + plan.down).startswith(got))
                await asking
            finally:
                asking.cancel()
        finally:
            writer.close()

    async def _trouble(self) -> None:
        """Cut wires under running links, exchange certificates, empty the pool."""
        near = self.pair.near.plane
        while True:
            await asyncio.sleep(self.draw.uniform(0.01, 0.04))
            what = self.draw.random()
            if what < 0.3:
                self.change_certificates()
            elif what < 0.4:
                near.pool.drop_all()
            elif self.cuts:
                running = [
                    link
                    for link in near.live
                    if isinstance(link, OutboundLink) and isinstance(link._splice, TunnelSplice)
                ]
                if running:
                    self.cuts -= 1
                    self._cuts_made += 1
                    link = self.draw.choice(running)
                    self._cut.add(link.record.trace_id)
                    tunnel: Any = link._tunnel
                    with contextlib.suppress(OSError):
                        tunnel._sock.shutdown(socket.SHUT_RDWR)

    # --- the accounts -----------------------------------------------------------------------

    def _account(self, numbers: list[int]) -> None:
        """Every byte and every record, then forget them."""
        near, far = self.pair.near.records, self.pair.far.records
        peers = {record.trace_id: record for record in far}
        if len(near) != len(numbers):
            self.wrong.append(f"{len(near)} records of {len(numbers)} links")
        for record in near:
            plan = Plan.of(self._of_port[record.source_port].pop(0))  # bodies are not kept
            self._judge(plan, record, peers.get(record.trace_id))
        near.clear()
        far.clear()
        self._of_port.clear()

    def _judge(self, plan: Plan, near: LinkRecord, far: LinkRecord | None) -> None:
        what = f"{plan.kind} {plan.number} {len(plan.up)}/{len(plan.down)}"
        up, down = self._got_up.get(plan.number), self._got_down.get(plan.number)
        if up is not None and not up[1]:
            self.wrong.append(f"{what}: the app got bytes that were not sent")
        if down is not None and not down[1]:
            self.wrong.append(f"{what}: the client got bytes that were not sent")
        close = "reset" if plan.kind in ("client_resets", "app_resets") else "fin"
        if near.reason == "peer_lost" and far is None and up is None and self._cuts_made:
            # The link under which the wire was cut had just ended, and this one took its tunnel.
            self._cuts_made -= 1
            return
        allowed = {close, "lost"} if near.trace_id in self._cut else {close}
        if near.close not in allowed or far is None or far.close not in allowed:
            ends = (near.close, near.error, far and (far.close, far.error))
            self.wrong.append(f"{what}: closed {ends}")
            return
        if near.verdict != "allowed" or far.verdict != "allowed":
            self.wrong.append(f"{what}: {near.verdict}, {far.verdict}")
        if near.close != "fin" or far.close != "fin":
            return
        sent = (_HEAD.size + len(plan.up), len(_GREETING) + len(plan.down))
        if up != (sent[0] - _HEAD.size, True) or down != (sent[1], True):
            self.wrong.append(f"{what}: came {up}, {down}")
        for record in (near, far):
            if (record.bytes_sent, record.bytes_received) != sent:
                told = (record.bytes_sent, record.bytes_received)
                self.wrong.append(f"{what}: {record.direction} counted {told}")


async def _read(
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


async def _write(writer: asyncio.StreamWriter, body: bytes, *, end: bool = False) -> None:
    """In pieces of uneven size; `end` says that no more comes."""
    with contextlib.suppress(OSError):
        at, piece = 0, 1
        while at < len(body):
            writer.write(body[at : at + piece])
            at, piece = at + piece, piece * 3 + 7
            await writer.drain()
        if end:
            writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESETS)
    writer.transport.abort()
