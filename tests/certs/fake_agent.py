"""A SPIFFE agent of the tests: the Workload API on a unix socket, with what a test puts there."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from proto import workload_pb2 as pb
from proto.workload_pb2_grpc import (
    SpiffeWorkloadAPIServicer,
    add_SpiffeWorkloadAPIServicer_to_server,
)
from tests.certs.forge import Forge, Pair


class FakeAgent(SpiffeWorkloadAPIServicer):
    def __init__(self, path: Path) -> None:
        self.endpoint = f"unix://{path}"
        self.answer: pb.X509SVIDResponse | None = None
        self.code: grpc.StatusCode | None = None
        """Refuse every call with it."""
        self.calls: list[dict[str, str]] = []
        self._changed = asyncio.Event()

    def show(self, *svids: pb.X509SVID) -> None:
        self.answer = pb.X509SVIDResponse(svids=svids)
        passed, self._changed = self._changed, asyncio.Event()
        passed.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        server = grpc.aio.server()
        add_SpiffeWorkloadAPIServicer_to_server(self, server)
        server.add_insecure_port(self.endpoint)
        await server.start()
        try:
            yield
        finally:
            await server.stop(0)

    async def FetchX509SVID(self, request: Any, context: Any) -> AsyncIterator[Any]:
        metadata = dict(context.invocation_metadata())
        self.calls.append(metadata)
        if metadata.get("workload.spiffe.io") != "true":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing")
        if self.code is not None:
            await context.abort(self.code, "no identity issued")
        while True:
            changed = self._changed
            if self.answer is not None:
                yield self.answer
            await changed.wait()


def svid(forge: Forge, pair: Pair, identity: str, **more: Any) -> pb.X509SVID:
    """As an agent hands it out: DER, the chain in one piece."""
    key = load_pem_private_key(pair.key_pem, None)
    certs = pair.chain_pem.decode().split("-----END CERTIFICATE-----")[:-1]
    chain = [ssl.PEM_cert_to_DER_cert(c.strip() + "\n-----END CERTIFICATE-----\n") for c in certs]
    found = {
        "spiffe_id": identity,
        "x509_svid": b"".join(chain),
        "x509_svid_key": key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
        "bundle": forge.root_der,
        **more,
    }
    return pb.X509SVID(**found)
