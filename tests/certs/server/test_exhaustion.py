"""One address against the CA: calls that say nothing, garbage, and connections that do nothing."""

import asyncio
import logging
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from proto import ca_pb2
from tests.certs.running_ca import CA_NAME, RunningCa
from tests.patience import PATIENCE_S

SERVICE = "/podlink.ca.v1.CertificateAuthority/"


def channel(ca: RunningCa) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(ca.authority.bundle.to_pem())
    options = [
        ("grpc.ssl_target_name_override", CA_NAME),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    ]
    return grpc.aio.secure_channel(ca.address, credentials, options)


def rss_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / (1 << 20)


async def ended(call: Any) -> tuple[grpc.StatusCode, str]:
    return await call.code(), await call.details()


@pytest.mark.attack_row(52)
async def test_2_000_calls_of_headers_only_and_without_a_token_hold_nothing(ca: RunningCa) -> None:
    token = ca.fake.add_pod("web")
    await ca.sign(token)
    async with AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(channel(ca)) for _ in range(40)]
        await asyncio.gather(*(one.channel_ready() for one in channels))
        before = rss_mib()
        calls: list[Any] = [channels[n % 40].stream_unary(f"{SERVICE}Sign")() for n in range(2000)]
        began = time.monotonic()
        codes = await asyncio.gather(*(ended(call) for call in calls))
        took = time.monotonic() - began
        print(f"2,000 calls refused in {took:.1f} s, +{rss_mib() - before:.0f} MiB, both ends")
        assert {code for code, _ in codes} <= {
            grpc.StatusCode.UNAUTHENTICATED,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            grpc.StatusCode.UNAVAILABLE,  # more streams than one connection may have
        }, set(codes)
        assert ca.server.limits.unread.now == 0
        assert ca.server.limits.unread.peak <= 16
        assert rss_mib() - before < 96
        await ca.sign(token)  # the positive control, from the very same address


@pytest.mark.attack_row(52)
async def test_calls_with_a_token_and_no_request_hold_sixteen_places_and_not_the_others(
    ca: RunningCa,
) -> None:
    token = ca.fake.add_pod("web")
    async with channel(ca) as one, channel(ca) as other:
        said = (("authorization", f"Bearer {token}"),)
        calls: list[Any] = [
            c.stream_unary(f"{SERVICE}Sign")(metadata=said) for c in (one, other) for _ in range(16)
        ]
        codes = [code for code, _ in await asyncio.gather(*(ended(call) for call in calls))]
        assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 16
        assert codes.count(grpc.StatusCode.INVALID_ARGUMENT) == 16
    assert ca.server.limits.in_flight.peak == 0, "none took a place of those that are looked at"
    await ca.sign(token)


@pytest.mark.attack_row(50)
async def test_garbage_is_refused_in_one_line_that_is_no_error(
    ca: RunningCa, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    token = ca.fake.add_pod("web")
    said = (("authorization", f"Bearer {token}"),)
    async with channel(ca) as one:
        raw_sign: Any = one.unary_unary(f"{SERVICE}Sign")
        for raw in (b"\xff\xff\xff", b"\x0a\xff", b"[" * 9000, b"\x00"):
            for metadata in (said, ()):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await raw_sign(raw, metadata=metadata)
                assert caught.value.code() in (
                    grpc.StatusCode.INVALID_ARGUMENT,
                    grpc.StatusCode.UNAUTHENTICATED,
                )
        watch: Any = one.stream_stream(f"{SERVICE}WatchBundle")(metadata=said)
        first = ca_pb2.Bundle.FromString(await watch.read())
        assert first.root_der
        await watch.write(b"\xff\xff\xff")
        await asyncio.sleep(0.1)
        watch.cancel()
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR or one.exc_info]
    await ca.sign(token)


@pytest.mark.attack_row(52)
async def test_connections_over_the_bound_are_shut(ca: RunningCa) -> None:
    host, _, port = ca.address.rpartition(":")
    held = [await asyncio.open_connection(host, int(port)) for _ in range(500)]
    async with asyncio.timeout(PATIENCE_S):
        while (
            sum(not reader.at_eof() for reader, _ in held) > ca.server.limits.connections_per_source
        ):
            await asyncio.sleep(0.1)
    for _, writer in held:
        writer.transport.abort()
    await ca.sign(ca.fake.add_pod("web"))
