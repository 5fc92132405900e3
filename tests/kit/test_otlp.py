"""The control plane's span sender, against real OTLP receivers that misbehave."""

import asyncio

import grpc
import pytest

from kit.backoff import Backoff
from kit.otlp import SpanSender
from kit.tasks import spawn, stop
from tests.patience import PATIENCE_S
from tests.sidecar.telemetry.collectors import black_hole, collecting

NOW_NS = 1_800_000_000 * 10**9


async def test_spans_arrive_with_their_attributes_and_hostile_text_bounded() -> None:
    async with (
        collecting() as (collector, endpoint),
        grpc.aio.insecure_channel(endpoint) as channel,
    ):
        sender = SpanSender("podlink-ca", lambda: channel)
        running = spawn(sender.run(), name="sender")
        sender.emit("certificate issued", {"a": "x\udcff" * 2000, "b": True, "c": 7}, NOW_NS)
        sender.emit("certificate refused", {"d": "", "e": None}, NOW_NS)
        async with asyncio.timeout(PATIENCE_S):
            while sender.sent < 2:
                await asyncio.sleep(0.01)
        await stop(running)
        await sender.close()
    one, two = collector.spans
    assert [len(a.key) for a in one.attributes] == [1, 1, 1]
    assert len(one.attributes[0].value.string_value) == 1024
    assert one.attributes[1].value.bool_value is True
    assert one.attributes[2].value.int_value == 7
    assert (two.name, len(two.attributes)) == ("certificate refused", 0)


@pytest.mark.fault_row("collector-down")
async def test_into_a_black_hole_the_oldest_go_are_counted_and_closing_ends() -> None:
    with black_hole() as endpoint:
        async with grpc.aio.insecure_channel(endpoint) as channel:
            sender = SpanSender(
                "ca", lambda: channel, room=8, backoff=Backoff(first_s=0.01, longest_s=0.02)
            )
            running = spawn(sender.run(), name="sender")
            await asyncio.sleep(0)
            for n in range(20):
                sender.emit("certificate issued", {"n": n}, NOW_NS)
            assert sender.dropped == 12
            await stop(running)
            async with asyncio.timeout(PATIENCE_S):
                await sender.close()
    assert (sender.dropped, sender.sent) == (20, 0)
