"""The CA as the process that runs in a pod: in-cluster settings, SIGTERM, kill -9 and a restart."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.certs.fake_kube import FakeKube
from tests.certs.forge import Forge
from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.netns


class Pod:
    """One CA process in a mount namespace of its own, with the files that a kubelet mounts."""

    def __init__(self, folder: Path, api_port: int) -> None:
        self.health_port, self._folder = free_port(), folder
        self._env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(api_port),
            "PODLINK_CA_LISTEN": f"127.0.0.1:{free_port()}",
            "PODLINK_HEALTH_PORT": str(self.health_port),
        }

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncIterator[asyncio.subprocess.Process]:
        script = (
            "mount -t tmpfs none /run && mkdir -p /run/secrets/kubernetes.io && "
            f"cp -r {self._folder}/account /run/secrets/kubernetes.io/serviceaccount && "
            f"exec {sys.executable} -m certs.server"
        )
        process = await asyncio.create_subprocess_exec(
            "unshare",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            script,
            env=self._env,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async def ready(self) -> None:
        url = f"http://127.0.0.1:{self.health_port}/readyz"
        async with asyncio.timeout(PATIENCE_S), aiohttp.ClientSession() as session:
            while True:
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    async with session.get(url) as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.1)


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[tuple[Pod, FakeKube]]:
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    fake, kube_ca = FakeKube(), Forge(name="kubernetes")
    leaf = kube_ca.leaf(None, ips=["127.0.0.1"])
    account = tmp_path / "account"
    account.mkdir()
    (account / "ca.crt").write_bytes(kube_ca.root_pem)
    (account / "token").write_text("token-of-the-ca")
    (account / "namespace").write_text("podlink-system")
    (tmp_path / "api.pem").write_bytes(leaf.key_pem + leaf.chain_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "api.pem")
    runner = web.AppRunner(fake.app(), handler_cancellation=True, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    yield Pod(tmp_path, runner.addresses[0][1]), fake
    await runner.cleanup()


@pytest.mark.fault_row("ca-restart")
async def test_it_starts_publishes_survives_a_kill_and_ends_with_0(
    pod: tuple[Pod, FakeKube],
) -> None:
    program, fake = pod
    fake.add_namespace("shop")
    async with program.started() as process:
        await program.ready()
        async with asyncio.timeout(PATIENCE_S):
            while fake.bundle_in("shop") is None:
                await asyncio.sleep(0.05)
        process.kill()
    published = fake.bundle_in("shop")
    async with program.started() as process:
        await program.ready()
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        log = (await asyncio.wait_for(process.stderr.read(), PATIENCE_S)).decode()
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0
    assert "created the root" not in log
    assert fake.bundle_in("shop") == published
    assert "PRIVATE" not in log


async def test_a_secret_that_holds_no_ca_stops_it_with_one_clear_line(
    pod: tuple[Pod, FakeKube],
) -> None:
    program, fake = pod
    fake.objects["/api/v1/namespaces/podlink-system/secrets/podlink-ca"] = {
        "metadata": {"name": "podlink-ca"},
        "data": {"tls.crt": "", "tls.key": ""},
    }
    async with program.started() as process:
        _, log = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        assert process.returncode == 1
    assert "tls.key is not a PEM private key" in log.decode()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
