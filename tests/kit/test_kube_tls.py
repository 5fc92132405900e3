"""The Kubernetes client and the certificates that API servers really have."""

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from kit.kube import Kube, KubeError
from tests.kubernetes.node.pki import Authority


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts as Python 3.13 makes them, whatever Python runs this."""
    make = ssl.create_default_context

    def made(*args: Any, **kwargs: Any) -> ssl.SSLContext:
        context = make(*args, **kwargs)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", made)


async def ask(folder: Path, trusted: Authority | None, hosts: list[str]) -> Mapping[str, Any]:
    authority = Authority.new()  # its certificates carry no Authority Key Identifier
    path = authority.issue(folder, "api", hosts=hosts)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path.with_suffix(".crt"), path.with_suffix(".key"))
    app = web.Application()
    app.router.add_get("/version", _answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    port = runner.addresses[0][1]
    ca = folder / "ca.crt"
    ca.write_bytes((trusted or authority).pem())
    configuration = Configuration(host=f"https://127.0.0.1:{port}")
    configuration.ssl_ca_cert = str(ca)
    try:
        async with Kube(configuration) as kube:
            return await kube.get("/version")
    finally:
        await runner.cleanup()


async def _answer(_: web.Request) -> web.Response:
    return web.json_response({"minor": "36"})


@pytest.mark.usefixtures("strict")
async def test_an_api_server_without_authority_key_identifier_is_believed(tmp_path: Path) -> None:
    assert await ask(tmp_path, None, ["127.0.0.1"]) == {"minor": "36"}


@pytest.mark.usefixtures("strict")
async def test_who_signed_and_for_which_name_is_checked_all_the_same(tmp_path: Path) -> None:
    with pytest.raises(KubeError, match="CERTIFICATE_VERIFY_FAILED"):
        await ask(tmp_path, Authority.new(), ["127.0.0.1"])
    with pytest.raises(KubeError, match="IP address mismatch"):
        await ask(tmp_path, None, ["127.0.0.2"])
