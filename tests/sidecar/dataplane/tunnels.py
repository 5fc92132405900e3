"""A peer written frame by frame: real TLS with a good leaf, and behaviour that a test decides."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from certs.trust.contexts import TlsMaterial
from certs.trust.identity import WorkloadIdentity
from kit.contract import ALPN
from sidecar.wire.frames import ACCEPT, DATA, END, END_FRAME, OPEN, encode
from sidecar.wire.opening import encode_accept
from tests.certs.forge import Forge
from tests.sidecar.dataplane.conftest import API


class Peer:
    """An acceptor. `behaviour(peer)` runs for each tunnel; when it returns, the tunnel is closed."""

    def __init__(
        self, behaviour: "Callable[[Peer], Awaitable[None]]", identity: WorkloadIdentity = API
    ) -> None:
        self._behaviour, self._identity = behaviour, identity
        self._server: asyncio.Server | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._ended: asyncio.Event | None = None
        self.port = 0
        self.links = 0
        self.unread = b""
        self.failure: BaseException | None = None

    async def start(self, ip: str, forge: Forge) -> None:
        key_pem, chain_pem = forge.leaf(str(self._identity), ips=[ip])
        context = TlsMaterial(key_pem, chain_pem, forge.root_pem).server_context([ALPN])
        self._server = await asyncio.start_server(self._serve, ip, 0, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer, self.unread = reader, writer, b""
        self._ended = ended = asyncio.Event()
        try:
            await self._behaviour(self)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except BaseException as e:
            self.failure = e
        finally:
            writer.close()
            ended.set()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._ended is not None:
            await self._ended.wait()
        if self.failure is not None:
            raise self.failure

    async def frame(self, kind: int) -> bytes:
        """The payload of the next frame, which must be of this kind."""
        found, payload = await self._next()
        assert found == kind, f"frame {found}, not {kind}"
        self.links += kind == OPEN
        return payload

    async def accept(self) -> None:
        await self.frame(OPEN)
        self.send(encode(ACCEPT, encode_accept(b"t" * 16, b"s" * 8)))

    async def data(self, size: int) -> bytes:
        """What came in DATA frames until there are `size` bytes."""
        got = b""
        while len(got) < size:
            got += await self.frame(DATA)
        return got

    def send(self, frames: bytes) -> None:
        assert self._writer is not None
        self._writer.write(frames)

    async def end(self) -> None:
        """Send END, and wait for the dialler's."""
        self.send(END_FRAME)
        await self.frame(END)

    async def until_closed(self) -> None:
        assert self._reader is not None
        with contextlib.suppress(ConnectionError):
            while got := await self._reader.read(65536):
                self.unread += got

    async def _next(self) -> tuple[int, bytes]:
        assert self._reader is not None
        head = await self._reader.readexactly(4)
        size = int.from_bytes(head[1:], "big")
        return head[0], await self._reader.readexactly(size) if size else b""
