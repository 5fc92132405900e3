"""A ban cuts what is open and refuses what is new, on both sides, and touches nobody else."""

import asyncio
from typing import Any

import pytest

from certs.trust.bans import Ban, Bans, Guard
from certs.trust.svid import SvidChecker
from sidecar.dataplane.links.arrival import Arrivals
from sidecar.dataplane.revocation import cut_banned
from tests.patience import PATIENCE_S
from tests.sidecar.dataplane.conftest import API, WEB, Pair, Side, StartPair

pytestmark = pytest.mark.attack_row(45)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(4096):
            writer.write(data)
    except ConnectionError:
        pass
    writer.close()


def guard(side: Side) -> Guard:
    side.plane.verify = guard = Guard(SvidChecker("cluster.local"))
    return guard


async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, word: bytes) -> bytes:
    writer.write(word)
    async with asyncio.timeout(PATIENCE_S):
        return await reader.read(100)


async def is_cut(reader: asyncio.StreamReader) -> bool:
    async with asyncio.timeout(PATIENCE_S):
        try:
            return await reader.read(1) == b""
        except ConnectionError:
            return True


async def test_the_acceptor_cuts_a_banned_dialler_and_lets_it_in_no_more(
    start_pair: StartPair, serve: Any
) -> None:
    pair = start_pair(await serve(echo))
    bans = guard(pair.far)
    reader, writer = await pair.client()
    assert await say(reader, writer, b"open") == b"open"

    other = Bans.of([Ban("identity", str(API))])
    bans.bans = other
    assert cut_banned(pair.far.plane, pair.arrivals.tunnels, other) == 0, "somebody else is banned"
    assert await say(reader, writer, b"still") == b"still"

    bans.bans = Bans.of([Ban("identity", str(WEB))])
    assert cut_banned(pair.far.plane, pair.arrivals.tunnels, bans.bans) == 1
    assert await is_cut(reader)
    writer.close()
    assert (await pair.far.record()).close == "banned"
    assert (await pair.near.record()).close == "banned"
    assert not pair.arrivals.tunnels

    reader, writer = await pair.client()
    assert await is_cut(reader)
    writer.close()
    refused = await pair.far.record(2)
    assert (refused.verdict, refused.reason) == ("denied", "banned")
    assert refused.source_identity == str(WEB), "whoever asks for it finds what it tried"
    assert refused.peer_serial and refused.security == "none"

    bans.bans = Bans()
    await let_in(pair)


async def let_in(pair: Pair) -> None:
    reader, writer = await pair.client()
    assert await say(reader, writer, b"again") == b"again"
    writer.close()


async def test_the_dialler_cuts_a_banned_acceptor_and_its_idle_tunnels(
    start_pair: StartPair, serve: Any
) -> None:
    pair = start_pair(await serve(echo))
    bans = guard(pair.near)
    reader, writer = await pair.client()
    second = await pair.client()
    assert await say(*second, b"two") == b"two"
    assert await say(reader, writer, b"open") == b"open"
    second[1].close()
    await pair.near.record()
    async with asyncio.timeout(PATIENCE_S):
        while not len(pair.near.plane.pool):
            await asyncio.sleep(0.01)

    bans.bans = Bans.of([Ban("identity", str(API))])
    nobody = Arrivals(pair.near.plane)
    assert cut_banned(pair.near.plane, nobody.tunnels, bans.bans) == 1
    assert len(pair.near.plane.pool) == 0
    assert await is_cut(reader)
    writer.close()
    reader, writer = await pair.client()
    assert await is_cut(reader)
    writer.close()
    assert (await pair.near.record(3)).reason == "banned"
