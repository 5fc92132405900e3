"""The CA's port speaks TLS 1.3 and nothing older, though gRPC has no setting for it."""

import asyncio
import socket
import ssl

import pytest

from tests.certs.running_ca import CA_NAME, RunningCa
from tests.patience import PATIENCE_S


def version_spoken(ca: RunningCa, version: ssl.TLSVersion) -> str | None:
    context = ssl.create_default_context(cadata=ca.authority.bundle.to_pem().decode())
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", ca.server.port), timeout=PATIENCE_S) as raw,
        context.wrap_socket(raw, server_hostname=CA_NAME) as tls,
    ):
        return tls.version()


@pytest.mark.attack_row(4)
async def test_an_older_tls_is_refused(ca: RunningCa) -> None:
    assert await asyncio.to_thread(version_spoken, ca, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    with pytest.raises((ssl.SSLError, OSError)):
        await asyncio.to_thread(version_spoken, ca, ssl.TLSVersion.TLSv1_2)
