"""Links under chaos, each byte of which is checked: sizes, half-closes, resets, slow readers, wires cut
and certificates exchanged while they run. What a link does follows from its number and the seed alone.
"""

import asyncio
import contextlib
import random
import socket
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from sidecar.dataplane.links.outbound import OutboundLink
from sidecar.dataplane.links.splice import TunnelSplice
from sidecar.report import LinkRecord
from tests.certs.forge import Forge
from tests.patience import PATIENCE_S
from tests.plans import GREETING, HEAD, Plan, read, reset, write
from tests.sidecar.dataplane.conftest import API, WEB, Pair, trust_from

AT_ONCE = 32


class Rotation:
    """New leaves for both sides at each call, as renewals bring them; and a root after the other: every
    other call takes the next step of a rotation, as the CA's state machine has them."""

    def __init__(self, pair: Pair, forge: Forge) -> None:
        self._pair, self._signer, self._bundle = pair, forge, forge.root_pem
        self._next: Forge | None = None
        self._calls = 0
        self.roots = 0
        """How many roots have gone."""

    def __call__(self) -> None:
        self._calls += 1
        gone = self._calls % 2 == 0 and self._step()
        for side, identity in ((self._pair.near, WEB), (self._pair.far, API)):
            side.plane.trust = trust_from(self._signer, identity, "127.0.0.1", self._bundle)
        if gone:  # as `Carrier.svid_came` does
            self._pair.near.plane.pool.drop_all()
            self._pair.arrivals.go_away()

    def _step(self) -> bool:
        """Both roots are believed, then the new one signs, then the old one is believed no more."""
        if self._next is None:
            self._next = Forge(name=f"root {self.roots + 2}")
            self._bundle = self._signer.root_pem + self._next.root_pem
        elif self._signer is not self._next:
            self._signer = self._next
        elif not any(peer["dials"] for peer in self._pair.near.plane.pool.peers().values()):
            # Else a handshake shows the old leaf: the CA waits for the end of the last one.
            self._bundle, self._next = self._signer.root_pem, None
            self.roots += 1
            return True
        return False


@dataclass
class Chaos:
    """One run over a pair; what is wrong gathers in `wrong`, one line each."""

    pair: Pair
    draw: random.Random
    change_certificates: Rotation
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
            plan = Plan.of(HEAD.unpack(await reader.readexactly(HEAD.size))[0])
            writer.write(GREETING)
            if plan.kind == "app_resets":
                got = await read(reader, plan.reset_after)
                reset(writer)
            else:
                if plan.kind == "half_close":  # all of the question first
                    got = await read(reader, slow=False)
                    await write(writer, plan.down)
                else:
                    answering = asyncio.ensure_future(write(writer, plan.down))
                    got = await read(reader, slow=plan.kind == "slow_app")
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
        async with asyncio.timeout(PATIENCE_S):
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
            writer.write(HEAD.pack(plan.number))
            if plan.kind == "client_resets":
                await reader.readexactly(1)  # there is a link
                await write(writer, plan.up[: plan.reset_after])
                return reset(writer)
            asking = asyncio.ensure_future(write(writer, plan.up, end=True))
            try:
                got = await read(reader, slow=plan.kind == "slow_client")
                self._got_down[plan.number] = (len(got), (GREETING + plan.down).startswith(got))
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
        sent = (HEAD.size + len(plan.up), len(GREETING) + len(plan.down))
        if up != (sent[0] - HEAD.size, True) or down != (sent[1], True):
            self.wrong.append(f"{what}: came {up}, {down}")
        for record in (near, far):
            if (record.bytes_sent, record.bytes_received) != sent:
                told = (record.bytes_sent, record.bytes_received)
                self.wrong.append(f"{what}: {record.direction} counted {told}")
