"""The end of a link whose near side is slow, step by step."""

import asyncio
import socket
from typing import Any

import pytest

from sidecar.dataplane.links.splice import TunnelSplice
from sidecar.dataplane.loop.poller import poller_of
from sidecar.wire.frames import END
from tests.patience import PATIENCE_S


class FakeTunnel:
    """Notes what the splice asks of its tunnel."""

    def __init__(self) -> None:
        self.paused = False

    def write(self, frames: memoryview) -> bool:
        return True

    def send(self, kind: int, payload: bytes = b"") -> None:
        """Nobody listens."""

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def close(self) -> None:
        raise AssertionError("an orderly end keeps the tunnel")


@pytest.mark.fault_row("slow-reader")
@pytest.mark.parametrize("near_ends", ["first", "last"])
async def test_a_tunnel_is_read_again_after_a_link_that_ended_with_bytes_to_deliver(
    near_ends: str,
) -> None:
    body = bytes(2_000_000)
    near, app = socket.socketpair()
    near.setblocking(False)
    tunnel: Any = FakeTunnel()
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    poller = poller_of(asyncio.get_running_loop())
    splice = TunnelSplice(poller, near, tunnel, lambda _, close, error: ended.set_result(close))
    splice.start()
    reader, writer = await asyncio.open_connection(sock=app)
    if near_ends == "first":
        writer.write_eof()
        await asyncio.sleep(0.05)
    splice.tunnel_data(memoryview(body))
    assert tunnel.paused, "the app takes no more for now"
    splice.tunnel_control(END, b"")
    assert len(await reader.read()) == len(body)
    if near_ends == "last":
        writer.write_eof()
    assert await asyncio.wait_for(ended, PATIENCE_S) == "fin"
    assert not tunnel.paused
    writer.close()
