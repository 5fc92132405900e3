"""The way of a gRPC probe: through a socket of the proxy's own, to the app and nowhere else."""

import asyncio
import subprocess
import sys
from contextlib import closing

import pytest

from sidecar.probes.grpc import ask_grpc
from sidecar.probes.http import ProbeFailed
from sidecar.probes.relay import Streams, relay
from sidecar.probes.spec import GrpcProbe
from tests.patience import PATIENCE_S

_TRY = (
    "import socket, sys\n"
    "s = socket.socket(socket.AF_UNIX)\n"
    "s.connect('\\0' + sys.argv[1]); print('connected')\n"
    "try: print(s.recv(9))\n"
    "except ConnectionResetError: print(b'')\n"
)


async def test_bytes_and_ends_pass_both_ways() -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read())[::-1])
        writer.close()

    async with await asyncio.start_server(app, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with relay(lambda: asyncio.open_connection("127.0.0.1", port)) as target:
            name = target.removeprefix("unix-abstract:")
            reader, writer = await asyncio.open_unix_connection(f"\0{name}")
            with closing(writer):
                writer.write(b"abc" * 50_000)
                writer.write_eof()
                assert await reader.read() == b"cba" * 50_000


@pytest.mark.attack_row(54)
async def test_another_process_is_not_let_in() -> None:
    """It would be shown to the app as the node is."""
    called = 0

    async def connect() -> Streams:
        nonlocal called
        called += 1
        raise OSError

    async with relay(connect) as target:
        name = target.removeprefix("unix-abstract:")
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", _TRY, name], capture_output=True, text=True
        )
        assert done.stdout.split() == ["connected", "b''"], done
        assert called == 0


async def test_a_port_where_nobody_listens_is_told_of_at_once() -> None:
    probe = GrpcProbe(port=1, service="shop", timeout_s=2 * PATIENCE_S)
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(ProbeFailed, match="UNAVAILABLE"):
            await ask_grpc(probe, "127.0.0.1")
