"""A whole CA on loopback, talking to a scriptable API server."""

import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from certs.authority.issue import Authority
from certs.authority.store import KeyStore, SecretStore, found_keyring
from certs.client.ca import CaClient, make_request
from certs.server.app import CaServer
from certs.server.config import CaConfig
from certs.server.issuance import Issuance
from certs.server.limits import Limits
from certs.server.report import Item, Refusal
from kit.clock import Clock, utcnow
from kit.kube import Kube
from proto import ca_pb2
from proto.ca_pb2_grpc import CertificateAuthorityStub
from tests.certs.fake_kube import FakeKube
from tests.patience import PATIENCE_S

if TYPE_CHECKING:
    from proto.ca_pb2_grpc import CertificateAuthorityAsyncStub

CA_NAME = "podlink-ca.podlink-system.svc"


@dataclass
class RunningCa:
    """The CA under test, its API server, and what it reported."""

    fake: FakeKube
    kube: Kube
    server: CaServer
    folder: Path
    items: list[Item] = field(default_factory=list)
    """What it reported: issued, refused, banned, rotated."""

    @property
    def authority(self) -> Authority:
        return self.server.keeper.authority

    @property
    def issued(self) -> list[Issuance]:
        return [item for item in self.items if isinstance(item, Issuance)]

    @property
    def refused(self) -> list[Refusal]:
        return [item for item in self.items if isinstance(item, Refusal)]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    @asynccontextmanager
    async def stub(self, name: str = CA_NAME) -> AsyncIterator["CertificateAuthorityAsyncStub"]:
        credentials = grpc.ssl_channel_credentials(self.authority.bundle.to_pem())
        options = [
            ("grpc.ssl_target_name_override", name),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_send_message_length", 64 * 2**20),
        ]
        async with grpc.aio.secure_channel(self.address, credentials, options) as channel:
            yield CertificateAuthorityStub(channel)

    async def sign(
        self, token: str | None, csr_der: bytes | None = None, ttl_s: int = 0
    ) -> ca_pb2.SignResponse:
        metadata = [] if token is None else [("authorization", f"Bearer {token}")]
        request = ca_pb2.SignRequest(
            csr_der=make_request()[1] if csr_der is None else csr_der, ttl_s=ttl_s
        )
        async with self.stub() as stub:
            return await stub.Sign(request, metadata=tuple(metadata), timeout=PATIENCE_S)

    async def refusal(
        self, token: str | None, csr_der: bytes | None = None
    ) -> grpc.aio.AioRpcError:
        """The error that Sign ends with; fails if it signs."""
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await self.sign(token, csr_der)
        return refused.value

    def client(self, token: str, name: str = "pod") -> CaClient:
        """A client with its token and bundle in files, as in a pod."""
        home = self.folder / name
        home.mkdir(exist_ok=True)
        (home / "token").write_text(token + "\n")
        (home / "root.pem").write_bytes(self.authority.bundle.to_pem())
        return CaClient(
            self.address, home / "token", home / "root.pem", "cluster.local", server_name=CA_NAME
        )


@asynccontextmanager
async def running_ca(
    folder: Path,
    fake: FakeKube | None = None,
    leaf_ttl_s: float = 3600.0,
    listen: str = "127.0.0.1:0",
    *,
    store: KeyStore | None = None,
    limits: Limits | None = None,
    stale_s: float = 60.0,
    reread_s: float = 15.0,
    tick_s: float = 0.05,
    longest_stream_s: float = 3600.0,
    clock: Clock = utcnow,
    **settings: Any,
) -> AsyncIterator[RunningCa]:
    """`settings` are fields of CaConfig. Tokens count from anywhere unless a test says otherwise:
    the pods of these tests have addresses that a test cannot call from."""
    fake = fake or FakeKube()
    settings = {"bind_tokens": False, "rotation_settle": dt.timedelta(0), **settings}
    config = CaConfig(leaf_ttl=dt.timedelta(seconds=leaf_ttl_s), listen=listen, **settings)
    async with fake.running() as kube:
        store = store or SecretStore(kube, config.system_namespace)
        stored = await found_keyring(store, "cluster.local", clock)
        items: list[Item] = []
        server = CaServer(
            config,
            kube,
            store,
            stored,
            (items.append,),
            clock,
            limits=limits,
            stale_s=stale_s,
            reread_s=reread_s,
            tick_s=tick_s,
            longest_stream_s=longest_stream_s,
        )
        try:
            await server.start()
            yield RunningCa(fake, kube, server, folder, items)
        finally:
            await server.stop()
